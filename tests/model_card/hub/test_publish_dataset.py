"""Datasets on the Hub: if the client dies at any request, readers see the old or the new dataset."""

import hashlib
import itertools
from pathlib import Path

import httpx2
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory

from maya_vlm.model_card.hub import publish_dataset
from maya_vlm.model_card.hub.publish_dataset import push_dataset
from maya_vlm.model_card.hub.remote import Content
from tests.helpers.hub_server import TOKEN, HubServer, Repository

OLD = {"data/old.parquet": b"old rows", "README.md": b"old card", "notes.txt": b"kept"}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(publish_dataset, "FILES_A_COMMIT", 2)
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def names(tmp_path):
    """Return files to send. The folder has no manifest, so no config is loaded."""
    made = {f"data/fr/clean-{n:05d}.parquet": f"rows {n}".encode() for n in range(3)}
    made |= {"README.md": b"new card", "LICENSE": b"a text"}
    for name, content in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in made}


def seed(hub, name):
    repository = Repository("dataset", name)
    repository.commit("main", dict(OLD), "older")
    hub.repositories["dataset", name] = repository
    return repository


@pytest.fixture
def calls():
    """Count requests; the client dies before request number `calls.die_at`."""

    class Calls:
        made, die_at = 0, None

        def __call__(self, request):
            self.made += 1
            if self.made == self.die_at:
                raise Killed

    counter = Calls()
    huggingface_hub.set_client_factory(
        lambda: httpx2.Client(event_hooks={"request": [counter]}, follow_redirects=True)
    )
    yield counter
    huggingface_hub.set_client_factory(default_client_factory)


def push(api, folder, names, *where, **more):
    contents = {name: Content(file) for name, file in names.items()}
    return push_dataset(api, folder, contents, *where, **more)


def new_files(names):
    return {name: file.read_bytes() for name, file in names.items()} | {"notes.txt": b"kept"}


def test_a_client_that_dies_at_any_call_leaves_readers_a_whole_dataset(
    hub, api, names, calls, tmp_path
):
    new = new_files(names)
    seen_old = 0
    for number in itertools.count(1):
        name = f"user/data{number}"
        repository = seed(hub, name)
        calls.made, calls.die_at = 0, number
        try:
            push(api, tmp_path, names, name, "main")
            break
        except Killed:
            pass
        assert hub.files("dataset", name) in (OLD, new), f"call {number}"
        seen_old += hub.files("dataset", name) == OLD
        calls.die_at = None
        tag = push(api, tmp_path, names, name, "main")
        assert hub.files("dataset", name) == new
        assert hub.files("dataset", name, tag) == new
        assert list(repository.branches) == ["main"]
    assert number > 15
    assert seen_old > 10
    (made,) = hub.repositories["dataset", name].tags.values()
    assert made[1] == "no manifest"


def test_what_has_arrived_is_not_sent_again(hub, api, names, calls, tmp_path):
    repository = seed(hub, "user/again")
    sent = lambda: sum(line.startswith("PUT /objects") for line in hub.requests)  # noqa: E731
    hub.objects.clear()
    before = sent()
    for number in range(1, 200):
        calls.made, calls.die_at = 0, number
        try:
            push(api, tmp_path, names, "user/again", "main")
            break
        except Killed:
            pass
    assert sent() - before == 3
    assert hub.files("dataset", "user/again") == new_files(names)
    assert repository.messages[-1] == "Publish again"


def test_a_commit_of_somebody_else_is_not_overwritten(hub, api, names, tmp_path, monkeypatch):
    repository = seed(hub, "user/race")

    def meanwhile(*_):
        repository.commit("main", {**OLD, "theirs.txt": b"theirs"}, "theirs")

    monkeypatch.setattr(publish_dataset, "check_arrived", meanwhile)
    with pytest.raises(HfHubHTTPError, match="moved since"):
        push(api, tmp_path, names, "user/race", "main")
    assert hub.files("dataset", "user/race") == {**OLD, "theirs.txt": b"theirs"}
    monkeypatch.undo()


def test_a_damaged_branch_is_not_merged(hub, api, names, tmp_path, monkeypatch):
    repository = seed(hub, "user/damaged")
    check = publish_dataset.check_arrived

    def damage(*args):
        (staging,) = set(repository.branches) - {"main"}
        files = hub.files("dataset", "user/damaged", staging)
        repository.commit(
            staging, {**files, "data/fr/clean-00001.parquet": b"rows x"}, "a bit flips"
        )
        check(*args)

    monkeypatch.setattr(publish_dataset, "check_arrived", damage)
    with pytest.raises(
        OSError, match=r"1 of 5 files did not arrive whole, e.g. data/fr/clean-00001"
    ):
        push(api, tmp_path, names, "user/damaged", "main")
    assert hub.files("dataset", "user/damaged") == OLD


def test_other_branches_and_tags(hub, api, names, tmp_path):
    repository = seed(hub, "user/branch")
    assert push(api, tmp_path, names, "user/branch", "next", tag="v2") == "v2"
    assert hub.files("dataset", "user/branch") == OLD
    assert hub.files("dataset", "user/branch", "next") == new_files(names)
    assert repository.tags["v2"][0] == repository.branches["next"]
    (tmp_path / "LICENSE").write_bytes(b"another text")
    push(api, tmp_path, names, "user/branch", "next", tag="v2")
    assert hub.files("dataset", "user/branch", "v2")["LICENSE"] == b"another text"


def test_the_hash_of_the_branch_is_that_of_the_content(hub, api, names, tmp_path):
    seed(hub, "user/hash")
    first = push(api, tmp_path, names, "user/hash", "main")
    assert push(api, tmp_path, names, "user/hash", "main") == first
    assert hashlib.sha256(b"rows 1").hexdigest() in hub.objects
    (tmp_path / "README.md").write_bytes(b"newer card")
    assert push(api, tmp_path, names, "user/hash", "main") != first


def test_every_file_is_hashed_once_from_the_check_to_the_tag(hub, api, tmp_path, monkeypatch):
    """Count this package's hashes only; huggingface_hub hashes the sent files itself."""
    table = pyarrow.table({"id": ["1", "2"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "README.md").write_text("a card")
    seed(hub, "user/hashed")
    taken = []
    hashed = hashlib.file_digest
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, digest: taken.append(Path(file.name).name) or hashed(file, digest),
    )
    contents = publish_dataset.check_files(tmp_path)
    contents["README.md"] = Content(tmp_path / "README.md")
    push_dataset(api, tmp_path, contents, "user/hashed", "main")
    # The Hub uses git's hash for the small text file; the branch name uses SHA-256.
    assert sorted(taken) == ["README.md", "README.md", "rows.parquet"]
