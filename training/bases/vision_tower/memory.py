"""An associative memory in the MLPs of a layer: each unit answers to one class with its code."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import TowerWithHeads


def class_scores(features: Tensor, keys: Tensor) -> Tensor:
    """What a memory's units answer to: float [n, patches, hidden] to float [n, concepts].

    Features are normalised before and after the mean over patches, as in a layer that first attends
    to all patches alike.
    """
    shape = features.shape[-1:]
    return F.layer_norm(F.layer_norm(features, shape).mean(1), shape) @ keys.T


@torch.no_grad()
def class_keys(model: TowerWithHeads, features: Tensor) -> tuple[Tensor, float]:
    """Keys that read the classes as the concept head does without its bias.

    Args:
        features: [n, patches, hidden], which the scores are measured on.

    Returns:
        The keys, float [concepts, hidden], for `class_scores` with a standard deviation of 1, and
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
    """Make the MLPs of `layers` a memory, which answers to what is near to a key with its code.

    The first layer's attention adds to every patch the mean over all. A unit's input is
    `sharpness` x (the class score of its key - `threshold`), and what it answers with, its
    activation x `gain` / `sharpness`, goes into the stream along the code, in lengths of that mean.
    Concepts whose codes are alike are in one layer, so that those that could be taken for each other
    answer to the same stream; units left over keep their random input and write nothing.

    Args:
        layers: SiglipEncoderLayers that write nothing yet, changed in place; their norms must still
            be the identity.
        keys: float [concepts, hidden], of `class_scores`.
        codes: float [concepts, hidden], rows of length 1, at most as many as the layers have units.
        stream: standard deviation of the mean that is added.
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
