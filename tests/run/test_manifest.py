"""Manifest: equal contents in any place are the same run; a change is reported with its file or key."""

import copy
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.open import open_groups
from maya_vlm.training.common.schema import to_dict, without_defaults
from maya_vlm.training.recipe import DataRecipe, Recipe, StageRecipe, load_recipe
from maya_vlm.training.run import manifest as manifest_module
from maya_vlm.training.run import watched
from maya_vlm.training.run.manifest import (
    MANIFEST,
    WORK,
    check_manifest,
    check_stage_inputs,
    make_manifest,
    pin,
    read_manifest,
    write_manifest,
)
from maya_vlm.training.run.train import train

from ..batches.tiny_stream import make_rows
from .tiny_run import make_data, make_recipe, write


@pytest.fixture
def begun(tmp_path):
    """Return a recipe with paths relative to its folder, and the output folder of its run after a save."""
    recipe = make_recipe(tmp_path)
    recipe["output_dir"] = "./run"
    recipe["model"] |= {"vision_tower": "./bases/vision", "language_model": "./bases/language"}
    for stage in recipe["stages"]:
        stage["data"][0]["path"] = "./data/rows.jsonl"
    path = write(recipe, tmp_path / "r.yaml")
    output = tmp_path / "run"
    (output / WORK / "pretrain" / "checkpoint-1").mkdir(parents=True)
    write_manifest(output, make_manifest(load_recipe(path)))
    return path, output


def test_from_another_directory_it_is_the_same_run(begun, monkeypatch, tmp_path):
    path, output = begun
    for folder in (tmp_path, tmp_path / "data", Path("/")):
        monkeypatch.chdir(folder)
        check_manifest(output, make_manifest(load_recipe(path)))


def test_with_its_data_moved_it_is_the_same_run(begun, tmp_path):
    path, output = begun
    moved = shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    bases = shutil.move(tmp_path / "bases", tmp_path / "other")
    (tmp_path / "link").symlink_to(moved)
    for folder in (moved, "./link"):
        changes = [f"stages.{i}.data.0.path={folder}/rows.jsonl" for i in (0, 1)]
        changes += [f"model.vision_tower={bases}/vision", f"model.language_model={bases}/language"]
        check_manifest(output, make_manifest(load_recipe(path, changes)))


