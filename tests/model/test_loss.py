"""The tiled head equals the full logits, including gradients, for few positions at a time."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import maya_vlm.training.model.loss
from maya_vlm.training.model.loss import token_losses
from maya_vlm.training.run.trainer import add_pair_loss
from tests.helpers.tiny import tiny_inputs, tiny_model

WIDTH, VOCAB = 12, 50


def parts(positions=37, dtype=torch.float64, bias=False):
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCAB, bias=bias, dtype=dtype)
    hidden = torch.randn(positions, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(0, VOCAB, (positions,))


def whole(hidden, head, labels, scale):
    logits = head(hidden) * scale
    return cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.0625])
@pytest.mark.parametrize("tile", [1, 10 * VOCAB, 37 * VOCAB, 1 << 25])
def test_tiles_equal_the_whole(monkeypatch, tile, scale, bias):
    monkeypatch.setitem(maya_vlm.training.model.loss.TILE, "cpu", tile)
    hidden, head, labels = parts(bias=bias)
    expected, right = whole(hidden, head, labels, scale)
    total, losses, correct = token_losses(hidden, head, labels, scale)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-13, atol=1e-13)
    assert torch.equal(correct, right)
    # A factor applied after the loss scales the gradients too.
    found = gradients(total / 7, hidden, head)
    for a, b in zip(found, gradients(expected.sum() / 7, hidden, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_what_is_frozen_gets_no_gradient(monkeypatch):
    monkeypatch.setitem(maya_vlm.training.model.loss.TILE, "cpu", 10 * VOCAB)
    hidden, head, labels = parts()
    head.requires_grad_(False)
    total, losses, correct = token_losses(hidden, head, labels, 1.0)
    assert not losses.requires_grad
    assert not correct.requires_grad
    total.backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    head.requires_grad_(True)
    with torch.no_grad():
        assert not token_losses(hidden, head, labels, 1.0)[0].requires_grad


def test_nothing_to_predict():
    """A rank without a supervised token still has a loss with a backward pass."""
    hidden, head, labels = parts(positions=0)
    total, losses, correct = token_losses(hidden, head, labels, 1.0)
    assert total == 0
    assert len(losses) == len(correct) == 0
    total.backward()
    assert not head.weight.grad.any()


def test_backward_runs_once():
    hidden, head, labels = parts()
    total, *_ = token_losses(hidden, head, labels, 1.0)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_half_precision_is_as_good_as_autograd(monkeypatch, weights):
    """In bfloat16, by autocast or by weights: as close to float64 as the full logits are."""
    monkeypatch.setitem(maya_vlm.training.model.loss.TILE, "cpu", 10 * VOCAB)
    hidden, head, labels = parts(dtype=weights)
    exact = torch.nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.float64)
    exact.weight.data.copy_(head.weight)
    wide = hidden.detach().double().requires_grad_()
    truth = gradients(whole(wide, exact, labels, 0.5)[0].sum(), wide, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        total, losses, _ = token_losses(hidden, head, labels, 0.5)
        logits = (head(hidden) * 0.5).float()
        ordinary = cross_entropy(logits, labels, reduction="sum")
    assert losses.dtype == torch.float32
    ours = gradients(total, hidden, head)
    theirs = gradients(ordinary, hidden, head)
    for a, b, right in zip(ours, theirs, truth, strict=True):
        assert a.dtype == weights
        assert (a - right).norm() < 1.5 * (b - right).norm() + 1e-3 * right.norm()


def test_only_supervised_positions_are_scored(monkeypatch):
    """With the decoder's logit scale, compared with the loss of the model's own forward."""
    model = tiny_model("cohere").train()
    assert model.config.text_config.logit_scale not in (None, 1.0)
    inputs = tiny_inputs(model.config, images=[1], text_tokens=11)
    inputs.pop("attention_mask", None)
    ids = inputs["input_ids"]
    source = torch.tensor([ids.shape[1] - 4, ids.shape[1] - 2])
    labels = torch.full_like(ids, -100)
    labels[0, source + 1] = ids[0, source + 1]
    expected = model(**inputs, labels=labels).loss
    scored = []
    monkeypatch.setattr(
        maya_vlm.training.model.loss,
        "linear",
        lambda x, *rest: scored.append(len(x)) or torch.nn.functional.linear(x, *rest),
    )
    add_pair_loss(model)
    total, losses, _ = model(**inputs, logit_positions=source, labels=ids[0, source + 1])
    assert scored == [2]
    torch.testing.assert_close(losses.mean(), expected.detach())
    torch.testing.assert_close(total / 2, expected)
