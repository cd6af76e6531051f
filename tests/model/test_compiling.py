"""Compiled layers compute the same as others, in few graphs, for rows of any length."""

import random

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from maya_vlm.training.batches.packing import Encoded, lay_out, pack_group
from maya_vlm.training.model.attention import set_attention
from maya_vlm.training.model.compiling import compile_layers
from maya_vlm.training.run.train import train
from maya_vlm.training.run.trainer import add_pair_loss
from tests.helpers.tiny import IMAGE_TOKEN, enable_checkpointing, tiny_images, tiny_model

from ..run.tiny_run import logged, make_recipe, write
from .cpu_kernels import use_cpu_kernels


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def rows(count: int, layout: str) -> list[tuple[dict, torch.Tensor]]:
    """Packed rows of many forms: one to five groups of one to nine conversations each."""
    drawn = random.Random(1)
    result = []
    for _ in range(count):
        packed = []
        groups = drawn.choice([1, 1, 2, 5])
        for _ in range(groups):
            start = [5] + [IMAGE_TOKEN] * 9 + [drawn.randint(9, 60)] * drawn.randint(0, 8)
            encoded = []
            for i in range(drawn.choice([1, 1, 2, 3, 9])):
                answer = [drawn.randint(9, 60) for _ in range(drawn.randint(2, 12))]
                ids = np.array(start + answer, np.int32)
                trained = np.arange(len(ids)) >= len(start)
                encoded.append(Encoded(str(i), 0, ids, trained, 1, (0,), 0))
            packed += pack_group(encoded, IMAGE_TOKEN)
        result.append((lay_out(packed, layout, 1, pad_token=0), tiny_images(groups)))
    return result


def step(model, batch, pixels):
    model.zero_grad()
    inputs = {k: v for k, v in batch.items() if k not in ("language", "text_bytes", "padding")}
    total, *_ = model(**inputs, pixel_values=pixels)
    (total / len(batch["labels"])).backward()
    return total.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def make(layout: str, checkpointing: bool):
    model = tiny_model("cohere", text={"num_hidden_layers": 3}).train()
    model.model.vision_tower.requires_grad_(False)
    set_attention(model.model.language_model, layout)
    add_pair_loss(model)
    if checkpointing:
        enable_checkpointing(model, use_reentrant=False)
    return model


@pytest.mark.parametrize(
    ("layout", "backend", "checkpointing"),
    [
        ("segments", "eager", False),
        pytest.param("segments", "eager", True, marks=pytest.mark.slow),
        pytest.param("flex", "eager", False, marks=pytest.mark.slow),
        pytest.param("segments", "inductor", False, marks=pytest.mark.slow),
        pytest.param("flex", "aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_equal_and_few_graphs(layout, backend, checkpointing, monkeypatch):
    use_cpu_kernels(monkeypatch)
    batches = rows(8, layout)
    assert len({batch["input_ids"].shape[1] for batch, _ in batches}) > 5
    model = make(layout, checkpointing)
    expected = [step(model, *batch) for batch in batches]
    counter = CompileCounterWithBackend(backend)
    for layer in model.model.language_model.layers:
        layer.compile(backend=counter, dynamic=True, fullgraph=True)
    found = [step(model, *batch) for batch in batches]
    for (loss, gradients), (right, right_gradients) in zip(found, expected, strict=True):
        assert loss == pytest.approx(right, rel=1e-5)
        for a, b in zip(gradients, right_gradients, strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm() + 1e-9
    # One graph serves all three layers, for each form of the plan.
    assert 0 < counter.frame_count <= 8
    assert not counters["graph_break"]


def test_what_the_recipe_asks_for():
    decoder = make("segments", False).model.language_model
    compile_layers(decoder, {"torch_compile": False, "max_steps": 3})
    assert all(layer._compiled_call_impl is None for layer in decoder.layers)
    names = list(decoder.state_dict())
    for asked in ({"torch_compile": True}, {"torch_compile_mode": "default"}):
        decoder = make("segments", False).model.language_model
        compile_layers(decoder, asked)
        assert all(layer._compiled_call_impl is not None for layer in decoder.layers)
    assert list(decoder.state_dict()) == names
    with pytest.raises(
        ValueError, match=r"torch_compile_backend: expected one of .*, found 'fast'"
    ):
        compile_layers(decoder, {"torch_compile_backend": "fast"})
    with pytest.raises(ValueError, match=r"torch_compile_mode: expected one of .*, found 'fast'"):
        compile_layers(decoder, {"torch_compile_mode": "fast"})
    with pytest.raises(ValueError, match=r"'max-autotune-no-cudagraphs' .*: remove tf32, or"):
        compile_layers(decoder, {"torch_compile_mode": "max-autotune-no-cudagraphs", "tf32": True})
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(
            ValueError, match=f"'{mode}', which records a CUDA graph for every length"
        ):
            compile_layers(decoder, {"torch_compile_mode": mode})


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_is_the_same_run(tmp_path, backend):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    logs = []
    for name, value in (("plain", {}), ("compiled", {"torch_compile_backend": backend})):
        recipe["stages"][0]["args"] = {"max_steps": 3, "logging_steps": 1, **value}
        path = write(recipe, tmp_path / f"{name}.yaml")
        folder = train(str(path), output_dir=str(tmp_path / name))
        logs.append(logged(folder))
        assert (folder / "model.safetensors").is_file()
    plain, compiled = logs
    assert len(plain) == 3
    for a, b in zip(plain, compiled, strict=True):
        assert a["mean_loss"] == pytest.approx(b["mean_loss"], abs=1e-4)
    assert counters["stats"]["unique_graphs"] > 0