def test_other_contents_are_another_run(begun, tmp_path):
    path, output = begun
    make_data(tmp_path / "more", images=7)
    changes = [f"stages.0.data.0.path={tmp_path}/more/rows.jsonl"]
    with pytest.raises(ValueError, match=r"stages\[0\].data\[0\].path: .*, whose content differs"):
        check_manifest(output, make_manifest(load_recipe(path, changes)))
    with (tmp_path / "data" / "rows.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"the files of .*rows.jsonl have changed") as error:
        check_manifest(output, make_manifest(load_recipe(path)))
    # The message must not advise to delete the work without saying so.
    assert "delete" not in str(error.value)
    assert "--restart to discard that work" in str(error.value)
    (tmp_path / "data" / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match=r"the files of .*rows.jsonl have changed"):
        check_manifest(output, make_manifest(load_recipe(path)))


def test_a_recipe_that_was_mistyped_is_forgotten(tmp_path):
    """Check a run that ended before it saved anything: there is no work to mix with another recipe's."""
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    path = str(write(recipe, tmp_path / "r.yaml"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(path, ["stages.0.data.0.path=./nowhere"])
    left = tmp_path / "run" / WORK / "left-from-it.json"
    left.touch()
    train(path)
    assert not left.exists()
    with pytest.raises(ValueError, match=r"holds the work of another recipe \(seed: 3 -> 4\)"):
        train(path, ["seed=4"])


def old_manifest(path: Path) -> dict:
    """Return the manifest as the previous version wrote it: with default values, and without newer keys."""
    recipe = load_recipe(path)
    manifest = copy.deepcopy(make_manifest(recipe))
    for stage in manifest["recipe"]["stages"]:
        for name in ("eval_data", "early_stopping_patience", "early_stopping_threshold"):
            del stage[name]
        for source in stage["data"]:
            del source["revision"]
    return manifest


def test_a_run_begun_by_an_earlier_version_continues(begun, tmp_path):
    path, output = begun
    old = old_manifest(path)
    old["recipe"]["stages"][0]["args"]["fsdp_config"] = {"api_key": "mysecret"}
    (output / WORK / MANIFEST).write_text(json.dumps(old))
    secret = ["stages.0.args.fsdp_config={api_key: mysecret}"]
    check_manifest(output, make_manifest(load_recipe(path, secret)))
    (output / WORK / MANIFEST).write_text(json.dumps(old_manifest(path)))
    manifest = make_manifest(load_recipe(path))
    check_manifest(output, manifest)
    write_manifest(output, manifest)
    assert "eval_data" in read_manifest(output)["recipe"]["stages"][0]
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    changes = [f"stages.{i}.data.0.path=./elsewhere/rows.jsonl" for i in (0, 1)]
    check_manifest(output, make_manifest(load_recipe(path, changes)))
    with pytest.raises(ValueError, match=r"stages\[0\].batch_size: 2 -> 3"):
        check_manifest(
            output, make_manifest(load_recipe(path, [*changes, "stages.0.batch_size=3"]))
        )
    held = [*changes, "stages.0.eval_data=[{path: ./elsewhere/rows.jsonl}]"]
    with pytest.raises(ValueError, match=r"stages\[0\].eval_data"):
        check_manifest(output, make_manifest(load_recipe(path, held)))


def test_what_decides_the_best_checkpoint_is_part_of_the_run(begun):
    path, _ = begun
    best = ["stages.0.eval_data=[{path: ./data/rows.jsonl}]", "stages.0.args.load_best_model_at_end=true"]  # fmt: skip
    best += ["stages.0.args.eval_steps=1"]
    one, two = (
        make_manifest(load_recipe(path, [*best, f"stages.0.args.save_steps={n}"])) for n in (1, 2)
    )
    assert one != two
    one, two = (make_manifest(load_recipe(path, [f"stages.0.args.save_steps={n}"])) for n in (1, 2))
    assert one == two


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"recipe": 1, "content": {}}', "[" * 10_000, "null"])  # fmt: skip
def test_a_damaged_manifest_is_one_line(text, begun):
    path, output = begun
    (output / WORK / MANIFEST).write_text(text)
    with pytest.raises(
        ValueError, match=r"manifest.json is damaged: use another output_dir, or use --"
    ):
        check_manifest(output, make_manifest(load_recipe(path)))


def test_data_that_change_between_stages_are_seen(begun, tmp_path):
    path, output = begun
    stage = load_recipe(path).stages[1]
    check_stage_inputs(output, stage)
    (tmp_path / "data" / "rows.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"stage finetune: the files of .*rows.jsonl have changed"):
        check_stage_inputs(output, stage)


def test_values_at_their_defaults_are_as_if_left_out():
    source = DataRecipe("a", tasks={"name": 1.0})
    stage = StageRecipe("s", data=[source], train=[], eval_data=[DataRecipe("b", limit=3)])
    assert without_defaults(StageRecipe, to_dict(stage)) == {
        "name": "s",
        "data": [{"path": "a", "tasks": {"name": 1.0}}],
        "train": [],
        "eval_data": [{"path": "b", "limit": 3}],
    }


# ------------------------------------------------------------------------------ the Hub


def test_hub_datasets_go_on_at_the_commit_they_began_with(begun, monkeypatch):
    path, output = begun
    commits = {"user/data": "a" * 40}
    monkeypatch.setattr(
        manifest_module,
        "_dataset_repository",
        lambda source: f"repository@{commits[source.path]}" if commits else "repository",
    )
    changes = ["stages.0.data.0.path=user/data"]
    write_manifest(output, make_manifest(load_recipe(path, changes)))
    commits["user/data"] = "b" * 40
    for _ in range(2):  # online, then offline
        recipe = load_recipe(path, changes)
        manifest = make_manifest(recipe)
        check_manifest(output, manifest)
        write_manifest(output, manifest)
        pin(recipe, read_manifest(output))
        assert recipe.stages[0].data[0].revision == "a" * 40
        assert recipe.stages[1].data[0].revision is None
        commits.clear()
    # The saved recipe names the commit and is the same run. A different commit is a different run.
    commits["user/data"] = "a" * 40
    saved = [*changes, f"stages.0.data.0.revision={'a' * 40}"]
    check_manifest(output, make_manifest(load_recipe(path, saved)))
    commits["user/data"] = "c" * 40
    with pytest.raises(ValueError, match=r"revision: commit aaa.* -> ccc"):
        check_manifest(output, make_manifest(load_recipe(path, [*changes, "stages.0.data.0.revision=v2"])))  # fmt: skip


def test_a_base_on_the_hub_whose_files_change_is_seen(begun, monkeypatch):
    path, output = begun
    found = ["repository@1"]
    monkeypatch.setattr(manifest_module, "_model_repository", lambda *of: found[0])
    changes = ["model.vision_tower=user/tower"]
    write_manifest(output, make_manifest(load_recipe(path, changes)))
    for told in ("repository@1", "repository"):
        found[0] = told
        check_manifest(output, make_manifest(load_recipe(path, changes)))
    found[0] = "repository@2"
    with pytest.raises(ValueError, match="the files of user/tower have changed"):
        check_manifest(output, make_manifest(load_recipe(path, changes)))


# ------------------------------------------------------------------------------ pictures


def stage_of(folder: Path, streamed: str | None = None, **changes) -> StageRecipe:
    """Return a stage on the rows of `make_data`. `streamed` is the column of pictures of a streamed stage."""
    if streamed is not None:
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        for row in rows:
            images = row.pop("images")
            row[streamed] = images if streamed == "images" else images[0]
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        source = DataRecipe(str(folder / "rows.parquet"), streaming=True, **changes)
    else:
        source = DataRecipe(str(folder / "rows.jsonl"), **changes)
    return StageRecipe("s", data=[source], train=[])


@pytest.mark.parametrize("streamed", [None, "image", "images"])
def test_a_picture_that_changes_is_named(tmp_path, streamed):
    folder = tmp_path / "data"
    make_data(folder)
    stage, file = stage_of(folder, streamed), tmp_path / "pictures.parquet"
    watched.note(stage, [open_groups(stage, 0)], file)
    watched.check(stage, file, finished=False)
    picture = folder / "pictures" / "3.png"
    content = picture.read_bytes()
    # Rewritten with the same bytes: a new date alone is not a change.
    picture.write_bytes(content)
    watched.check(stage, file, finished=False)
    picture.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"stage s: .*pictures/3.png: this picture has changed"):
        watched.check(stage, file, finished=False)
    Image.new("RGB", (3, 3)).save(picture)
    (folder / "pictures" / "4.png").unlink()
    with pytest.raises(ValueError, match=r"pictures/3.png and 1 more: this picture"):
        watched.check(stage, file, finished=False)
    picture.write_bytes(content)
    watched.check(stage, file, finished=True)  # a finished stage no longer needs its pictures


def test_pictures_that_move_are_the_same(tmp_path, monkeypatch):
    make_data(tmp_path / "data")
    file = tmp_path / "pictures.parquet"
    stage = stage_of(tmp_path / "data", image_folder=str(tmp_path / "data"))
    data = GroupData(stage.data)
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    for hashed in (1 << 40, 0):  # compared by content, then by size and date only
        monkeypatch.setattr(watched, "HASHED", hashed)
        file.unlink(missing_ok=True)
        stage.data[0].image_folder = str(tmp_path / "data")
        watched.note(stage, [data], file)
        watched.check(stage, file, finished=False)
        stage.data[0].image_folder = str(tmp_path / "copy")
        watched.check(stage, file, finished=False)
    stage.data[0].image_folder = str(tmp_path / "data")
    picture = tmp_path / "data" / "pictures" / "3.png"
    picture.write_bytes(picture.read_bytes())
    with pytest.raises(ValueError, match="has changed"):  # without hashes, a new date is a change
        watched.check(stage, file, finished=False)


def test_pictures_that_are_not_files_are_not_watched(tmp_path):
    rows = make_rows(tmp_path / "rows.parquet")
    stage = StageRecipe("s", data=[DataRecipe(str(rows))], train=[])
    watched.note(stage, [GroupData(stage.data)], tmp_path / "pictures.parquet")
    watched.check(stage, tmp_path / "pictures.parquet", finished=False)


def test_a_run_that_continues_looks_at_its_pictures(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    path = str(write(recipe, tmp_path / "r.yaml"))

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maya_vlm.training.run.stage.finish_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            train(path)
    picture = tmp_path / "data" / "pictures" / "0.png"
    content = picture.read_bytes()
    Image.new("RGB", (5, 5)).save(picture)
    with pytest.raises(ValueError, match=r"pictures/0.png: this picture has changed since the run"):
        train(path)
    picture.write_bytes(content)
    train(path)


# ------------------------------------------------------------------------------ secrets


def test_secrets_are_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["args"] |= {
        "max_steps": 1,
        "hub_token": "mysecret-1",
        "fsdp_config": {"env": {"WANDB_API_KEY": "mysecret-2"}},
        "run_name": "hf_mysecret3333",
    }
    seen = []
    from maya_vlm.training.run import stage as stage_module
    from maya_vlm.training.run import train as run_module

    original = run_module.stage_arguments

    def arguments(*args):
        found = original(*args)
        seen.append(found.hub_token)
        return found

    for module in (run_module, stage_module):
        monkeypatch.setattr(module, "stage_arguments", arguments)
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    assert set(seen) == {"mysecret-1"}, "the run itself gets the value"
    for file in folder.rglob("*"):
        assert not file.is_file() or b"mysecret" not in file.read_bytes(), file
    assert isinstance(load_recipe(folder / "recipe.yaml"), Recipe)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    seen.clear()
    train(str(tmp_path / "r.yaml"), restart=True)
    assert set(seen) == {None}, "the environment's token comes first"


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["stages"][0]["args"]["hub_token"] = ["mysecret"]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=r"hub_token: expected text \| null, found") as error:
        load_recipe(path)
    assert "mysecret" not in str(error.value)
