"""Shared prefixes: loss and every gradient equal those of separate rows.

The comparison is in float64, on tiny models, for every layout. Typical mistakes serve as negative controls:
the gradients must detect each. On a CPU a substitute replaces flex's kernel (cpu_kernels.py);
test_attention.py compares the real kernel on a GPU.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers.models.cohere import modeling_cohere

from maya_vlm.training.batches.packing import Encoded, lay_out, pack_group, shared_prefix
from maya_vlm.training.model.attention import block_mask, dense_mask, row_plan, set_attention
from maya_vlm.training.run.trainer import add_pair_loss
from tests.helpers.tiny import (
    IMAGE_TOKEN,
    PROJECTORS,
    VOCAB,
    enable_checkpointing,
    tiny_images,
    tiny_model,
)

from ..model.cpu_kernels import use_cpu_kernels

LANGUAGES = 3
LAYOUTS = ["segments", "flex", "dense"]
TOLERANCE = 1e-12


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Make Cohere compute norms and rotations in float64 too; it always uses float32."""

    def norm(self, hidden):
        mean = hidden.mean(-1, keepdim=True)
        variance = (hidden - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden - mean) * torch.rsqrt(variance + self.variance_epsilon)

    def rotate(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.double().unsqueeze(unsqueeze_dim), sin.double().unsqueeze(unsqueeze_dim)
        half = modeling_cohere.rotate_half
        return q * cos + half(q) * sin, k * cos + half(k) * sin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_cohere.CohereLayerNorm, "forward", norm)
        patch.setattr(modeling_cohere, "apply_rotary_pos_emb", rotate)
        yield


def conversations(
    count: int, images: int, seed: int, prompt: int = 0, tokens: int = 9, prefix: int = 2
) -> list[Encoded]:
    """Return `count` conversations about one image: the same start and image, different questions and answers."""
    random = np.random.default_rng(seed)
    start = [5, *random.integers(IMAGE_TOKEN + 1, VOCAB, prefix - 1)] + [IMAGE_TOKEN] * tokens
    start += list(random.integers(IMAGE_TOKEN + 1, VOCAB, prompt))
    result = []
    for i in range(count):
        question = list(random.integers(IMAGE_TOKEN + 1, VOCAB, random.integers(0, 4)))
        answer = list(random.integers(IMAGE_TOKEN + 1, VOCAB, random.integers(1, 7)))
        ids = np.array(start + question + answer, np.int32)
        trained = np.zeros(len(ids), bool)
        trained[-len(answer) :] = True
        result.append(Encoded(f"{seed}-{i}", i % LANGUAGES, ids, trained, 2 * len(answer), (0,), 0))
    return result


def groups(tokens: int = 9) -> list[list[Encoded]]:
    """Return groups of four, two and one conversation, with and without a common prompt."""
    return [
        conversations(4, 1, 1, tokens=tokens),
        conversations(2, 1, 2, prompt=3, tokens=tokens),
        conversations(1, 1, 3, tokens=tokens),
    ]


