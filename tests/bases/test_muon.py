"""Muon moves matrices as in its paper and in torch."""

import torch

from maya_vlm.training.bases.muon import Muon


def test_muon_moves_matrices_by_orthogonal_steps():
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(24, 8))
    matrix.grad = torch.randn(24, 8) * torch.logspace(0, -1, 8)
    Muon([matrix], lr=0.1, weight_decay=0.0).step()
    values = torch.linalg.svdvals(matrix.detach()) / (0.1 * 3**0.5)
    # The quintic iteration brings singular values close to 1, not exactly to 1.
    assert values.max() < 1.3
    assert values.min() > 0.4


def test_muon_is_torchs_but_for_its_dtype():
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    options = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9}
    optimizers = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert (mine - other).norm() < 0.05 * moved  # torch iterates in bfloat16
