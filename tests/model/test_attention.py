"""All forms of the attention rule let a token see the same tokens; a run uses the one its recipe names.

Kernels that need a GPU are compared with the dense mask here, in tests marked `gpu`. On a CPU,
test_equality.py runs the package's part of them over replacements.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

import maya_vlm.training.model.attention
from maya_vlm.training.model.attention import (
    block_mask,
    choose_attention,
    dense_mask,
    flex_attention,
    flex_inputs,
    row_plan,
    segment_attention,
)
from maya_vlm.training.run.train import train
from tests.helpers.tiny import DECODERS

from ..run.tiny_run import logged, make_recipe, write
from .cpu_kernels import use_cpu_kernels

gpu = pytest.mark.gpu
NO_GPU = not torch.cuda.is_available()


def drawn_rows(count: int, most: int = 12) -> list[list[tuple[int, list[int]]]]:
    """Rows of groups, (prefix length, branch lengths), from one conversation to many groups."""
    drawn = random.Random(0)
    rows: list[list[tuple[int, list[int]]]] = [[(7, [])], [(1, [1])], [(5, []), (3, [])]]
    while len(rows) < count:
        rows.append(
            [
                (
                    drawn.randint(1, most),
                    [drawn.randint(1, most) for _ in range(drawn.choice([0, 1, 3, 9]))],
                )
                for _ in range(drawn.randint(1, 5))
            ]
        )
    return rows


def ids(groups: list[tuple[int, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `group` and `branch` of a row, token by token."""
    group, branch = [], []
    for g, (prefix, branches) in enumerate(groups):
        for b, length in enumerate([prefix, *branches]):
            group += [g] * length
            branch += [b] * length
    return torch.tensor([group]), torch.tensor([branch])


def attend(layout: str, groups, query, key, value):
    """Return the output of the layout's attention function for a row, (1, N, heads, dim)."""
    function = {
        "segments": segment_attention,
        "flex": flex_attention,
    }[layout]
    plan = row_plan(groups, layout)
    plan = {k: _to(v, query.device) for k, v in plan.items()}
    inputs = (
        flex_inputs(plan) if "group" in plan else {"attention_mask": None, "attention_plan": plan}
    )
    shared = query.shape[1] // key.shape[1]
    module = SimpleNamespace(training=True, is_causal=True, num_key_value_groups=shared)
    return function(module, query, key, value, scaling=0.3, **inputs)[0]


def _to(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [{k: v.to(device) for k, v in block.items()} for block in value]
    return value


def compare(layout: str, groups, device: str, dtype: torch.dtype, dim: int = 8) -> list[float]:
    """Return relative errors of output and gradients against the dense mask in float64, alternating with
    the errors of the dense mask itself in `dtype`: [tested, dense, tested, dense, ...]."""
    torch.manual_seed(0)
    length = sum(prefix + sum(branches) for prefix, branches in groups)
    query = torch.randn(1, 4, length, dim, dtype=torch.float64)
    key, value = (torch.randn(1, 2, length, dim, dtype=torch.float64) for _ in range(2))
    outer = torch.randn(1, length, 4, dim, dtype=torch.float64).to(device)
    mask = dense_mask(*ids(groups)).to(device)

    def results(kind: torch.dtype, how) -> list[torch.Tensor]:
        inputs = [x.to(device, kind).requires_grad_() for x in (query, key, value)]
        out = how(*inputs)
        gradients = torch.autograd.grad((out * outer.to(kind)).sum(), inputs)
        return [x.detach().double() for x in (out, *gradients)]

    def dense(q, k, v):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
        return out.transpose(1, 2)

    right = results(torch.float64, dense)
    ours = results(dtype, lambda *x: attend(layout, groups, *x))
    its = results(dtype, dense)
    errors = []
    for a, b, r in zip(ours, its, right, strict=True):
        errors += [float((a - r).norm() / r.norm()), float((b - r).norm() / r.norm())]
    return errors


@pytest.mark.parametrize("layout", ["segments", "flex"])
def test_every_plan_says_what_the_mask_says(layout, monkeypatch):
    use_cpu_kernels(monkeypatch)
    for groups in drawn_rows(12):
        assert max(compare(layout, groups, "cpu", torch.float64)[::2]) < 1e-13, groups


def test_the_block_mask_is_the_dense_mask():
    for groups in [*drawn_rows(6, most=60), [(256, [30, 60, 45]), (300, [20] * 8), (130, [])]]:
        group, branch = ids(groups)
        expected = dense_mask(group, branch)
        length = group.shape[1]
        made = block_mask(group, branch)
        assert torch.equal(create_mask(made.mask_mod, 1, 1, length, length, "cpu"), expected)
        # Skipped blocks of 128 contain no visible pair.
        side = made.to_dense().shape[-1] * 128
        whole = torch.zeros(side, side, dtype=torch.bool)
        whole[:length, :length] = expected[0, 0]
        blocks = whole.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        assert torch.equal(made.to_dense()[0, 0].bool(), blocks.any(3).any(1))


@pytest.mark.slow
def test_flex_compiled(monkeypatch):
    """Run torch's CPU kernel of flex attention, forward only. For rows shorter than a block of 128 it is
    wrong in torch 2.13, with any mask. No run uses it, because it has no backward pass."""
    groups = [(140, [30, 17]), (60, [])]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 247, 16) for heads in (4, 2, 2))
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=dense_mask(*ids(groups)), scale=0.3, enable_gqa=True
    )
    with torch.no_grad():
        found = attend("flex", groups, query, key, value)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