def run(model, batch: dict, pixels: torch.Tensor | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss over pairs and the gradient of every parameter."""
    model.zero_grad()
    inputs = {k: v for k, v in batch.items() if k not in ("language", "text_bytes", "padding")}
    total, losses, _ = model(**inputs, pixel_values=pixels)
    loss = total / len(losses)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def separate(model, sample: list[Encoded], pixels: torch.Tensor) -> tuple[float, dict]:
    """Return the reference: the model's own forward with its shifted labels, one row per conversation."""
    model.zero_grad()
    total, count = torch.zeros((), dtype=pixels.dtype), 0
    for number, group in enumerate(sample):
        for item in group:
            ids = torch.from_numpy(item.ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(item.trained)[None], ids, -100)
            out = model(input_ids=ids, pixel_values=pixels[number : number + 1])
            logits, target = out.logits[0, :-1], labels[0, 1:]
            keep = target != -100
            total = total + torch.nn.functional.cross_entropy(
                logits[keep].double(), target[keep], reduction="sum"
            )
            count += int(keep.sum())
    loss = total / count
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest relative gradient error of any tensor."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / a[n].norm().clamp(min=1e-30)) for n in a)


def make(layout: str, decoder: str = "cohere", **fields):
    model = tiny_model(decoder, text={"attention_dropout": 0.0}, **fields).double()
    model.train()
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    set_attention(model.model.language_model, layout)
    add_pair_loss(model)
    return model


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    use_cpu_kernels(monkeypatch)
    with double_precision():
        yield


@pytest.mark.parametrize("kind", [kind for kind in PROJECTORS if kind != "mlp"])
def test_shared_equals_separate_with_another_projector(kind):
    model = make("segments", **PROJECTORS[kind])
    sample = groups(model.config.image_seq_length)
    pixels = tiny_images(len(sample)).double()
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    loss, grads = run(model, lay_out(packed, "segments", LANGUAGES, pad_token=0), pixels)
    set_attention(model.model.language_model, "dense")
    expected, expected_grads = separate(model, sample, pixels)
    assert any("multi_modal_projector" in name for name in grads)
    assert abs(loss - expected) < TOLERANCE
    assert difference(expected_grads, grads) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trained", ["projector", "all", "all, checkpointed"])
def test_shared_equals_separate(layout, trained):
    sample = groups()
    pixels = tiny_images(len(sample)).double()
    model = make(layout)
    if "checkpointed" in trained:
        enable_checkpointing(model, use_reentrant=False)
    if trained == "projector":
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    assert [len(p.branches) for p in packed] == [4, 2, 0]
    batch = lay_out(packed, layout, LANGUAGES, pad_token=0)
    loss, grads = run(model, batch, pixels)
    set_attention(model.model.language_model, "dense")
    expected, expected_grads = separate(model, sample, pixels)
    assert abs(loss - expected) < TOLERANCE
    assert difference(expected_grads, grads) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_to_share(layout):
    """Check packed rows of single conversations, which follow the rule of ordinary packing."""
    sample = [conversations(1, 1, seed) for seed in range(3)]
    pixels = tiny_images(len(sample)).double()
    model = make(layout)
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    batch = lay_out(packed, layout, LANGUAGES, pad_token=0)
    assert "copies" not in batch.get("attention_plan", {})
    loss, grads = run(model, batch, pixels)
    set_attention(model.model.language_model, "dense")
    expected, expected_grads = separate(model, sample, pixels)
    assert abs(loss - expected) < TOLERANCE
    assert difference(expected_grads, grads) < TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_conversation_is_a_plain_causal_row(layout):
    sample = [conversations(1, 1, 3)]
    batch = lay_out(pack_group(sample[0], IMAGE_TOKEN), layout, LANGUAGES, pad_token=0)
    length = len(sample[0][0].ids)
    assert batch["input_ids"].shape == (1, length)
    assert batch["position_ids"].tolist() == [list(range(length))]
    if layout == "dense":
        assert torch.equal(batch["attention_mask"][0, 0], torch.ones(length, length).tril().bool())
    else:
        assert batch["attention_plan"] == {"longest": length}
    pixels = tiny_images(1).double()
    model = make(layout)
    asked = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        asked.append((query.shape[2] == length, attn_mask is None and options["is_causal"]))
        return fused(query, key, value, attn_mask=attn_mask, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        loss, grads = run(model, batch, pixels)
    causal = [is_causal for decoder, is_causal in asked if decoder]
    assert causal == [layout != "dense"] * model.config.text_config.num_hidden_layers
    expected, expected_grads = separate(model, sample, pixels)
    assert abs(loss - expected) < TOLERANCE
    assert difference(expected_grads, grads) < TOLERANCE


def causal(batch, layout):
    """Let conversations attend to earlier conversations of their row."""
    if layout == "segments":
        batch["attention_plan"] = row_plan([(batch["input_ids"].shape[1], [])], layout)
        return
    if layout == "flex":
        nobody = torch.zeros_like(batch["input_ids"])
        batch["attention_mask"] = block_mask(nobody, nobody)
        batch["attention_plan"] = {"longest": 0}
        return
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(length, length).tril().bool()[None, None]
    batch["attention_mask"] = batch["attention_mask"].repeat(len(batch["input_ids"]), 1, 1, 1)


def running_positions(batch, layout):
    """Continue positions instead of restarting them."""
    rows, length = batch["input_ids"].shape
    batch["position_ids"] = torch.arange(length).repeat(rows, 1)


def no_mask(batch, layout):
    """Pass no mask: transformers takes the jumps of positions for packed documents and cuts off the prefix."""
    batch["attention_mask"] = None
    batch.pop("attention_plan", None)


def all_ones(batch, layout):
    """Pass a two-dimensional mask of ones."""
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch.pop("attention_plan", None)


def branches_without_prefix(batch, layout):
    """Make every branch a separate document, which does not see the image."""
    if layout == "segments":
        starts = batch["position_ids"][0].diff(prepend=batch["position_ids"][0, :1]) != 1
        documents = starts.cumsum(0).unique(return_counts=True)[1].tolist()
        batch["attention_plan"] = row_plan([(length, []) for length in documents], layout)
    elif layout == "flex":
        batch["attention_plan"]["group"] = (
            100 * batch["attention_plan"]["group"] + batch["attention_plan"]["branch"]
        )
    else:
        starts = batch["position_ids"].diff(dim=1, prepend=batch["position_ids"][:, :1]) != 1
        document = starts.cumsum(1)
        batch["attention_mask"] = dense_mask(document, document + 1)


def shifted_labels(batch, layout):
    """Use only labels that ordinary shifting can express: predictions of branch starts
    are lost."""
    targets, sources = [], []
    width = batch["input_ids"].shape[1]
    positions = batch["position_ids"].flatten()
    keep = []
    for i, source in enumerate(batch["logit_positions"].tolist()):
        following = source + 1
        same_row = following // width == source // width
        inside = same_row and positions[following] == positions[source] + 1
        token = batch["input_ids"].flatten()[following] if same_row else -1
        keep.append(bool(inside and token == batch["labels"][i]))
    keep = torch.tensor(keep)
    assert 0 < (~keep).sum() < len(keep), (targets, sources)
    batch["logit_positions"], batch["labels"] = (
        batch["logit_positions"][keep],
        batch["labels"][keep],
    )


@pytest.mark.parametrize(
    "mistake",
    [causal, running_positions, no_mask, all_ones, shifted_labels, branches_without_prefix],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("layout", ["dense", "segments", "flex"])
def test_mistakes_are_seen(layout, mistake):
    sample = [conversations(4, 1, 1), conversations(3, 1, 2)]
    # Answers that begin directly after the prefix, which shifted labels lose.
    for group in sample:
        for item in group:
            item.trained[11:] = True
    pixels = tiny_images(len(sample)).double()
    model = make(layout)
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    batch = lay_out(packed, layout, LANGUAGES, pad_token=0)
    _, right = run(model, batch, pixels)
    set_attention(model.model.language_model, "dense")
    _, expected = separate(model, sample, pixels)
    set_attention(model.model.language_model, layout)
    assert difference(expected, right) < TOLERANCE
    mistake(batch, layout)
    _, wrong = run(model, batch, pixels)
    assert difference(expected, wrong) > 1e-2


@pytest.mark.parametrize("layout", ["segments", "flex"])
@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_other_decoders(decoder, layout):
    sample = groups()
    pixels = tiny_images(len(sample))
    model = tiny_model(decoder).train()
    model.model.vision_tower.requires_grad_(False)
    set_attention(model.model.language_model, layout)
    add_pair_loss(model)
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    loss, grads = run(model, lay_out(packed, layout, LANGUAGES, 0), pixels)
    set_attention(model.model.language_model, "dense")
    expected, expected_grads = separate(model, sample, pixels)
    assert abs(loss - expected) < 1e-5
    assert difference(expected_grads, grads) < 1e-4


@pytest.mark.parametrize("layout", ["segments", "flex"])
def test_short_attention_window_is_refused(layout):
    sample = groups()
    model = tiny_model("cohere2").train()
    set_attention(model.model.language_model, layout)
    add_pair_loss(model)
    packed = [p for g in sample for p in pack_group(g, IMAGE_TOKEN)]
    with pytest.raises(
        ValueError,
        match="expected conversations of at most 8 tokens, the decoder's attention window",
    ):
        run(model, lay_out(packed, layout, LANGUAGES, 0), tiny_images(len(sample)))


def test_prefix_never_reaches_a_trained_token():
    first, second = conversations(2, 1, 5)
    ids = np.array([5, 8, *[IMAGE_TOKEN] * 9, 20, 21, 22], np.int32)
    trained = np.zeros(len(ids), bool)
    trained[11:] = True
    same = [
        Encoded("a", 0, ids, trained, 3, (0,), 0),
        Encoded("b", 1, ids.copy(), trained.copy(), 3, (0,), 0),
    ]
    assert shared_prefix(same, IMAGE_TOKEN) == 11
    assert shared_prefix([first, second], IMAGE_TOKEN) == 11
    assert shared_prefix([first], IMAGE_TOKEN) == len(first.ids)


def test_no_common_image_is_not_shared():
    ids = np.array([5, 8, *[IMAGE_TOKEN] * 9, 20, 21], np.int32)
    other = np.array([5, 9, *[IMAGE_TOKEN] * 9, 20, 21], np.int32)
    trained = np.zeros(len(ids), bool)
    trained[-1] = True
    group = [Encoded("a", 0, ids, trained, 1, (0,), 0), Encoded("b", 0, other, trained, 1, (0,), 0)]
    assert shared_prefix(group, IMAGE_TOKEN) == 0
    assert [len(p.branches) for p in pack_group(group, IMAGE_TOKEN)] == [0, 0]


def test_dense_mask_follows_the_two_ids():
    group = torch.tensor([[0, 0, 0, 0, 1, 1]])
    branch = torch.tensor([[0, 1, 2, 2, 0, -1]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert dense_mask(group, branch)[0, 0].int().tolist() == expected
