"""A recipe is checked key by key; every message names the path, what was found, what was expected."""

from pathlib import Path

import pytest
import yaml

from maya_vlm.training.common.schema import read_mapping, resolve_path, to_dict
from maya_vlm.training.recipe import RECIPES, count_steps, find_recipe, load_recipe, write_recipe

GOOD = {
    "output_dir": "runs/x",
    "model": {"vision_tower": "v", "language_model": "l"},
    "stages": [
        {
            "name": "pretrain",
            "data": [{"path": "d"}],
            "train": [{"pattern": ".*", "rate": 0.1}],
            "args": {"max_steps": 3},
        }
    ],
}


def changed(path: str, value, tmp_path: Path, remove: bool = False) -> Path:
    """GOOD with the value at a dotted path replaced, as a file."""
    recipe = yaml.safe_load(yaml.safe_dump(GOOD))
    node = recipe
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    if remove:
        del node[last]
    else:
        node[last] = value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stagse", [], r"unknown key 'stagse'; did you mean 'stages'\?"),
        ("model.vision_towr", "v", r"unknown key 'model.vision_towr'; did you mean 'vision_tower'"),
        ("stages.0.data.0.split", 3, r"stages\[0\].data\[0\].split: expected text, found a number 3"),
        ("stages.0.train.0.rate", "fast", r"stages\[0\].train\[0\].rate: expected a number \| 'frozen', found text"),
        ("stages.0.batch_size", "8", r"stages\[0\].batch_size: expected a whole number, found text \"8\""),
        ("stages.0.batch_size", True, r"batch_size: expected a whole number, found a truth value true"),
        ("stages.0.batch_size", 0, r"batch_size: expected 1 or more, found 0"),
        ("stages", "all", r"stages: expected a list of a mapping, found text"),
        ("stages", [], r"stages: expected at least one stage, found none"),
        ("stages.0.data", [], r"stages\[0\].data: expected at least one item"),
        ("stages.0.args.max_step", 3, r"unknown key 'stages\[0\].args.max_step'; did you mean 'max_steps'"),
        ("stages.0.args.max_steps", "many", r"stages\[0\].args.max_steps: expected a whole number"),
        ("stages.0.args.save_only_model", True, r"args.save_only_model: set by maya; use nothing: every checkpoint"),
        ("stages.0.args.label_smoothing_factor", 0.1, r"label_smoothing_factor: set by maya"),
        ("stages.0.args.average_tokens_across_devices", False, r"across_devices: set by maya"),
        ("stages.0.args.output_dir", "x", r"args.output_dir: set by maya; use the recipe's output_dir"),
        ("stages.0.data.0.augment", {"rotate": 1}, r"data\[0\].augment: expected null, because images are no longer augmented"),
        ("stages.0.name", "a/b", r"stages\[0\].name: expected letters, digits"),
        ("model.image_aspect", "round", r"model.image_aspect: expected 'pad' \| 'square' \| 'crop'"),
        ("model.checkpoint", "c", r"model.vision_tower: expected no value, because the checkpoint"),
        ("model", {"vision_tower": "v"}, r"model.language_model: expected a folder or Hub repository, found nothing"),
        ("processes", 0, r"processes: expected 1 or more"),
        ("stages.0.train.0.top_layers", 0, r"train\[0\].top_layers: expected 1 or more, found 0"),
        ("stages.0.adapter", {"r": 4}, r"stages\[0\].adapter.rate: expected a number, found nothing"),
        ("stages.0.adapter", {"rate": 0.1}, r"stages\[0\].adapter: expected a finished Maya"),
        ("stages.0.adapter", {"rate": 0}, r"adapter.rate: expected more than 0, found 0"),
        ("stages.0.adapter", {"rate": 0.1, "r": 0}, r"adapter.r: expected 1 or more, found 0"),
        ("stages.0.adapter", {"rate": 0.1, "r": 1.5}, r"adapter.r: expected a whole number"),
        ("stages.0.adapter", {"rate": 0.1, "alpha": 0}, r"adapter.alpha: expected more than 0"),
        ("stages.0.adapter", {"rate": 0.1, "dropout": 1}, r"adapter.dropout: expected 0 or more and less than 1"),
        ("stages.0.adapter", {"rate": 0.1, "lora_plus_ratio": 0}, r"adapter.lora_plus_ratio: expected more than 0"),
        ("stages.0.adapter", {"rate": 0.1, "type": "ia3"}, r"adapter.type: expected 'lora' \| 'dora', found text"),
        ("stages.0.adapter", {"rate": 0.1, "quantize": "fp4"}, r"adapter.quantize: expected 'nf4' \| 'int8'"),
        ("stages.0.adapter", {"rate": 0.1, "target_modules": "("}, r"adapter.target_modules: expected a regular expression, found '\('"),
        ("stages.0.adapter", {"rate": 0.1, "target_modules": []}, r"adapter.target_modules: expected at least one name"),
        ("stages.0.adapter", {"rate": 0.1, "lora_plus": 4}, r"unknown key 'stages\[0\].adapter.lora_plus'; did you mean 'lora_plus_ratio'"),
        ("kind", "vision", r"kind: expected 'maya', found text \"vision\""),
    ],
)  # fmt: skip
def test_bad_recipes(path, value, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(changed(path, value, tmp_path))
    assert "\n" not in str(error.value)
    assert "recipe.yaml" in str(error.value)


def test_quantized_weights_are_not_sharded(tmp_path):
    file = changed("stages.0.adapter", {"rate": 0.1, "quantize": "nf4"}, tmp_path)
    with pytest.raises(ValueError, match=r"adapter.quantize: .* remove args.fsdp, or"):
        load_recipe(file, ["stages.0.args.fsdp=true"])


def test_no_as_yaml_reads_it(tmp_path):
    file = changed("seed", 1, tmp_path)
    args = load_recipe(file, ["stages.0.args.save_strategy=no"]).stages[0].args
    assert args["save_strategy"] == "no"


def test_missing_key(tmp_path):
    with pytest.raises(ValueError, match=r"output_dir: expected text, found nothing"):
        load_recipe(changed("output_dir", None, tmp_path, remove=True))


def test_not_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"a\.yaml: not YAML"):
        read_mapping(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="expected a mapping of keys"):
        read_mapping(tmp_path / "b.yaml")


