"""Front matter of untrusted Hub cards."""

import pytest
import yaml

from maya_vlm.training.common.cards import card_metadata, check_cards


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\na: 1\n---\n# Card\n---\nb: 2\n---\n", {"a": 1}),
        ("---\r\na: 1\r\n---\r\ntext", {"a": 1}),
        ("\n---\nname: ends on ---\nb: 2\n---", {"name": "ends on ---", "b": 2}),
        ("---\n---\ntext", {}),
        ("# Card\n---\na: 1\n---\n", {}),
        ("---\na: 1\n", {}),
        ("", {}),
    ],
)
def test_the_head_of_a_card(text, found):
    assert card_metadata(text, "README.md") == found


@pytest.mark.parametrize("head", ["[1]", "a: &a [*a]", "{", "a: 1\na: 2"])
def test_a_head_that_is_refused_is_one_line(head):
    with pytest.raises(ValueError, match=r"README\.md: YAML front matter") as caught:
        card_metadata(f"---\n{head}\n---\n", "README.md")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "configs",
    [
        [{"config_name": "a", "data_files": "../x.parquet"}],
        [{"config_name": "a", "data_files": ["data/x.parquet", "/etc/x.parquet"]}],
        [
            {"config_name": "a"},
            {"config_name": "b", "data_files": {"train": "data/../../x.parquet"}},
        ],
        [{"config_name": "a", "data_files": [{"split": "train", "path": "../*.parquet"}]}],
        [{"config_name": "a", "data_files": [{"split": "train", "path": ["C:/x.parquet"]}]}],
        [{"config_name": "a", "data_files": "https://example.org/x.parquet"}],
        [{"config_name": "a", "data_dir": "../other"}],
    ],
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_files_of_a_card_stay_below_its_folder(tmp_path, configs, name):
    head = yaml.safe_dump({"configs": configs})
    (tmp_path / name).write_text(f"---\n{head}---\n" if name == "README.md" else head)
    with pytest.raises(ValueError, match=rf"{name}: data_files: expected files below") as caught:
        check_cards(tmp_path)
    assert "\n" not in str(caught.value)


def test_ordinary_cards_pass(tmp_path):
    check_cards(tmp_path)
    files = [{"split": "train", "path": ["data/*/*.parquet", "a..b/**"]}]
    for configs in (None, [{"config_name": "a", "data_files": files, "data_dir": "."}], "x", [3]):
        head = yaml.safe_dump({"configs": configs})
        (tmp_path / "README.md").write_text(f"---\n{head}---\n")
        check_cards(tmp_path)
