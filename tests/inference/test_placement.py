"""Weights are loaded directly on their device, if accelerate is installed, and are in main memory once at most."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference import load as module
from maya_vlm.training.inference.load import open_model
from tests.helpers.tiny_maya import save_tiny_maya, tiny_maya

ROOT = Path(__file__).resolve().parents[2]
# A decoder of about 250 MB.
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
MEASURE = """
import json, sys, torch
from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference.load import open_model
from tests.benchmarks.memory import memory_of

small, large, dtype = sys.argv[1:]
dtype = dtype if dtype == "auto" else getattr(torch, dtype)
# What is imported and kept at the first loading does not count.
open_model(find_model(small), dtype=dtype)
kept = []

def loading():
    network, _ = open_model(find_model(large), dtype=dtype)
    # Weights that are still in their file are not in memory: read all of them.
    assert all(torch.isfinite(p.sum()) for p in network.parameters())
    kept.append(network)

def copying():
    kept.append([p.clone() for p in kept[0].parameters()])

extra = [memory_of(each)["extra"] for each in (loading, copying)]
weights = sum(p.nbytes for p in kept[0].parameters())
print(json.dumps({"loading": extra[0], "copying": extra[1], "weights": weights}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("device", "installed", "expected"),
    [("cuda", True, {"": "cuda"}), ("cuda", False, None), ("cpu", True, None)],
)
def test_only_a_gpu_with_accelerate_gets_a_device_map(
    folder, monkeypatch, device, installed, expected
):
    seen = []

    def noted(auto, model, **options):
        seen.append(options.get("device_map"))
        raise OSError("not loaded")

    monkeypatch.setattr(module, "load_network", noted)
    monkeypatch.setattr(module, "find_spec", lambda name: installed or None)
    with pytest.raises(OSError, match="not loaded"):
        open_model(find_model(str(folder)), dtype="auto", device=device)
    assert seen == [expected]


def test_no_weight_passes_through_main_memory(folder, monkeypatch):
    """Use the meta device instead of a GPU: a weight that was in main memory first would have a CPU copy."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    network, _ = open_model(find_model(str(folder)), dtype="auto", device="meta")
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    model, processor = tiny_maya(text=LARGE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_loading_needs_no_second_copy_of_the_weights(folder, large, dtype):
    # A process of its own: this one has held more.
    command = [sys.executable, "-c", MEASURE, str(folder), str(large), dtype]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # The measure sees a second copy.
    assert found["copying"] > 0.9 * found["weights"]
    stored = (large / "model.safetensors").stat().st_size
    # Weights of another dtype are made from pages of the file, which the system can take back at any time.
    pages = stored if dtype == "bfloat16" else 0
    assert 0.9 * found["weights"] < found["loading"] < 1.5 * found["weights"] + pages


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_weights_of_the_folder(folder):
    network, _ = open_model(find_model(str(folder)), dtype="auto", device="cuda")
    reference, _ = open_model(find_model(str(folder)), dtype="auto")
    for name, value in reference.state_dict().items():
        assert torch.equal(network.state_dict()[name].cpu(), value)
