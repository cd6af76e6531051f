"""`user/name@revision` is parsed in one way for models and datasets."""

import pytest

from maya_vlm.training.common.revisions import is_path, split_revision


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("user/name", None, ("user/name", None)),
        ("user/name@v1", None, ("user/name", "v1")),
        ("user/name", "v1", ("user/name", "v1")),
        ("user/name@v1", "v1", ("user/name", "v1")),
        ("user/name@refs/pr/3", None, ("user/name", "refs/pr/3")),
        ("user/name@a@b", None, ("user/name", "a@b")),
        ("./run@2", None, ("./run@2", None)),
        ("/data/me@home/run", None, ("/data/me@home/run", None)),
        ("runs/large/model@2", None, ("runs/large/model@2", None)),
        ("~/run@2", None, ("~/run@2", None)),
    ],
)
def test_where_the_revision_is(name, revision, expected):
    assert split_revision(name, revision) == expected


def test_a_folder_that_exists_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "name@v1").mkdir(parents=True)
    assert split_revision("user/name@v1") == ("user/name@v1", None)
    with pytest.raises(ValueError, match="found a local path, which has no revisions"):
        split_revision("user/name@v1", "v2")


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("", None, "expected the name of a folder or repository"),
        ("a\x00b", None, "expected the name"),
        ("a/b\ud800", None, "half of a surrogate pair"),
        ("user/name@", None, "expected NAME@REVISION"),
        ("@v1", None, "expected NAME@REVISION"),
        ("user/name", " ", "expected a branch, tag or commit"),
        ("user/name", "a\nb", "expected a branch, tag or commit"),
        ("user/name@v1", "v2", "found 'v1' in the name and 'v2' beside it"),
        ("./run", "v1", "found a local path, which has no revisions"),
    ],
)
def test_what_names_nothing(name, revision, words):
    with pytest.raises(ValueError, match=words) as error:
        split_revision(name, revision)
    assert str(error.value).isprintable()


def test_what_can_only_be_a_path():
    assert all(map(is_path, ["./a", "../a", "/a", "~/a", "a/b/c", "a\\b"]))
    assert not any(map(is_path, ["a", "a/b", "a/b@refs/pr/1"]))
