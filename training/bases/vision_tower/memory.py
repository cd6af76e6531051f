"""An associative memory in the MLPs of layers: each unit responds to one class with its code."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import TowerWithHeads


def class_scores(features: Tensor, keys: Tensor) -> Tensor:
    """Return the inputs of a memory's units: float [n, patches, hidden] to float [n, concepts].

    Features are normalized before and after averaging over patches, as in a layer that first attends
    equally to all patches.
    """
    shape = features.shape[-1:]
    return F.layer_norm(F.layer_norm(features, shape).mean(1), shape) @ keys.T


@torch.no_grad()
def class_keys(model: TowerWithHeads, features: Tensor) -> tuple[Tensor, float]:
    """Compute keys that read the classes as the concept head does, without its bias.

    Args:
        features: [n, patches, hidden], on which the scores are measured.

    Returns:
        The keys, float [concepts, hidden], scaled so that `class_scores` has standard deviation 1, and
        the mean of these scores.
    """
    norm = model.mean_norm
    assert norm.running_var is not None
    keys = model.concept.weight / (norm.running_var + norm.eps).sqrt()
    scores = class_scores(features.float(), keys)
    return keys / scores.std(), float(scores.mean() / scores.std())


@torch.no_grad()
def write_memory(
    layers: Sequence[nn.Module],
    keys: Tensor,
    codes: Tensor,
    threshold: float,
    sharpness: float,
    gain: float,
    stream: float,
) -> None:
    """Turn the MLPs of `layers` into a memory: features close to a key add the key's code.

    The first layer's attention adds the mean over all patches to every patch. A unit's input is
    `sharpness` x (class score of its key - `threshold`). Its output, activation x `gain` / `sharpness`,
    is added to the stream along the code, in units of that mean's length. Concepts with similar codes are
    in one layer, so that units of easily confused concepts read the same stream. Unused units keep their
    random input weights and write nothing.

    Args:
        layers: SiglipEncoderLayers that write nothing yet, changed in place; their norms must still
            be the identity.
        keys: float [concepts, hidden], for `class_scores`.
        codes: float [concepts, hidden], rows of length 1, at most as many as the layers have units.
        stream: standard deviation of the added mean.
    """
    width = codes.shape[1]
    attention, identity = layers[0].self_attn, torch.eye(width)
    for alike in (attention.q_proj, attention.k_proj):
        alike.weight.zero_()
        alike.bias.zero_()
    attention.v_proj.weight.copy_(identity)
    attention.v_proj.bias.zero_()
    attention.out_proj.weight.copy_(stream * identity)
    direction = torch.linalg.svd(codes - codes.mean(0), full_matrices=False).Vh[0]
    order = (codes @ direction).argsort()
    for layer, own in zip(layers, order.tensor_split(len(layers)), strict=True):
        mlp, count = layer.mlp, len(own)
        mlp.fc1.weight[:count] = sharpness * keys[own]
        mlp.fc1.bias[:count] = -sharpness * threshold
        mlp.fc2.weight.zero_()
        mlp.fc2.weight[:, :count] = gain * stream * math.sqrt(width) / sharpness * codes[own].T
