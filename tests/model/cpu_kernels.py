"""Run the GPU's attention functions on a CPU in tests, in any precision and with gradients.

The package's own code is unchanged. Only the kernels below it are replaced by implementations of their
documented behavior.
"""

import transformers.integrations.flex_attention as transformers_flex
from torch.nn.attention import flex_attention as torch_flex


def use_cpu_kernels(monkeypatch) -> None:
    """Use torch's own unfused flex attention, without the check that refuses its gradients on a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(
        transformers_flex,
        "compile_friendly_flex_attention",
        lambda q, k, v, training=False, **kwargs: torch_flex.flex_attention(q, k, v, **kwargs),
    )
