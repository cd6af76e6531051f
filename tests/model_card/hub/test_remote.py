"""Publishing into existing repositories."""

import functools
import os
import subprocess
import sys

import pytest
from huggingface_hub import HfApi

from maya_vlm.model_card.cards.model import MARKER
from maya_vlm.model_card.hub.publish import check_links, publish
from maya_vlm.model_card.hub.remote import (
    Content,
    has_card_of_its_owner,
    licence_of,
    open_repository,
)
from tests.helpers.hub_server import TOKEN, HubServer, Repository
from tests.helpers.tiny_maya import save_tiny_maya


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return HfApi(endpoint=hub.url, token=TOKEN)


def there(hub, name, private=False, files=None, kind="model"):
    repository = Repository(kind, name, private=private)
    repository.commit("main", {".gitattributes": b"", **(files or {})}, "begin")
    hub.repositories[kind, name] = repository
    return name


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: cc-by-nc-4.0\n---\n# A base\n", "cc-by-nc-4.0"),
        (b"---\nlicense: [mit, apache-2.0]\n---\n", None),
        (b"# A base without metadata\n", None),
    ],
)
def test_the_licence_of_a_base_is_that_of_its_card(hub, api, monkeypatch, card, licence):
    monkeypatch.setattr("huggingface_hub.HfApi", functools.partial(HfApi, endpoint=hub.url))
    name = there(hub, f"base/a{len(card)}", files={"README.md": card})
    assert licence_of(name, TOKEN) == licence
    assert licence_of("base/none", TOKEN) is None


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_private_never_ends_in_public(hub, api, kind, capsys):
    name = there(hub, f"me/public-{kind}", kind=kind)
    with pytest.raises(ValueError, match="found it public on the Hub; nothing was sent") as caught:
        open_repository(api, name, kind, private=True)
    assert "leave --private out" in str(caught.value)
    open_repository(api, there(hub, f"me/private-{kind}", True, kind=kind), kind, private=True)
    assert capsys.readouterr().out == ""
    open_repository(api, f"me/private-{kind}", kind, private=False)
    assert "is private on the Hub, and stays so" in capsys.readouterr().out
    for private in (True, False):
        open_repository(api, f"me/new-{kind}-{private}", kind, private=private)
        assert hub.repositories[kind, f"me/new-{kind}-{private}"].private is private


@pytest.mark.parametrize(
    ("card", "is_foreign"),
    [
        (b"# Mine\n", True),
        (b"\xff\xfe\x00", True),
        (b"x" * 2_000_000, True),
        (f"---\n---\n{MARKER}\nold".encode(), False),
        (b"what is sent", False),
        (None, False),
    ],
)
def test_whose_card_it_is(hub, api, tmp_path, card, is_foreign):
    (tmp_path / "README.md").write_bytes(b"what is sent")
    name = there(hub, "me/card", files={} if card is None else {"README.md": card})
    found = has_card_of_its_owner(api, name, "model", "main", Content(tmp_path / "README.md"))
    assert found is is_foreign


def test_a_card_of_somebody_on_the_hub_is_kept(hub, tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    (folder / "recipe.yaml").write_text(
        "stages: []\noutput_dir: /home/ann/runs/x\nhub_token: hf_" + "x" * 30 + "\n"
    )
    there(hub, "me/tiny", files={"README.md": b"# Mine\n"})
    code = (
        "import sys; from maya_vlm.training.cli import main\n"
        "for more in ([], ['--private'], ['--overwrite-card']):\n"
        f"    print(main(['publish', {str(folder)!r}, 'me/tiny', *more]), file=sys.stderr)\n"
        "    print('-----')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.environment(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    first, refused, last, _ = done.stdout.split("-----")
    assert "README.md on the Hub was written by somebody and is kept" in first
    assert "published to" not in refused
    assert "--private: expected model me/tiny to be private" in done.stderr
    assert "README.md on the Hub" not in last
    commits = list(hub.repositories["model", "me/tiny"].commits.values())
    assert len(commits) == 3
    assert commits[1]["README.md"] == b"# Mine\n"
    assert MARKER in commits[2]["README.md"].decode()
    for files in commits[1:]:
        assert files["recipe.yaml"] == b"stages: []\noutput_dir: x\nhub_token: '[redacted]'\n"
    assert "/home/ann" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("model", "results.json"),
        ("model", "README.md"),
        ("model", "LICENSES.md"),
        ("dataset", "keys.json"),
        ("dataset", "README.md"),
        ("dataset", "data/x.parquet"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_links_out_of_the_folder_are_refused(tmp_path, kind, name, exists):
    folder, secret = tmp_path / "folder", tmp_path / "secret"
    (folder / name).parent.mkdir(parents=True)
    if exists:
        secret.write_text("a key")
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match="found a link out of the folder") as caught:
        publish(folder, "me/x", kind=kind)
    assert name in str(caught.value)
    assert secret.exists() is exists


def test_links_within_the_folder_and_of_what_is_not_sent_pass(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text("{}")
    (tmp_path / "folder" / "results.json").symlink_to("a.json")
    (tmp_path / "folder" / "checkpoint").symlink_to(tmp_path)
    check_links(tmp_path / "folder", "model")
