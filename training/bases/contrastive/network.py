"""The two-tower model: transformers' own SigLIP or CLIP, with new weights."""

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from .recipe import ContrastiveRecipe

TwoTowers: TypeAlias = SiglipModel | CLIPModel


def build_towers(recipe: ContrastiveRecipe, tokenizer: PreTrainedTokenizerFast) -> TwoTowers:
    """Build the model of the recipe's loss, with weights drawn from torch's random state."""
    shape = {
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_attention_heads": recipe.num_attention_heads,
    }
    vision = shape | {
        "num_hidden_layers": recipe.num_hidden_layers,
        "image_size": recipe.image_size,
        "patch_size": recipe.patch_size,
    }
    text = shape | {
        "num_hidden_layers": recipe.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": recipe.text_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if recipe.loss == "softmax":
        return CLIPModel(
            CLIPConfig(vision_config=vision, text_config=text, projection_dim=recipe.hidden_size)
        )
    text["projection_size"] = recipe.hidden_size
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    with torch.no_grad():  # initial values from the SigLIP paper, section 3.2
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def pair_loss(model: TwoTowers, pictures: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of a model's `forward(return_loss=True)` from the two towers' vectors.

    `forward` would compute the pictures again for every further caption.

    Args:
        pictures, captions: float [batch, width]; row n of both is one pair.

    Returns:
        The loss, and the share of pictures whose nearest caption is their own.
    """
    logits = F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T
    logits = logits * model.logit_scale.exp()
    own = torch.arange(len(logits))
    found = (logits.argmax(1) == own).float().mean()
    if isinstance(model, CLIPModel):
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, found
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * (logits + model.logit_bias)).sum(1).mean(), found
