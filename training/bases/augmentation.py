"""Random changes to batches of small images, on the CPU.

A tower trained on a few art styles must recognize the same things in an unseen style. So this module
imitates what differs between styles: place, size and proportions (affine and elastic warps), palette (hue,
saturation, channel mixing, gamma), and technique (outlines, pale fills, few tones, soft edges). Images have
a white background. All geometry and color work is done on the ink, 1 - image, so white stays white.

All random numbers come from the generator that the caller passes: the same state gives the same images.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.schema import Bounds

WHERE = "vision tower recipe"
PROBABILITIES = {"flip", "outline", "blur", "posterize", "grayscale"}
PROBABILITIES |= {"channel_shuffle", "background", "erase"}
# Rec. 601 luma weights, as in PIL's "L" mode.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentationRecipe:
    """Amounts and probabilities of the changes. Probabilities are per image."""

    rotation: float = 0.35  # radians, uniform on both sides
    zoom: float = 0.3  # log scale, uniform on both sides
    aspect: float = 0.2  # log scale, uniform on both sides
    shear: float = 0.2  # uniform on both sides
    shift: float = 0.12  # standard deviation, in half widths
    elastic: float = 0.07  # standard deviation of the displacements, in half widths
    flip: float = 0.5  # probability, only for images that mean the same when mirrored
    outline: float = 0.45  # probability of dark outlines
    blur: float = 0.15  # probability
    posterize: float = 0.15  # probability of few tones
    hue: float = 0.5  # standard deviation, radians
    grayscale: float = 0.2  # probability
    tone: float = 1.0  # range of saturation, gamma and color strength; 1 for the usual range
    channel_shuffle: float = 0.15  # probability
    background: float = 0.15  # probability of a colored background
    erase: float = 0.3  # probability of a blank rectangle

    def at(self, strength: float) -> "AugmentationRecipe":
        """Return a weaker copy: every amount and probability times `strength`, from 0 to 1."""
        return replace(self, **{name: value * strength for name, value in vars(self).items()})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            bounds = Bounds(least=0, most=1 if name in PROBABILITIES else None)
            bounds.check(value, WHERE, f"augmentation.{name}")
        together = self.outline + self.blur + self.posterize
        if together > 1:
            raise ValueError(
                f"{WHERE}: augmentation: outline + blur + posterize: expected at most 1, because an image "
                f"gets at most one of them, found {together:g}"
            )


def augment(
    pictures: Tensor, may_flip: Tensor, recipe: AugmentationRecipe, generator: torch.Generator
) -> Tensor:
    """Change the images of a batch at random.

    Args:
        pictures: float [batch, 3, height, width] from 0 to 1, on white.
        may_flip: bool [batch], whether an image means the same when mirrored.

    Returns:
        float [batch, 3, height, width] from 0 to 1; the input is not modified.
    """
    ink = _warp(1 - pictures, may_flip, recipe, generator)
    ink = _restyle(ink, recipe, generator)
    ink = _recolor(ink, recipe, generator)
    pictures = _set_background(ink, recipe, generator)
    return _erase(pictures, recipe, generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _chosen(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.nonzero(torch.rand(count, generator=generator) < probability)[:, 0]


def _warp(
    ink: Tensor, may_flip: Tensor, recipe: AugmentationRecipe, generator: torch.Generator
) -> Tensor:
    count, _, height, width = ink.shape
    angle = _uniform(count, -recipe.rotation, recipe.rotation, generator)
    zoom = torch.exp(_uniform(count, -recipe.zoom, recipe.zoom, generator))
    aspect = torch.exp(_uniform(count, -recipe.aspect, recipe.aspect, generator))
    shear = _uniform(count, -recipe.shear, recipe.shear, generator)
    mirrored = (torch.rand(count, generator=generator) < recipe.flip) & may_flip
    sign = 1.0 - 2.0 * mirrored.float()
    cosine, sine = torch.cos(angle), torch.sin(angle)
    matrix = torch.empty(count, 2, 3)
    matrix[:, 0, 0] = cosine * zoom * aspect * sign
    matrix[:, 0, 1] = (shear - sine) * zoom * aspect
    matrix[:, 1, 0] = sine * zoom / aspect * sign
    matrix[:, 1, 1] = cosine * zoom / aspect
    matrix[:, :, 2] = torch.randn(count, 2, generator=generator) * recipe.shift
    grid = F.affine_grid(matrix, [count, 3, height, width], align_corners=False)
    if recipe.elastic:
        # Smoothly interpolated displacements of a coarse grid; the amount differs between images.
        amount = _uniform(count, 0, 1.5, generator).view(-1, 1, 1, 1) * recipe.elastic
        bend = torch.randn(count, 2, 5, 5, generator=generator) * amount
        bend = F.interpolate(bend, size=(height, width), mode="bicubic", align_corners=True)
        grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid, align_corners=False)


def _restyle(ink: Tensor, recipe: AugmentationRecipe, generator: torch.Generator) -> Tensor:
    technique = torch.rand(len(ink), generator=generator)
    outlined = technique < recipe.outline
    blurred = ~outlined & (technique < recipe.outline + recipe.blur)
    toned = ~outlined & ~blurred & (technique < recipe.outline + recipe.blur + recipe.posterize)
    rows = torch.nonzero(outlined)[:, 0]
    if len(rows):
        ink[rows] = _outline(ink[rows], generator)
    rows = torch.nonzero(blurred)[:, 0]
    if len(rows):
        ink[rows] = F.avg_pool2d(F.pad(ink[rows], (1, 1, 1, 1), mode="replicate"), 3, 1)
    rows = torch.nonzero(toned)[:, 0]
    if len(rows):
        tones = torch.randint(2, 5, (len(rows), 1, 1, 1), generator=generator).float()
        ink[rows] = torch.round(ink[rows] * tones) / tones
    return ink


def _outline(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Draw dark lines where colors meet; in three of ten images also fade the fills."""
    count = len(ink)
    contrast = F.max_pool2d(ink, 3, 1, 1) + F.max_pool2d(-ink, 3, 1, 1)
    gain = _uniform(count, 1.0, 2.5, generator).view(-1, 1, 1, 1)
    edge = (contrast.amax(1, keepdim=True) * gain - 0.15).clamp(0, 1)
    fading = torch.rand(count, generator=generator) < 0.3
    filling = torch.where(fading, _uniform(count, 0, 0.6, generator), torch.ones(count))
    line = _uniform(count, 0.6, 1.0, generator).view(-1, 1, 1, 1)
    faded = ink * filling.view(-1, 1, 1, 1)
    return faded + (line - faded) * edge


