"""The tower with its training heads, and functions that read features from its layers."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from ..text_codes import BUCKETS
from .recipe import VisionTowerRecipe


class CaptionEncoder(nn.Module):
    """Encodes captions as vectors: the mean of hashed character 2- to 4-grams, then a two-layer MLP.

    It learns within minutes what a transformer over bytes would need hours for. It is discarded after
    training, because Maya has a language model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: list[list[int]]) -> Tensor:
        """Map n-gram buckets of [batch] captions to float [batch, width]."""
        starts = np.cumsum([0, *(len(row) for row in features[:-1])])
        flat = torch.tensor([number for row in features for number in row])
        bags = self.grams(flat, torch.from_numpy(starts))
        return self.mlp(bags)


class CodeReader(nn.Module):
    """Concept logits of the first part: a linear map of the features, compared with the fixed codes."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        width = codes.shape[1]
        self.register_buffer("codes", F.normalize(codes, dim=1))
        self.map = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor) -> Tensor:
        """Map float [n, width] to float [n, concepts]."""
        return self.cosines(self.map(features)) * self.log_scale.exp()

    def cosines(self, features: Tensor) -> Tensor:
        """Return cosines of features, float [n, width], with every code: float [n, concepts]."""
        return F.normalize(features, dim=1) @ self.codes.T


class TowerWithHeads(nn.Module):
    """The tower and the parts that only training needs.

    Args:
        codes: codes of the concepts, float [concepts, hidden_size].
    """

    def __init__(self, recipe: VisionTowerRecipe, codes: Tensor, categories: int) -> None:
        super().__init__()
        width = recipe.hidden_size
        config = SiglipVisionConfig(
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            hidden_size=width,
            num_hidden_layers=recipe.num_hidden_layers,
            intermediate_size=recipe.intermediate_size,
            num_attention_heads=recipe.num_attention_heads,
            vision_use_head=True,
        )
        self.tower = SiglipVisionModel(config)
        self.class_layers = recipe.num_hidden_layers - 1 - recipe.code_layers
        with torch.no_grad():
            for layer in self.tower.encoder.layers[self.class_layers : -1]:
                for written in (layer.self_attn.out_proj, layer.mlp.fc2):
                    written.weight.zero_()
                    written.bias.zero_()
        # Normalized over the batch: at first the encoder maps all images to nearly the same vector, and
        # this shared part would hide their differences.
        self.mean_norm = nn.BatchNorm1d(width, affine=False)
        self.patch_norm = nn.BatchNorm1d(width, affine=False)
        self.concept = nn.Linear(width, len(codes))
        self.patch_concept = nn.Linear(width, len(codes))
        self.code = CodeReader(codes)
        self.category = nn.Linear(width, categories)
        self.captions = CaptionEncoder(recipe.contrastive_dim)
        self.picture_projection = nn.Linear(width, recipe.contrastive_dim)
        # Initial values from the SigLIP paper, section 3.2.
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def classes(self, pixel_values: Tensor) -> Tensor:
        """Map float [n, 3, size, size] to the class features, float [n, patches, hidden]."""
        hidden = self.tower.embeddings(pixel_values)
        for layer in self.tower.encoder.layers[: self.class_layers]:
            hidden = layer(hidden, attention_mask=None)
        return hidden

    def before_last(self, classes: Tensor) -> Tensor:
        """Map class features to hidden_states[-2], of the same shape."""
        for layer in self.tower.encoder.layers[self.class_layers : -1]:
            classes = layer(classes, attention_mask=None)
        return classes

    def pooled(self, before_last: Tensor) -> Tensor:
        """Map hidden_states[-2] to the tower's pooler_output."""
        hidden = self.tower.encoder.layers[-1](before_last, attention_mask=None)
        return self.tower.head(self.tower.post_layernorm(hidden))

    def embed(self, before_last: Tensor) -> Tensor:
        """Return image vectors in the space of the captions, of unit length."""
        return F.normalize(self.picture_projection(self.pooled(before_last)), dim=-1)


def normalize(pictures: Tensor) -> Tensor:
    """Map 0 to 1 to -1 to 1, as the image processor does with mean and deviation 0.5."""
    return pictures * 2 - 1


@torch.no_grad()
def whiten_patches(tower: PreTrainedModel, pictures: Tensor, generator: torch.Generator) -> None:
    """Initialize a tower's patch embedding, in place, from principal components of image patches.

    Neighboring pixels are nearly equal, so random projections of a patch are nearly equal too. Whitened
    projections differ from the first step on.

    Args:
        pictures: float [n, 3, size, size], normalized.
    """
    embedding, width = tower.embeddings.patch_embedding, tower.config.hidden_size
    size = tower.config.patch_size
    patches = F.unfold(pictures, size, stride=size).transpose(1, 2).reshape(-1, 3 * size * size)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    count = min(width, len(values))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    # Weak components are noise; the floor keeps them weak.
    components = (vectors / (values + 3e-4 * values.sum()).sqrt()).T
    mixing = torch.randn(width, count, generator=generator)
    mixing = torch.linalg.qr(mixing)[0] if count == width else mixing / math.sqrt(count)
    weight = mixing @ components
    embedding.weight.copy_(weight.view_as(embedding.weight))
    if embedding.bias is not None:  # CLIP has none
        embedding.bias.copy_(-weight @ mean)


@torch.no_grad()
def scale_stream(tower: PreTrainedModel, features: Tensor, deviation: float = 1.0) -> None:
    """Scale hidden_states[-2] of a tower to this standard deviation, in place, and change nothing else.

    All layers in the tower normalize the residual stream before they read it, so scaling everything that
    is written to the stream scales it without other effects. Maya's projector reads the stream without
    normalization, and a linear layer learns best from numbers near 1.

    Args:
        features: float [n, patches, hidden], the stream of some images at the point to be scaled.
    """
    factor = float(deviation / (features - features.mean((0, 1))).std())
    embeddings = tower.embeddings
    if hasattr(tower, "pre_layrnorm"):  # CLIP normalizes its embeddings
        written = list(tower.pre_layrnorm.parameters())
    else:
        written = [*embeddings.patch_embedding.parameters(), embeddings.position_embedding.weight]
    for layer in tower.encoder.layers:
        written += [*layer.self_attn.out_proj.parameters(), *layer.mlp.fc2.parameters()]
    for parameter in written:
        parameter.mul_(factor)


@torch.no_grad()
def read_features(tower: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Return hidden_states[-2], which Maya reads: uint8 [n, 3, size, size] to float [n, patches, hidden].

    A CLIP's class token, which comes first, is left out, as by Maya's feature strategy `default`.
    """
    first = int(hasattr(tower.embeddings, "class_embedding"))
    return torch.cat(
        [
            tower(normalize(part.float() / 255), output_hidden_states=True).hidden_states[-2][
                :, first:
            ]
            for part in pixels.split(256)
        ]
    )


@torch.no_grad()
def read_classes(model: TowerWithHeads, pixels: Tensor) -> Tensor:
    """Return class features: uint8 [n, 3, size, size] to float [n, patches, hidden]."""
    model.eval()
    return torch.cat([model.classes(normalize(part.float() / 255)) for part in pixels.split(256)])


@torch.no_grad()
def read_before_last(model: TowerWithHeads, classes: Tensor) -> Tensor:
    """Return hidden_states[-2], which Maya reads, from stored class features."""
    model.eval()
    return torch.cat([model.before_last(part.float()) for part in classes.split(256)])
