"""Models that others made: errors about their files become one line, all other errors pass unchanged."""

import json

import pytest

from maya_vlm.training.common.models import check_generation, check_weights, find_model, opening
from tests.helpers.tiny_maya import save_tiny_maya


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "maya")


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's exception."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("weight_map"), "me: cannot be loaded: KeyError: 'weight_map': download it again"),
        (RuntimeError("size\nmismatch \x1b[2J"), r"RuntimeError: size mismatch \\x1b\[2J"),
        (ValueError("not this"), "me: cannot be loaded: not this"),
        (OSError(), "OSError"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_what_libraries_raise_is_one_line(error, told):
    with pytest.raises(ValueError, match=told) as caught:
        with opening("me"):
            raise error
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModuleNotFoundError("no module", name="x"), ModuleNotFoundError),
        (MemoryError("full"), MemoryError),
        (OutOfMemoryError("CUDA out of memory"), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_is_no_fault_of_the_files_passes(error, kind):
    with pytest.raises(kind):
        with opening("me"):
            raise error


def test_a_long_message_is_cut():
    with pytest.raises(ValueError, match="me: cannot be loaded") as caught:
        with opening("me"):
            raise TypeError("x" * 100_000)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"eos_token_id": [1, 10**6]}, "eos_token_id: expected a token id below 40, found 1000000"),
        ({"bos_token_id": "x"}, "bos_token_id: expected a token id below 40, found 'x'"),
        ({"pad_token_id": True}, "pad_token_id: expected a token id"),
        ({"eos_token_id": []}, "eos_token_id: expected a token id"),
        ({"do_sample": "yes"}, "do_sample: expected true or false, found 'yes'"),
    ],
)
def test_generation_settings(tmp_path, values, words):
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        check_generation(find_model(str(tmp_path)), 40)
    file.write_text(json.dumps({"eos_token_id": [1, 39], "pad_token_id": None, "do_sample": True}))
    check_generation(find_model(str(tmp_path)), 40)


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "./none", "/none/at/all", "~/none-here", "a b/c", "../x"]
)
def test_names_of_nothing(tmp_path, monkeypatch, name):
    def asked(*args):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("maya_vlm.training.common.models._download", asked)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match="expected a folder"):
        find_model(name)


def test_a_folder_beside_a_missing_one_is_no_repository(folder, monkeypatch):
    """`runs/mini2`, with a local folder `runs`, is a mistyped folder and is not looked up on the Hub."""
    monkeypatch.chdir(folder.parents[0])
    (folder.parent / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="no model at runs/mini2"):
        find_model("runs/mini2")


def test_headers_of_a_whole_model(folder):
    headers = check_weights(find_model(str(folder)))
    assert "model.multi_modal_projector.layers.0.weight" in headers
