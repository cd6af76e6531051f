"""Captions as token ids, by a tokenizer that is learned from them alone."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..language_model.tokenizer import train_tokenizer
from ..vision_tower.dataset import Dataset
from .recipe import ContrastiveRecipe


@dataclass
class Captions:
    """The captions of a run's concepts, of which none is held out."""

    tokenizer: PreTrainedTokenizerFast
    ids: Tensor  # int64 [concepts, languages, text_length]: first token, text, end, padding
    named: Tensor  # bool [concepts, languages], whether the language has a caption
    cut: int  # number of captions that were longer than text_length


def read_captions(dataset: Dataset, recipe: ContrastiveRecipe) -> Captions:
    """Learn the tokenizer, and encode all captions of the dataset.

    Raises:
        ValueError: if the captions do not fill the vocabulary, or a concept has none.
    """
    texts = [name for named in dataset.captions for name in named if name]
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    shape = (len(dataset.concepts), len(recipe.languages))
    ids = torch.full((*shape, recipe.text_length), int(tokenizer.pad_token_id))
    named, cut = torch.zeros(shape, dtype=torch.bool), 0
    room = recipe.text_length - 2
    for row, names in enumerate(dataset.captions):
        for column, name in enumerate(names):
            if name:
                text = tokenizer(name, add_special_tokens=False)["input_ids"]
                cut += len(text) > room
                text = [tokenizer.bos_token_id, *text[:room], tokenizer.eos_token_id]
                ids[row, column, : len(text)] = torch.tensor(text)
                named[row, column] = True
    if not named.any(1).all():
        bare = dataset.concepts[int((~named.any(1)).nonzero()[0])]
        raise ValueError(f"captions: concept {bare}: expected a name in a language, found none")
    return Captions(tokenizer, ids, named, cut)


def draw_captions(
    captions: Captions, concepts: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Return `count` captions of each concept in random languages, int64 [count, concepts, text_length].

    Languages differ if all these concepts have names in so many.
    """
    named = captions.named[concepts]
    again = count > int(named.sum(1).min())
    language = torch.multinomial(named.float(), count, again, generator=generator)
    return captions.ids[concepts, language.T]
