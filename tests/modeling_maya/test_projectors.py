"""Projectors of other kinds than an MLP: what each feature sees, saving, answers, training."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from maya_vlm.training.run.train import train
from modeling_maya import MayaForConditionalGeneration
from modeling_maya.llava_cohere.convert import convert
from processing_maya import MayaProcessor
from tests.helpers.tiny import PROJECTORS, tiny_config, tiny_inputs, tiny_model
from tests.helpers.tiny_maya import tiny_maya
from tests.run.tiny_run import logged, make_recipe, write

KINDS = [kind for kind in PROJECTORS if kind != "mlp"]


def projector(kind, **fields):
    """A projector and random features of two images, of a tower with a grid of 6 x 6 patches."""
    model = tiny_model(**{"vision": {"patch_size": 2}, **PROJECTORS[kind], **fields})
    torch.manual_seed(0)
    return model.model.multi_modal_projector, torch.randn(2, 36, 24)


def test_pixel_shuffle_joins_squares_in_reading_order():
    shuffle, features = projector("pixel_shuffle")
    found = shuffle(features)
    grid = features.reshape(2, 6, 6, 24)
    for number in range(9):
        row, column = 2 * (number // 3), 2 * (number % 3)
        square = grid[:, row : row + 2, column : column + 2].reshape(2, 4 * 24)
        assert torch.allclose(found[:, number], shuffle.layers(square), atol=1e-6)


@pytest.mark.parametrize("length", [1, 4, 9, 36])
def test_pixel_shuffle_by_every_divisor(length):
    shuffle, features = projector("pixel_shuffle", image_seq_length=length)
    assert shuffle(features).shape == (2, length, 32)
    assert shuffle.layers[0].in_features == 36 // length * 24


@pytest.mark.parametrize("length", [1, 9, 40])
def test_queries_read_all_features_in_any_order(length):
    former, features = projector("q_former", image_seq_length=length, projector_num_layers=3)
    found = former(features)
    assert found.shape == (2, length, 32)
    # The tower's features carry their position; a Q-Former adds none.
    order = torch.randperm(36)
    assert torch.allclose(former(features[:, order]), found, atol=1e-5)
    moved = features.clone()
    moved[:, 7, :12] += 1
    assert ((former(moved) - found).abs().amax((0, 2)) > 1e-4).all()
    # Images do not see each other.
    assert torch.allclose(former(features[:1]), found[:1], atol=1e-6)


def test_attention_of_queries_is_torchs():
    former, features = projector("q_former", projector_num_layers=1)
    own = former.layers[0].cross_attn
    theirs = nn.MultiheadAttention(24, own.heads, batch_first=True)
    parts = (own.q_proj, own.k_proj, own.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        biases = [own.q_proj.bias, torch.zeros(24), own.v_proj.bias]
        theirs.in_proj_bias.copy_(torch.cat(biases))
        theirs.out_proj.weight.copy_(own.out_proj.weight)
        theirs.out_proj.bias.copy_(own.out_proj.bias)
    queries = torch.randn(2, 5, 24)
    assert torch.allclose(own(queries, features), theirs(queries, features, features)[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_then_loaded_and_answers(tmp_path, kind):
    model = tiny_model(**PROJECTORS[kind])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert loaded.config.projector_kind == kind
    inputs = tiny_inputs(model.config, images=[1, 2])
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(loaded(**inputs).logits, logits)
        tokens = loaded.generate(**inputs, max_new_tokens=6, do_sample=False, min_new_tokens=6)
        # Each generated token is the best one of a forward over everything before it.
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.long)], 1)
        whole = model(
            input_ids=tokens[:, :-1], attention_mask=mask, pixel_values=inputs["pixel_values"]
        ).logits[:, -6:]
    assert torch.equal(whole.argmax(-1)[:, 0], tokens[:, -6])
    assert (whole.topk(2).indices == tokens[:, -6:, None]).any(-1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_it(tmp_path, kind):
    recipe = make_recipe(tmp_path)
    fields = {
        "pixel_shuffle": {"image_seq_length": 1},
        "q_former": {"image_seq_length": 5},
        "gated_cross_attention": {"cross_attention_interval": 2},
    }
    recipe["model"] |= {"projector_kind": kind, **fields[kind]}
    train(str(write(recipe, tmp_path / "recipe.yaml")))
    folder = tmp_path / "run"
    model = MayaForConditionalGeneration.from_pretrained(folder)
    processor = MayaProcessor.from_pretrained(folder)
    assert model.config.projector_kind == kind
    assert processor.image_seq_length == model.config.image_seq_length
    losses = [line["mean_loss"] for line in logged(folder / "pretrain")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("to", ["llava", "llava_cohere", "gguf"])
def test_other_formats_have_no_such_projector(tmp_path, to):
    model, processor = tiny_maya(projector_kind="q_former")
    model.save_pretrained(tmp_path / "maya")
    processor.save_pretrained(tmp_path / "maya")
    with pytest.raises(ValueError, match=r"projector_kind: expected 'mlp'.*found 'q_former'"):
        convert(tmp_path / "maya", tmp_path / "out", to=to, vision_tower="user/tower", log=print)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"projector_kind": "conv"},
            "projector_kind: expected one of mlp, pixel_shuffle, q_former, gated_cross_attention, found 'conv'",
        ),
        (
            {"projector_kind": "pixel_shuffle", "image_seq_length": 2},
            r"expected one of 9, 1 for .*found 2",
        ),
        (
            {"projector_kind": "pixel_shuffle", "image_seq_length": 0},
            "expected at least 1, found 0",
        ),
        (
            {"projector_kind": "pixel_shuffle", "vision_feature_select_strategy": "default"},
            "projector_kind: expected 'mlp' or 'q_former' .*found 'pixel_shuffle'",
        ),
        ({"projector_kind": "q_former", "image_seq_length": -3}, "expected at least 1, found -3"),
    ],
)
def test_what_no_projector_gives_is_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        tiny_config(**fields)