def _recolor(ink: Tensor, recipe: AugmentationRecipe, generator: torch.Generator) -> Tensor:
    count, _, height, width = ink.shape
    tone = recipe.tone
    identity = torch.eye(3)
    # Rotation about the gray axis (Rodrigues' formula) changes hues and keeps gray unchanged.
    axis = math.sqrt(1 / 3)
    cross = axis * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    turn = (torch.randn(count, generator=generator) * recipe.hue).view(-1, 1, 1)
    hue = torch.cos(turn) * identity + (1 - torch.cos(turn)) / 3 + torch.sin(turn) * cross
    grey = torch.rand(count, generator=generator) < recipe.grayscale
    amount = torch.where(
        grey, torch.zeros(count), _uniform(count, 1 - 0.6 * tone, 1 + 0.6 * tone, generator)
    )
    amount = amount.view(-1, 1, 1)
    saturation = amount * identity + (1 - amount) * torch.tensor(LUMA).expand(3, 3)
    matrix = saturation @ hue + torch.randn(count, 3, 3, generator=generator) * 0.08 * tone
    for row in _chosen(count, recipe.channel_shuffle, generator).tolist():
        matrix[row] = matrix[row][torch.randperm(3, generator=generator)]
    ink = torch.bmm(matrix, ink.reshape(count, 3, -1)).view(count, 3, height, width).clamp(0, 1)
    gamma = torch.exp(_uniform(count, -0.5 * tone, 0.5 * tone, generator)).view(-1, 1, 1, 1)
    strength = _uniform(count, 1 - 0.25 * tone, 1 + 0.15 * tone, generator).view(-1, 1, 1, 1)
    return (ink.clamp_min(1e-4) ** gamma * strength).clamp(0, 1)


def _set_background(ink: Tensor, recipe: AugmentationRecipe, generator: torch.Generator) -> Tensor:
    pictures = 1 - ink
    rows = _chosen(len(ink), recipe.background, generator)
    if len(rows):
        cover = (ink[rows].amax(1, keepdim=True) * 8).clamp(0, 1)
        color = torch.rand(len(rows), 3, 1, 1, generator=generator)
        pictures[rows] = pictures[rows] * cover + color * (1 - cover)
    return pictures


def _erase(pictures: Tensor, recipe: AugmentationRecipe, generator: torch.Generator) -> Tensor:
    """Blank a rectangle, an eighth to three eighths of each side, in white or one color."""
    _, _, height, width = pictures.shape
    for row in _chosen(len(pictures), recipe.erase, generator).tolist():
        share = _uniform(2, 0.125, 0.375, generator)
        tall, wide = max(1, int(height * share[0])), max(1, int(width * share[1]))
        top = int(torch.randint(0, height - tall + 1, (1,), generator=generator))
        left = int(torch.randint(0, width - wide + 1, (1,), generator=generator))
        white = bool(torch.rand(1, generator=generator) < 0.5)
        color = torch.rand(3, 1, 1, generator=generator)
        pictures[row, :, top : top + tall, left : left + wide] = 1.0 if white else color
    return pictures
