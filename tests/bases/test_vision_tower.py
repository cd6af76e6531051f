"""The vision tower trains on a tiny dataset of real files, in the layout of the mini dataset."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModel, SiglipVisionModel

from maya_vlm.training.bases.augmentation import AugmentationRecipe, augment
from maya_vlm.training.bases.text_codes import ngram_buckets
from maya_vlm.training.bases.vision_tower import classes as first_part
from maya_vlm.training.bases.vision_tower.classes import train_classes
from maya_vlm.training.bases.vision_tower.dataset import read_dataset
from maya_vlm.training.bases.vision_tower.memory import class_keys, class_scores, write_memory
from maya_vlm.training.bases.vision_tower.network import (
    CaptionEncoder,
    TowerWithHeads,
    read_classes,
    read_features,
    scale_stream,
)
from maya_vlm.training.bases.vision_tower.recipe import VisionTowerRecipe
from maya_vlm.training.bases.vision_tower.run import TowerRun
from maya_vlm.training.bases.vision_tower.train import train_vision_tower
from maya_vlm.training.common.schema import build as from_mapping
from maya_vlm.training.common.schema import read_mapping
from maya_vlm.training.run.train import train

TRAINING = Path(first_part.__file__).parents[2]
SHIPPED_RECIPE = TRAINING / "recipes" / "bases" / "vision_tower.yaml"
SHIPPED_TOWER = TRAINING / "bases" / "mini" / "vision_tower"
STYLES = ("round", "square", "line")  # two for training, one for validation
CONCEPTS = 12
HELD_OUT = "c03"

CARD = """---
configs:
- config_name: all
  data_files:
  - split: train
    path: texts/*/train-*.parquet
- config_name: images
  data_files:
  - split: train
    path: [images/round.parquet, images/square.parquet]
  - split: validation
    path: images/line.parquet
---
"""


def draw(concept: int, style: str, size: int = 16) -> bytes:
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    x, y = 4 * (concept % 4), 5 * (concept // 4)
    box = (x, y, x + 4, y + 4)
    color = (20 * concept, 60, 40)
    if style == "round":
        pen.ellipse(box, fill=color)
    elif style == "square":
        pen.rectangle(box, fill=color)
    else:
        pen.rectangle(box, outline="black", width=2)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, style: str, rows: list[dict]) -> None:
    features = Features(
        {
            "image": Value("string"),
            "picture": ImageFeature(),
            "style": Value("string"),
            "concept": Value("string"),
        }
    )
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    folder.joinpath("images").mkdir(exist_ok=True)
    pq.write_table(table, folder / "images" / f"{style}.parquet")


def image_rows(style: str) -> list[dict]:
    return [
        {
            "image": f"{style}/c{number:02d}.png",
            "picture": {"bytes": draw(number, style), "path": None},
            "style": style,
            "concept": f"c{number:02d}",
        }
        for number in range(CONCEPTS)
    ]


def text_rows(lang: str) -> list[dict]:
    return [
        {
            "lang": lang,
            "text": f"thing {number} {lang}",
            "category": "even" if number % 2 == 0 else "odd",
            "concept": f"c{number:02d}",
            "seen": f"c{number:02d}" != HELD_OUT,
        }
        for number in range(CONCEPTS)
        # One name is missing in one language, as in CLDR.
        if (lang, number) != ("hi", 5)
    ]


def build(folder: Path) -> Path:
    folder.mkdir()
    for style in STYLES:
        write_images(folder, style, image_rows(style))
    for lang in ("en", "hi"):
        folder.joinpath("texts", lang).mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(text_rows(lang)), folder / "texts" / lang / "train-clean.parquet"
        )
    folder.joinpath("README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    import datasets

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(before)
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def recipe(dataset_folder) -> VisionTowerRecipe:
    return VisionTowerRecipe(
        data=str(dataset_folder),
        train_styles=["round", "square"],
        validation_styles=["line"],
        languages=["en", "hi"],
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=4,
        code_layers=2,
        memory_layers=1,
        code_copies=2,
        code_steps=40,
        memory_threshold=1.0,
        contrastive_steps=40,
        code_batch_size=24,
        intermediate_size=48,
        num_attention_heads=2,
        steps=60,
        batch_size=12,
        learning_rate=3e-3,
        warmup_steps=4,
        cooldown_steps=20,
        contrastive_dim=16,
        augmentation_ramp=0,
        augmentation=AugmentationRecipe().at(0.1),
        log_every=10,
        evaluate_every=30,
        save_every=20,
    )


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> Path:
    return train_vision_tower(recipe, tmp_path_factory.mktemp("tower") / "out")


def read_recipe(path: Path) -> VisionTowerRecipe:
    values = read_mapping(path)
    assert values.pop("kind") == "vision_tower"
    return from_mapping(VisionTowerRecipe, values, str(path))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SiglipVisionModel.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_all_losses_fall(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    log = metrics["log"]
    first = [row for row in log if "step" in row]
    second = [row for row in log if "code_step" in row]
    assert [row["step"] for row in first] == [10, 20, 30, 40, 50, 60]
    assert first[-1]["concept"] < first[0]["concept"] - 0.2
    assert [row["code_step"] for row in second] == [10, 20, 30, 40]
    assert second[-1]["code"] < second[0]["code"]
    assert second[-1]["cosine"] > second[0]["cosine"]
    assert second[-1]["agreement"] > 0.5
    third = [row for row in log if "contrastive_step" in row]
    assert [row["contrastive_step"] for row in third] == [10, 20, 30, 40]
    assert third[-1]["contrastive"] < third[0]["contrastive"]
    assert metrics["concepts"] == CONCEPTS - 1
    heads = metrics["heads_before_storing"]
    assert {"code_top1", "code_cosine", "caption_top5_en", "caption_top5_hi"} <= set(heads)


def test_saved_folder_is_complete_and_small(trained, recipe):
    assert sorted(file.name for file in trained.iterdir()) == [
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
    ]
    tower = AutoModel.from_pretrained(trained)
    assert isinstance(tower, SiglipVisionModel)
    assert tower.dtype == torch.float16
    assert (trained / "model.safetensors").stat().st_size < 2 * tower.num_parameters() + 20_000
    assert read_recipe(trained / "recipe.yaml") == recipe


def test_what_all_pictures_share_is_taken_out(trained, recipe):
    tower = SiglipVisionModel.from_pretrained(trained, dtype=torch.float32)
    features = read_features(tower, read_dataset(recipe).train.pixels)
    offset = features.mean((0, 1)).norm() / 32**0.5
    assert offset < 0.3 * features.flatten(0, 1).std(0).mean()


def test_processor_gives_what_the_tower_was_trained_on(trained, dataset_folder):
    image = Image.open(io.BytesIO(draw(5, "line")))
    processor = AutoImageProcessor.from_pretrained(trained, backend="pil")
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_before_last_is_what_maya_reads(recipe):
    model = TowerWithHeads(recipe, torch.eye(3, recipe.hidden_size), 2).eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        classes = model.classes(pixels.float() / 127.5 - 1)
        ours = model.before_last(classes)
        assert torch.equal(classes, ours), "code layers begin as the identity"
        torch.testing.assert_close(ours, read_features(model.tower, pixels))
        output = model.tower(pixels.float() / 127.5 - 1)
        torch.testing.assert_close(model.pooled(ours), output.pooler_output)
    assert ours.shape == (2, 16, 32)


def test_a_memory_answers_to_each_key_with_its_code(recipe):
    recipe = dataclasses.replace(recipe, num_hidden_layers=5, code_layers=3, memory_layers=2)
    generator = torch.Generator().manual_seed(0)
    codes, keys = F.normalize(torch.randn(2, 60, 32, generator=generator), dim=2)
    model = TowerWithHeads(recipe, codes, 2).eval()
    # Each patch contains a part of what the mean over four contains completely.
    shown = torch.cat([keys, -keys[:5]])[:, None] * 0.2
    noise = torch.randn(len(shown), 4, 32, generator=generator) * 0.05
    features = shown + noise - noise.mean(1, keepdim=True)
    assert torch.equal(model.before_last(features), features)
    scores = class_scores(features, keys)
    assert (scores[:60].argmax(1) == torch.arange(60)).all()
    memory = model.tower.encoder.layers[2:4]
    threshold = float(scores[:60].diagonal().min()) * 0.9
    write_memory(memory, keys, codes, threshold=threshold, sharpness=20.0, gain=3.0, stream=0.8)
    after = model.before_last(features)
    added = after - features - 0.8 * F.layer_norm(features, (32,)).mean(1, keepdim=True)
    nearest = F.normalize(added, dim=2) @ codes.T
    assert (nearest[:60].argmax(2) == torch.arange(60)[:, None]).all()
    # For features near no key it adds nothing.
    silent = scores[60:].max(1).values < 0.8 * threshold
    assert silent.any()
    assert added[60:][silent].norm(dim=2).max() < 0.05 * added[:60].norm(dim=2).min()


def test_class_scores_order_the_classes_as_the_concept_head_does(recipe, tmp_path):
    run = TowerRun(recipe, read_dataset(recipe), tmp_path)
    train_classes(run)
    features = read_classes(run.model, run.dataset.train.pixels)
    keys, mean = class_keys(run.model, features)
    scores = class_scores(features, keys)
    assert float(scores.std()) == pytest.approx(1.0, rel=1e-3)
    assert float(scores.mean()) == pytest.approx(mean, abs=1e-3)
    model = run.model.eval()
    head = model.concept(model.mean_norm(features.mean(1)))
    assert float((scores.argmax(1) == head.argmax(1)).float().mean()) > 0.8


def test_a_memory_too_small_for_the_concepts_is_refused_before_training(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, intermediate_size=CONCEPTS - 2)
    with pytest.raises(ValueError, match=r"1 memory_layers of 10 units .* to hold 11 concepts"):
        train_vision_tower(recipe, tmp_path / "out")


@pytest.mark.parametrize("deviation", [1.0, 0.2])
def test_scaling_the_stream_changes_nothing_but_its_size(recipe, deviation):
    model = TowerWithHeads(recipe, torch.eye(3, recipe.hidden_size), 2).eval()
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    before = read_features(model.tower, pixels)
    with torch.no_grad():
        pooled = model.tower(pixels.float() / 127.5 - 1).pooler_output
        scale_stream(model.tower, before, deviation)
        again = model.tower(pixels.float() / 127.5 - 1).pooler_output
    after = read_features(model.tower, pixels)
    assert (after - after.mean((0, 1))).std().item() == pytest.approx(deviation, rel=1e-3)
    ratio = (before.flatten() @ after.flatten()) / (after.flatten() @ after.flatten())
    torch.testing.assert_close(after * ratio, before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(again, pooled, atol=1e-3, rtol=1e-3)


def test_same_seed_same_weights_and_another_seed_others(recipe, trained, tmp_path):
    again = weights(train_vision_tower(recipe, tmp_path / "again"))
    first = weights(trained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    short = dataclasses.replace(recipe, steps=2, cooldown_steps=1)
    one = weights(train_vision_tower(short, tmp_path / "one"))
    other = weights(train_vision_tower(dataclasses.replace(short, seed=1), tmp_path / "other"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_broken_off_run_continues_to_the_same_weights(recipe, trained, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    losses = first_part.class_losses

    def cut(run):
        if run.step == 47:
            raise Cut
        return losses(run)

    with monkeypatch.context() as patch:
        patch.setattr(first_part, "class_losses", cut)
        with pytest.raises(Cut):
            train_vision_tower(recipe, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["training_state.safetensors"]
    with pytest.raises(ValueError, match="expected the state of this recipe and dataset"):
        train_vision_tower(dataclasses.replace(recipe, batch_size=6), tmp_path)
    with pytest.raises(ValueError, match="cool-down has begun"):
        train_vision_tower(dataclasses.replace(recipe, steps=50), tmp_path)
    train_vision_tower(recipe, tmp_path)
    first, second = weights(trained), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "training_state.safetensors").exists()


def test_held_out_concepts_are_in_no_part(recipe):
    data = read_dataset(recipe)
    assert HELD_OUT not in data.concepts
    assert data.held_out == 1
    assert len(data.train.concept) == 2 * (CONCEPTS - 1)
    assert len(data.validation.concept) == CONCEPTS - 1
    hidden = Image.open(io.BytesIO(draw(3, "round"))).convert("RGB")
    pixels = torch.from_numpy(np.asarray(hidden).copy()).permute(2, 0, 1)
    assert not (data.train.pixels == pixels).flatten(1).all(1).any()
    assert all("thing 3 " not in (name or "") for names in data.captions for name in names)


def test_a_name_missing_in_one_language_is_left_out(recipe):
    data = read_dataset(recipe)
    assert data.captions[data.concepts.index("c05")] == ["thing 5 en", None]


def test_a_concept_both_seen_and_held_out_is_an_error(recipe, tmp_path):
    folder = build(tmp_path / "mini")
    rows = text_rows("hi")
    rows[0]["seen"] = False
    pq.write_table(pa.Table.from_pylist(rows), folder / "texts" / "hi" / "train-clean.parquet")
    with pytest.raises(ValueError, match="'c00' is marked both seen and held out"):
        read_dataset(dataclasses.replace(recipe, data=str(folder)))


def test_a_corrupt_picture_is_named(recipe, tmp_path):
    folder = build(tmp_path / "mini")
    rows = image_rows("square")
    rows[7]["picture"]["bytes"] = rows[7]["picture"]["bytes"][:60]
    write_images(folder, "square", rows)
    with pytest.raises(ValueError, match=r"square/c07\.png: expected a readable image"):
        train_vision_tower(dataclasses.replace(recipe, data=str(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "no-such-folder"}, "expected a folder, found nothing at 'no-such-folder'"),
        (
            {"train_styles": ["round", "cubist"]},
            "expected images in the styles cubist, found line, round",
        ),
        ({"languages": ["en", "xx"]}, "expected captions in xx, found en, hi"),
    ],
)
def test_what_the_dataset_lacks_is_named(recipe, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_dataset(dataclasses.replace(recipe, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected 1 or more, found 0"),
        ({"steps": 20_000_000}, "steps: expected 1 or more and at most 10,000,000"),
        ({"steps": "many"}, 'steps: expected a whole number, found text "many"'),
        ({"learning_rate": "fast"}, 'learning_rate: expected a number, found text "fast"'),
        (
            {"learning_rate": float("nan")},
            "learning_rate: expected a number, found nan, which is not finite",
        ),
        ({"label_smoothing": 1.5}, "label_smoothing: expected 0 or more and at most 1, found 1.5"),
        ({"mixed_share": 1.5}, "mixed_share: expected 0 or more and at most 1, found 1.5"),
        ({"memory_steps": 20}, "unknown key 'memory_steps'"),
        ({"train_styles": []}, "train_styles: expected at least one name, found none"),
        (
            {"validation_styles": ["round"]},
            "validation_styles: expected other .*, found round in both",
        ),
        ({"num_hidden_layers": 3}, "num_hidden_layers: expected at least 4"),
        ({"memory_layers": 3}, "memory_layers: expected at most code_layers, 2, found 3"),
        (
            {"num_attention_heads": 5},
            "hidden_size: expected a multiple of num_attention_heads, 5, found 32",
        ),
        ({"patch_size": 32}, "image_size: expected at least patch_size, 32, .* found 16"),
        ({"storage_dtype": "int4"}, "storage_dtype: expected 'float16' .*, found text \"int4\""),
        ({"augmentation": {"blurr": 0.1}}, "unknown key 'augmentation.blurr'"),
        ({"augmentation": {"blur": 2.0}}, "blur: expected 0 or more and at most 1, found 2"),
        (
            {"augmentation": {"outline": 0.9, "blur": 0.9}},
            "expected at most 1, because .* found 1.95",
        ),
        ({"speed": 3}, "unknown key 'speed'"),
    ],
)
def test_bad_recipes_are_named_in_one_line(recipe, tmp_path, change, message):
    values = {"kind": "vision_tower", **dataclasses.asdict(recipe), **change}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message) as error:
        read_recipe(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["kind: tower", "kind: vision_tower", "- 1", "a: [", ""])
def test_a_file_that_is_no_such_recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml: ") as error:
        train(str(path), output_dir=str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_keys_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("kind: vision_tower\ndata: x\nlanguages: [en]\n")
    with pytest.raises(ValueError, match="train_styles: expected a list of text, found nothing"):
        read_recipe(path)


def test_augmentation_is_repeatable_in_range_and_leaves_its_input_alone():
    pictures = torch.rand(16, 3, 16, 16)
    before = pictures.clone()
    flips = torch.ones(16, dtype=torch.bool)
    full = AugmentationRecipe()
    one = augment(pictures, flips, full, torch.Generator().manual_seed(3))
    two = augment(pictures, flips, full, torch.Generator().manual_seed(3))
    three = augment(pictures, flips, full, torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert one.shape == pictures.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(pictures, before)


def test_white_stays_white_and_no_strength_changes_nothing():
    white = torch.ones(8, 3, 16, 16)
    flips = torch.ones(8, dtype=torch.bool)
    recipe = dataclasses.replace(AugmentationRecipe(), erase=0.0, background=0.0)
    out = augment(white, flips, recipe, torch.Generator().manual_seed(0))
    assert out.min() > 0.95
    pictures = torch.rand(8, 3, 16, 16)
    same = augment(pictures, flips, AugmentationRecipe().at(0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, pictures, atol=2e-4, rtol=0)


def test_only_pictures_that_may_be_mirrored_are():
    picture = torch.ones(1, 3, 16, 16)
    picture[..., :4] = 0
    recipe = dataclasses.replace(AugmentationRecipe().at(0), flip=1.0)
    allowed = torch.tensor([True, False])
    out = augment(picture.repeat(2, 1, 1, 1), allowed, recipe, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out[0], picture[0].flip(-1), atol=2e-4, rtol=0)
    torch.testing.assert_close(out[1], picture[0], atol=2e-4, rtol=0)


def test_captions_to_vectors():
    encoder = CaptionEncoder(8)
    features = [ngram_buckets(caption) for caption in ("cat", "cat face", "rocket")]
    assert encoder(features).shape == (3, 8)


def test_the_shipped_recipe_is_valid_and_leaves_the_test_style_alone():
    recipe = read_recipe(SHIPPED_RECIPE)
    assert "twemoji" not in [*recipe.train_styles, *recipe.validation_styles]
    assert recipe.validation_styles == ["openmoji"]


def test_the_shipped_tower_loads_and_reads_pictures():
    metrics = json.loads((SHIPPED_TOWER / "metrics.json").read_text())
    tower, report = SiglipVisionModel.from_pretrained(
        SHIPPED_TOWER, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert tower.num_parameters() == metrics["parameters"]
    recipe = read_recipe(SHIPPED_TOWER / "recipe.yaml")
    assert recipe == read_recipe(SHIPPED_RECIPE)
    pixels = torch.randint(0, 256, (2, 3, recipe.image_size, recipe.image_size), dtype=torch.uint8)
    features = read_features(tower, pixels)
    patches = (recipe.image_size // recipe.patch_size) ** 2
    assert features.shape == (2, patches, recipe.hidden_size)
    assert features.isfinite().all()
    both = SHIPPED_TOWER.parent.glob("*/model.safetensors")
    assert sum(file.stat().st_size for file in both) < 12_000_000
