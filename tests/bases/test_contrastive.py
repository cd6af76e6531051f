"""Towers trained by contrast: transformers' own losses, no held-out concept, resumed = uninterrupted."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPModel,
    CLIPVisionModel,
    SiglipModel,
    SiglipVisionModel,
)

from maya_vlm.training.bases.augmentation import AugmentationRecipe
from maya_vlm.training.bases.contrastive import train as contrastive
from maya_vlm.training.bases.contrastive.captions import draw_captions, read_captions
from maya_vlm.training.bases.contrastive.probe import score_retrieval
from maya_vlm.training.bases.contrastive.recipe import ContrastiveRecipe
from maya_vlm.training.bases.contrastive.train import ContrastiveRun, train_contrastive
from maya_vlm.training.bases.vision_tower.dataset import read_dataset
from maya_vlm.training.bases.vision_tower.network import normalize, read_features, scale_stream
from maya_vlm.training.common.schema import build as from_mapping
from maya_vlm.training.common.schema import read_mapping
from maya_vlm.training.recipe import load_recipe
from maya_vlm.training.run.train import train

from ..run.tiny_run import logged, make_recipe, write
from .test_vision_tower import CONCEPTS, HELD_OUT, build

RECIPES = Path(contrastive.__file__).parents[2] / "recipes"
APART = Path(contrastive.__file__).parents[1] / "apart"
TOWERS = {"sigmoid": SiglipVisionModel, "softmax": CLIPVisionModel}


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
def data(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("data") / "mini")


def tiny(data: Path, loss: str, **changes) -> ContrastiveRecipe:
    values = {
        "loss": loss,
        "data": str(data),
        "train_styles": ["round", "square"],
        "validation_styles": ["line"],
        "languages": ["en", "hi"],
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "vocab_size": 268,
        "text_length": 12,
        "text_layers": 1,
        "captions_per_image": 2,
        "steps": 24,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "cooldown_steps": 8,
        "augmentation": AugmentationRecipe().at(0.1),
        "augmentation_ramp": 0,
        "log_every": 8,
        "evaluate_every": 12,
        "save_every": 5,
    }
    return ContrastiveRecipe(**{**values, **changes})


@pytest.fixture(scope="module", params=["sigmoid", "softmax"])
def recipe(request, data) -> ContrastiveRecipe:
    return tiny(data, request.param)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> Path:
    return train_contrastive(recipe, tmp_path_factory.mktemp("tower") / "out")


@pytest.fixture
def run(recipe, tmp_path) -> ContrastiveRun:
    return ContrastiveRun(recipe, read_dataset(recipe), tmp_path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()


# ------------------------------------------------------------------------------ losses and batches


def test_the_loss_is_that_of_the_paper_and_of_transformers(run, recipe):
    kind = {"sigmoid": SiglipModel, "softmax": CLIPModel}[recipe.loss]
    assert type(run.model) is kind
    run.model.eval()
    loss = run.losses()["contrastive"]
    _, pixels, captions = run.batch()
    assert captions.shape == (2, 8, 12)
    # The library's own loss, one caption of each image at a time.
    library = kind(run.model.config).eval()
    library.load_state_dict(run.model.state_dict())
    outputs = [library(input_ids=c, pixel_values=pixels, return_loss=True) for c in captions]
    each = torch.stack([output.loss for output in outputs])
    assert float((each[0] - each[1]).abs().detach()) > 1e-4
    torch.testing.assert_close(loss, each.mean(), atol=1e-6, rtol=0)
    # The papers' formulas, from the two embeddings.
    output = outputs[0]
    logits = F.normalize(output.image_embeds, dim=1) @ F.normalize(output.text_embeds, dim=1).T
    logits = logits * library.logit_scale.exp()
    if recipe.loss == "sigmoid":
        signs = 2 * torch.eye(len(logits)) - 1
        expected = -F.logsigmoid(signs * (logits + library.logit_bias)).sum() / len(logits)
    else:
        own = torch.arange(len(logits))
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-6)


def test_an_image_and_its_caption_are_of_one_concept_and_no_concept_comes_twice(run):
    data, captions = run.dataset, run.captions
    seen = set()
    for _ in range(12):
        concepts, pixels, texts = run.batch()
        assert len(set(concepts.tolist())) == len(concepts) == 8
        assert pixels.shape == (8, 3, 16, 16)
        for column, number in enumerate(concepts.tolist()):
            for ids in texts[:, column]:
                text = captions.tokenizer.decode(ids, skip_special_tokens=True).replace("<PAD>", "")
                assert text in data.captions[number]
                seen.add((number, text))
        run.step += 1
    assert len({number for number, _ in seen}) == CONCEPTS - 1, "every concept comes"
    assert len(seen) == 2 * (CONCEPTS - 1) - 1, "in both languages"


def test_images_are_those_of_their_concepts(run, monkeypatch):
    rows = []
    monkeypatch.setattr(run, "redrawn", lambda chosen, *_: rows.append(chosen))
    styles = set()
    for run.step in range(20):
        concepts, _, _ = run.batch()
        assert torch.equal(run.dataset.train.concept[rows[-1]], concepts)
        styles |= set(rows[-1].tolist())
    assert len(styles) == 2 * (CONCEPTS - 1), "both styles of every concept come"


def test_held_out_concepts_are_in_no_batch_and_not_in_the_tokenizer(recipe, data, tmp_path):
    run = ContrastiveRun(recipe, read_dataset(recipe), tmp_path)
    assert HELD_OUT not in run.dataset.concepts
    assert run.dataset.held_out == 1
    learned = " ".join(name for names in run.dataset.captions for name in names if name)
    assert "thing 3 " not in learned
    assert run.captions.ids.shape == (CONCEPTS - 1, 2, 12)
    assert int(run.captions.named.sum()) == 2 * (CONCEPTS - 1) - 1
    texts = run.captions.tokenizer.batch_decode(run.captions.ids.flatten(0, 1))
    assert not any("thing 3 " in text for text in texts)


def test_a_missing_caption_is_not_drawn_and_a_long_one_is_counted(data, recipe):
    dataset = read_dataset(recipe)
    captions = read_captions(dataset, recipe)
    assert captions.cut == 0
    bare = dataset.concepts.index("c05")
    generator = torch.Generator().manual_seed(0)
    drawn = draw_captions(captions, torch.tensor([bare] * 50), 2, generator)
    assert torch.equal(drawn, captions.ids[bare, 0].expand(2, 50, -1))
    named = torch.tensor([number for number in range(CONCEPTS - 1) if number != bare])
    first, second = draw_captions(captions, named, 2, generator)
    assert not (first == second).all(1).any(), "languages differ"
    short = read_captions(dataset, dataclasses.replace(recipe, text_length=4))
    assert short.cut == int(short.named.sum())
    end = short.tokenizer.eos_token_id
    assert bool((short.ids[short.named] == end).any(1).all()), "the end stays"


def test_retrieval_of_a_model_that_is_right_and_of_one_that_is_wrong(run):
    data, captions = run.dataset, run.captions

    class Known:
        def get_image_features(self, pixel_values):
            places = [
                int(
                    (normalize(data.validation.pixels.float() / 255) == one)
                    .flatten(1)
                    .all(1)
                    .int()
                    .argmax()
                )
                for one in pixel_values
            ]
            return Found(self.vectors(data.validation.concept[places]))

        def get_text_features(self, input_ids):
            flat = captions.ids.flatten(0, 1)
            places = [int((flat == one).all(1).int().argmax()) // 2 for one in input_ids]
            return Found(self.vectors(torch.tensor(places)))

        def vectors(self, concepts):
            return torch.eye(len(data.concepts))[concepts]

    class Mistaken(Known):
        """Sees every concept as the next one."""

        def get_image_features(self, pixel_values):
            return Found(super().get_image_features(pixel_values).pooler_output.roll(1, 1))

    @dataclasses.dataclass
    class Found:
        pooler_output: torch.Tensor

    scores = score_retrieval(Known(), data, captions, ["en", "hi"])
    assert scores["retrieval_top1"] == scores["retrieval_top1_hi"] == 1
    wrong = score_retrieval(Mistaken(), data, captions, ["en", "hi"])
    assert wrong["retrieval_top1_en"] == 0
    assert (
        set(scores)
        == set(wrong)
        == {f"retrieval_top{n}{lang}" for n in (1, 5) for lang in ("", "_en", "_hi")}
    )


# ------------------------------------------------------------------------------ runs


def test_the_loss_falls_and_the_folder_is_complete(trained, recipe):
    assert sorted(file.name for file in trained.iterdir()) == [
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
    ]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["log"][-1]["contrastive"] < metrics["log"][0]["contrastive"]
    assert {"linear_top1", "linear_category", "centroid_top1"} <= set(metrics["stored_weights"])
    assert {"retrieval_top1", "retrieval_top5_hi"} <= set(metrics["retrieval_before_storing"])
    assert (metrics["concepts"], metrics["held_out_concepts"]) == (CONCEPTS - 1, 1)
    assert metrics["loss"] == recipe.loss
    tower = AutoModel.from_pretrained(trained)
    assert type(tower) is TOWERS[recipe.loss]
    assert tower.dtype == torch.float16
    processor = AutoImageProcessor.from_pretrained(trained, backend="pil")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]
    values = read_mapping(trained / "recipe.yaml")
    assert values.pop("kind") == "contrastive"
    assert from_mapping(ContrastiveRecipe, values, "recipe.yaml") == recipe


def test_the_stream_is_scaled_and_nothing_else_changes(run):
    tower, pixels = run.averaged().vision_model, run.dataset.train.pixels
    before, output = read_features(tower, pixels), tower(normalize(pixels.float() / 255))
    assert before.shape == (len(pixels), 16, 32), "without a class token"
    scale_stream(tower, before, 3.0)
    after = read_features(tower, pixels)
    centred = after - after.mean((0, 1))
    assert float(centred.std()) == pytest.approx(3.0, rel=1e-3)
    again = tower(normalize(pixels.float() / 255))
    torch.testing.assert_close(again.pooler_output, output.pooler_output, atol=2e-3, rtol=2e-3)


def test_a_broken_off_run_continues_to_the_same_weights(recipe, trained, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    losses = ContrastiveRun.losses

    def cut(run):
        if run.step == 13:
            raise Cut
        return losses(run)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveRun, "losses", cut)
        with pytest.raises(Cut):
            train_contrastive(recipe, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["training_state.safetensors"]
    other = "softmax" if recipe.loss == "sigmoid" else "sigmoid"
    with pytest.raises(ValueError, match="expected the state of this recipe and dataset"):
        train_contrastive(dataclasses.replace(recipe, loss=other), tmp_path)
    train_contrastive(recipe, tmp_path)
    first, second = weights(trained), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_maya_on_the_tower_trains_two_steps(trained, recipe, tmp_path):
    values = make_recipe(tmp_path)
    values["model"] |= {
        "vision_tower": str(trained),
        "vision_feature_select_strategy": "default" if recipe.loss == "softmax" else "full",
    }
    values["stages"] = values["stages"][:1]
    values["stages"][0]["args"] |= {"max_steps": 2}
    folder = Path(train(str(write(values, tmp_path / "recipe.yaml"))))
    assert json.loads((folder / "config.json").read_text())["image_seq_length"] == 16
    assert len(logged(folder)) == 2
    tower = weights(trained)
    with safe_open(folder / "model.safetensors", "pt") as stored:
        name = next(n for n in stored.keys() if n.endswith("layers.0.mlp.fc1.weight"))  # noqa: SIM118
        own = tower[name[name.index("encoder.") :]]
        torch.testing.assert_close(stored.get_tensor(name).float(), own)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, r"x.yaml: loss: expected .*sigmoid.*softmax.*found .*hinge"),
        ({"batch_size": 1}, "x.yaml: .*batch_size: expected .*2.*, found 1"),
        ({"text_length": 2}, "x.yaml: .*text_length: expected .*3.*, found 2"),
        ({"num_hidden_layers": 1}, "x.yaml: .*num_hidden_layers: expected .*2.*, found 1"),
        ({"hidden_size": 33}, "x.yaml: .*hidden_size: expected a multiple of .*2, found 33"),
        ({"patch_size": 32}, "x.yaml: .*image_size: expected at least patch_size"),
        ({"languages": []}, "x.yaml: .*languages: expected at least one name"),
        ({"validation_styles": ["round"]}, "x.yaml: .*validation_styles: expected other styles"),
        ({"code_layers": 2}, "x.yaml: code_layers: .*unknown|x.yaml: .*code_layers"),
    ],
)
def test_bad_values_are_named_in_one_line(data, changes, message):
    values = dataclasses.asdict(tiny(data, "sigmoid")) | changes
    with pytest.raises(ValueError, match=message) as told:
        from_mapping(ContrastiveRecipe, values, "x.yaml")
    assert "\n" not in str(told.value)


def test_a_batch_larger_than_the_concepts_and_a_vocabulary_too_large_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size: expected at most 11, .* found 12"):
        train_contrastive(tiny(data, "sigmoid", batch_size=12), tmp_path)
    with pytest.raises(ValueError, match="vocab_size: the texts fill only"):
        train_contrastive(tiny(data, "softmax", vocab_size=5000), tmp_path)
    with pytest.raises(FileNotFoundError, match="contrastive recipe: data: expected a folder"):
        train_contrastive(tiny(tmp_path / "none", "softmax"), tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ what ships


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_the_shipped_recipes_are_valid_and_leave_the_test_style_alone(name):
    values = read_mapping(RECIPES / "bases" / f"apart_{name}.yaml")
    assert values.pop("kind") == "contrastive"
    shipped = from_mapping(ContrastiveRecipe, values, name)
    assert "twemoji" not in [*shipped.train_styles, *shipped.validation_styles]
    assert shipped.loss == {"siglip": "sigmoid", "clip": "softmax"}[name]


def test_the_scale_stays_at_a_hundred_or_less(run):
    with torch.no_grad():
        run.model.logit_scale.fill_(9.0)
    run.losses()
    assert float(run.model.logit_scale.detach()) == pytest.approx(math.log(100))


@pytest.mark.parametrize(("name", "loss"), [("siglip", "sigmoid"), ("clip", "softmax")])
def test_the_shipped_towers_load_and_are_those_of_their_recipes(name, loss):
    folder = APART / name
    tower, report = TOWERS[loss].from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert tower.num_parameters() == metrics["parameters"]
    assert metrics["loss"] == loss
    assert (metrics["concepts"], metrics["held_out_concepts"]) == (1300, 144)
    trained_by = read_mapping(folder / "recipe.yaml")
    shipped = read_mapping(RECIPES / "bases" / f"apart_{name}.yaml")
    assert {key: trained_by[key] for key in shipped} == shipped


def test_the_shipped_bases_have_not_met_and_are_small():
    language_model = json.loads((APART / "language_model" / "metrics.json").read_text())
    own = language_model["recipe"]
    shipped = read_mapping(RECIPES / "bases" / "apart_language_model.yaml")
    del shipped["kind"]
    assert {name: own[name] for name in shipped} == shipped
    assert (own["contexts"].get("soft", 0), own["code_loss"], own["match_loss"]) == (0, 0, 0)
    assert language_model["started_from"] is None
    assert not any("soft" in probe for probe in language_model["scores"])
    assert sum(file.stat().st_size for file in APART.rglob("*")) < 9_000_000
    recipe = load_recipe(RECIPES / "mini-apart.yaml")
    for base in (recipe.model.vision_tower, recipe.model.language_model):
        assert base is not None
        assert Path(base).resolve().parent == APART.resolve()