ROWS = {
    "groups": [(257, [30, 17, 60, 1, 45, 22, 19, 33]), (300, [12, 90]), (64, [])],
    "nothing shared": [(150, []), (31, []), (280, [])],
    "one conversation": [(333, [])],
    "short": [(9, [3, 4])],
    "under 128": [(60, [20, 17])],
}


@gpu
@pytest.mark.skipif(NO_GPU, reason="trains on a CUDA GPU only: `pytest -m gpu`")
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("segments", torch.float32),
        ("segments", torch.bfloat16),
        ("flex", torch.float32),
        ("flex", torch.bfloat16),
    ],
)
def test_on_a_gpu(layout, dtype, row):
    """Output and gradients are as close to float64 as those of the dense mask in the same precision."""
    errors = compare(layout, ROWS[row], "cuda", dtype, dim=64)
    floor = 2e-5 if dtype == torch.float32 else 2e-2
    for ours, its in zip(errors[::2], errors[1::2], strict=True):
        assert ours < 2 * its + floor


@gpu
@pytest.mark.skipif(NO_GPU, reason="trains on a CUDA GPU only: `pytest -m gpu`")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_gpu(tmp_path, monkeypatch, compiled):
    """With gradient checkpointing, flex equals segments within bfloat16."""
    cohere, fields = DECODERS["cohere"]
    monkeypatch.setitem(DECODERS, "cohere", (cohere, {**fields, "hidden_size": 64, "head_dim": 16}))
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["args"] |= {"gradient_checkpointing": True, "torch_compile": compiled}
    logs = []
    for name in ("segments", "flex"):
        recipe["model"]["attention"] = name
        path = write(recipe, tmp_path / f"{name}.yaml")
        folder = train(str(path), output_dir=str(tmp_path / name))
        logs.append(logged(folder))
    for one, two in zip(*logs, strict=True):
        assert one["mean_loss"] == pytest.approx(two["mean_loss"], rel=2e-2)


# ------------------------------------------------------------------------------ choosing a backend


def decoder(dropout: float = 0.0, size: int = 32):
    return SimpleNamespace(config=SimpleNamespace(attention_dropout=dropout, head_dim=size))


def test_auto_follows_the_device(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "triton")
    monkeypatch.setattr("shutil.which", lambda name: name == "clang")
    assert choose_attention("auto", decoder(), "cuda") == "flex"
    assert choose_attention("auto", decoder(), "cpu") == "segments"
    assert choose_attention("auto", decoder(0.1), "cuda") == "segments"
    assert choose_attention("auto", decoder(size=8), "cuda") == "segments"
    assert choose_attention("dense", decoder(0.1), "cpu") == "dense"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert choose_attention("auto", decoder(), "cuda") == "segments"
    with pytest.raises(ValueError, match=r"flex is compiled by .* C compiler: gcc, clang or \$CC"):
        choose_attention("flex", decoder(), "cuda")
    monkeypatch.setenv("CC", "/opt/cc")
    assert choose_attention("auto", decoder(), "cuda") == "flex"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="flex is compiled by Triton, which is not installed"):
        choose_attention("flex", decoder(), "cuda")


@pytest.mark.parametrize(
    ("wanted", "decoder", "device", "message"),
    [
        ("flex", decoder(), "cpu", "flex needs a CUDA GPU, but the run is on cpu: use segments"),
        ("flex", decoder(0.1), "cuda", "flex has no dropout, but the decoder's .* is 0.1"),
        ("flex", decoder(size=8), "cuda", "flex needs attention heads of size 16 or more, .* 8"),
    ],
)
def test_what_cannot_be_is_refused(wanted, decoder, device, message):
    with pytest.raises(ValueError, match=f"model.attention: {message}"):
        choose_attention(wanted, decoder, device)


def test_the_recipe_names_it(tmp_path, monkeypatch):
    """The dense mask trains like segments; the decoder gets a plan only if its backend needs one."""
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["args"]["max_steps"] = 2
    recipe["model"]["attention"] = "flex"
    with pytest.raises(ValueError, match=r"model.attention: flex needs a CUDA GPU"):
        train(str(write(recipe, tmp_path / "flex.yaml")), output_dir=str(tmp_path / "flex"))
    for unknown in ("sdpa", "varlen"):  # earlier releases had the second
        recipe["model"]["attention"] = unknown
        message = rf"model.attention: expected .*'segments'.*, found .*{unknown}"
        with pytest.raises(ValueError, match=message):
            train(str(write(recipe, tmp_path / "unknown.yaml")))
    planned = []
    original = maya_vlm.training.model.attention._check_window
    monkeypatch.setattr(
        maya_vlm.training.model.attention,
        "_check_window",
        lambda *a: planned.append(name) or original(*a),
    )
    logs = {}
    for name in ("segments", "dense"):
        recipe["model"]["attention"] = name
        path = write(recipe, tmp_path / f"{name}.yaml")
        folder = train(str(path), output_dir=str(tmp_path / name))
        logs[name] = logged(folder / "pretrain")
    assert set(planned) == {"segments"}
    for one, two in zip(logs["segments"], logs["dense"], strict=True):
        assert one["mean_loss"] == pytest.approx(two["mean_loss"], abs=2e-5)
        assert one["padding_share"] == 0
