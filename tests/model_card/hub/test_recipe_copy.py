"""Published recipes: no secrets and no local paths."""

from pathlib import Path

import pytest
import yaml

from maya_vlm.model_card.hub.recipe_copy import published_recipe


def published(tmp_path, values):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    text = published_recipe(path)
    return values if text is None else yaml.safe_load(text)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/ann/data/rows.json", "rows.json"),
        ("~/data/rows.json", "rows.json"),
        ("~ann/rows.json", "rows.json"),
        ("$HOME/rows", "rows"),
        ("../../ann/rows.json", "rows.json"),
        ("a/../../rows", "rows"),
        ("C:\\Users\\Ann\\rows.json", "rows.json"),
        ("\\\\server\\share\\rows", "rows"),
        ("file:///home/ann/x.png", "x.png"),
        ("/", "."),
        ("data/rows.json", "data/rows.json"),
        ("CohereLabs/aya-23-8B", "CohereLabs/aya-23-8B"),
        ("./rows", "./rows"),
        ("model\\.projector\\..*", "model\\.projector\\..*"),
        ("What is this?\n<image>", "What is this?\n<image>"),
        ("https://example.org/a", "https://example.org/a"),
    ],
)
def test_paths_out_of_the_run_become_their_last_part(tmp_path, path, shown):
    assert published(tmp_path, {"a": [{"path": path}]}) == {"a": [{"path": shown}]}


def test_secrets_are_left_out(tmp_path):
    found = published(tmp_path, {"stages": [{"args": {"hub_token": "hf_" + "x" * 30, "seed": 1}}]})
    assert found == {"stages": [{"args": {"hub_token": "[redacted]", "seed": 1}}]}


def test_the_home_folder_in_a_note(tmp_path):
    assert published(tmp_path, {"note": f"made in {Path.home()}/x"}) == {"note": "made in ~/x"}


def test_what_is_no_yaml_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        published_recipe(tmp_path / "recipe.yaml")
