"""Weights are loaded directly on their device, if accelerate is installed."""

import pytest
import torch

from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference import load as module
from maya_vlm.training.inference.load import open_model
from tests.helpers.tiny_maya import save_tiny_maya


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_weights_of_the_folder(folder):
    network, _ = open_model(find_model(str(folder)), dtype="auto", device="cuda")
    reference, _ = open_model(find_model(str(folder)), dtype="auto")
    for name, value in reference.state_dict().items():
        assert torch.equal(network.state_dict()[name].cpu(), value)