def test_numbers_as_yaml_reads_them(tmp_path):
    file = changed("stages.0.train.0.rate", "1e-3", tmp_path)
    assert load_recipe(file).stages[0].train[0].rate == 1e-3


def test_overrides(tmp_path):
    file = changed("seed", 1, tmp_path)
    overrides = ["seed=2", "stages.0.args.max_steps=7", "stages.pretrain.batch_size=5"]
    recipe = load_recipe(file, overrides, output_dir="elsewhere")
    assert recipe.seed == 2
    assert recipe.stages[0].args["max_steps"] == 7
    assert recipe.stages[0].batch_size == 5
    assert recipe.output_dir == "elsewhere"
    with pytest.raises(ValueError, match="found 'finetune'"):
        load_recipe(file, ["stages.finetune.batch_size=5"])
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        load_recipe(file, ["seed"])
    with pytest.raises(ValueError, match="unknown key 'sed'; did you mean 'seed'"):
        load_recipe(file, ["sed=1"])


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("data/mini", tmp_path / "recipes") == "data/mini"
    assert resolve_path("./../data", tmp_path / "recipes") == "data"
    assert resolve_path("../../data", tmp_path / "recipes") == str(tmp_path.parent / "data")


def test_what_ships_is_written_without_the_place_it_is_installed_in(tmp_path, monkeypatch):
    recipe = load_recipe(find_recipe("mini"))
    write_recipe(recipe, tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text()
    assert "vision_tower: maya_vlm://bases/mini/vision_tower" in text
    assert "path: maya_vlm://data/mini" in text
    assert str(RECIPES.parent) not in text
    monkeypatch.chdir(tmp_path)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert Path(again.model.vision_tower).is_dir()
    assert to_dict(again) == to_dict(load_recipe(find_recipe("mini")))


def test_a_saved_recipe_names_no_place_of_the_machine_and_runs_again(tmp_path):
    """Wherever the command was started: other absolute paths become relative to the file."""
    (tmp_path / "data").mkdir()
    rows = tmp_path / "data" / "rows.jsonl"
    rows.write_text("")
    overrides = [f"stages.0.data.0.path={rows}"]
    recipe = load_recipe(find_recipe("mini"), overrides, str(tmp_path / "run"))
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    for folder in (tmp_path / "run", tmp_path / "run" / "pretrain"):
        write_recipe(recipe, folder / "recipe.yaml")
        assert str(tmp_path) not in (folder / "recipe.yaml").read_text()
        again = load_recipe(folder / "recipe.yaml")
        assert to_dict(again) == to_dict(recipe)


def test_resolved_recipe_reads_back(tmp_path):
    recipe = load_recipe(changed("seed", 4, tmp_path))
    assert recipe.model.vision_feature_layer == -2
    write_recipe(recipe, tmp_path / "resolved.yaml")
    assert to_dict(load_recipe(tmp_path / "resolved.yaml")) == to_dict(recipe)


def test_shipped_recipes_are_valid():
    names = [p for p in RECIPES.rglob("*.yaml") if "bases" not in p.parts and p.stem != "dpo"]
    assert len(names) >= 3
    for path in names:
        recipe = load_recipe(path)
        assert recipe.stages


def test_find_recipe():
    assert find_recipe("mini") == RECIPES / "mini.yaml"
    assert find_recipe("maya-8b/pretrain").is_file()
    with pytest.raises(FileNotFoundError, match=r"did you mean 'mini'\?.*maya-8b/finetune"):
        find_recipe("mini2")


def test_a_stage_has_steps():
    assert count_steps(3, 0.0, 2, 5) == 3
    assert count_steps(-1, 1.0, 2, 5) == 3
    with pytest.raises(ValueError, match=r"num_train_epochs: expected more than 0, found 0"):
        count_steps(-1, 0.0, 2, 5)
