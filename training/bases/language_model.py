"""A small Cohere language model that reads its context, trained on text alone.

A decoder trained on bare captions and then frozen has no reason to look at what precedes them, so
a projector has nothing to align to. Here the answer always depends on what stands at the place
where the image tokens will stand: a description of one concept, of which the model is asked the
name in ten languages, the category, keywords, or yes/no about a stated name. The description is

- text: the concept's name in English or another language, its keywords, or a shuffled, thinned
  and padded version of these; or
- soft: one learned vector per concept, laid into every slot with noise, gaps and a share of a
  confusable concept. This is what projected image features look like to a decoder: continuous,
  distributed and uncertain. The table of vectors is learned from text only and thrown away.

One row of a batch is one context with many questions about it. All questions see the context and
none sees another (the attention rule of a group), so the context is computed once.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from processing_maya import load_chat_template

from .tokenizer import (
    CHATBOT,
    END_OF_TURN,
    IMAGE_TOKEN,
    START_OF_TURN,
    USER,
    train_tokenizer,
)

SHIPPED_DATASET = Path(__file__).parents[1] / "data" / "mini"
PROMPTS = Path(__file__).parents[1] / "data" / "mini_dataset" / "prompts.json"
LANGUAGES = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur")
TASKS = ("name", "yesno", "category", "keywords", "chat")
CONTEXTS = ("soft", "pivot", "other", "keywords", "both", "noisy")


@dataclass
class LanguageModelRecipe:
    """Everything that decides a run; the keys of the YAML are these fields.

    > Data
        dataset: folder of the mini dataset (None: the one that ships).
        prompts: JSON of question wordings per language and task (None: the one that ships).
        languages: BCP-47 codes to learn. pivot: the language most contexts are written in.
    > Tokenizer
        vocab_size: control tokens + bytes + merges. embedding_rows: rows of the model, at least
        vocab_size + 30. caption_weight: a name counts as this many keywords when merges are
        learned. language_weights: multiplies that per language (missing: 2).
    > Model
        the fields of CohereConfig; output_initializer_scale multiplies the initial o_proj and
        down_proj.
    > Contexts and tasks
        context_slots: length of a soft context in vectors (the image tokens of the mini Maya).
        contexts, tasks: weights of the kinds. keyword_count: keywords in one answer.
        soft_*: upper ends of the uniform draws of what disturbs a soft context (in units of the
        vectors' own size). keyword_loss: weight of a keyword token in the loss.
    > Optimisation
        row_tokens x rows_per_step tokens a step; muon_learning_rate for matrices, learning_rate
        (AdamW) for embeddings, norms and soft vectors; linear decay to zero after `hold`.
    """

    dataset: str | None = None
    prompts: str | None = None
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    pivot: str = "en"

    vocab_size: int = 6080
    embedding_rows: int = 6144
    caption_weight: int = 5
    language_weights: dict[str, int] = field(default_factory=dict)

    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    max_position_embeddings: int = 2048
    logit_scale: float = 1.0
    rope_theta: float = 10000.0
    initializer_range: float = 0.08
    output_initializer_scale: float = 0.3

    context_slots: int = 16
    contexts: dict[str, float] = field(
        default_factory=lambda: {
            "soft": 0.5,
            "pivot": 0.15,
            "other": 0.12,
            "keywords": 0.06,
            "both": 0.05,
            "noisy": 0.12,
        }
    )
    tasks: dict[str, float] = field(
        default_factory=lambda: {
            "name": 0.5,
            "yesno": 0.3,
            "category": 0.08,
            "keywords": 0.05,
            "chat": 0.07,
        }
    )
    keyword_count: int = 5
    keyword_loss: float = 0.3
    soft_slot_noise: float = 1.5
    soft_shared_noise: float = 0.8
    soft_mixture: float = 0.4
    soft_dropout: float = 0.7

    steps: int = 4000
    rows_per_step: int = 16
    row_tokens: int = 160
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.01
    weight_decay: float = 0.01
    warmup_steps: int = 100
    hold: float = 0.4
    checkpoint_every: int = 500
    evaluate_concepts: int | None = None
    storage_dtype: str = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pivot not in self.languages:
            raise ValueError(f"pivot is {self.pivot!r}, which is not in languages {self.languages}")
        for name, known, given in (
            ("contexts", CONTEXTS, self.contexts),
            ("tasks", TASKS, self.tasks),
        ):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ValueError(f"{name} has unknown keys {unknown}; known are {list(known)}")
            if not given or min(given.values()) < 0 or sum(given.values()) <= 0:
                raise ValueError(f"{name} needs weights of at least 0 that are not all 0: {given}")
        if self.embedding_rows < self.vocab_size + 30:
            raise ValueError(
                f"embedding_rows is {self.embedding_rows}; vocab_size {self.vocab_size} needs at "
                f"least {self.vocab_size + 30} (29 turn tokens and {IMAGE_TOKEN})"
            )
        if self.storage_dtype not in ("float16", "bfloat16", "float32"):
            raise ValueError(
                f"storage_dtype is {self.storage_dtype!r}; use float16, bfloat16 or float32"
            )
        for name in ("steps", "rows_per_step", "context_slots", "keyword_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


# --------------------------------------------------------------------------------------------
# Texts
# --------------------------------------------------------------------------------------------


@dataclass
class Concepts:
    """The texts of the training concepts, all in the order of `ids`; held-out ones are not here.

    A missing name is "", a missing keyword list is empty; `held_out` and `missing` count.
    """

    ids: list[str]
    category: list[str]
    names: dict[str, list[str]]
    keywords: dict[str, list[list[str]]]
    category_names: dict[str, dict[str, str]]
    confusable: list[list[int]]
    held_out: int
    missing: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)


def read_concepts(dataset: Path, languages: list[str], pivot: str) -> Concepts:
    """The seen concepts of the mini dataset's train split, with texts in every language.

    Raises FileNotFoundError if the folder is not there and ValueError if a column, a language or
    a concept's text is missing.
    """
    from datasets import load_dataset

    if not dataset.is_dir():
        raise FileNotFoundError(
            f"dataset folder {dataset} does not exist: build it with `maya data mini`"
        )
    splits = load_dataset(str(dataset), "all")
    if "train" not in splits:
        raise ValueError(f"{dataset}: config 'all' has no split 'train'; found {sorted(splits)}")
    rows = splits["train"]
    needed = {"lang", "text", "keywords", "category", "category_name", "concept", "seen"}
    if missing := sorted(needed - set(rows.column_names)):
        raise ValueError(
            f"{dataset}: config 'all' lacks the columns {missing}; found {rows.column_names}"
        )
    rows = rows.select_columns(sorted(needed)).to_list()
    for other in splits.values():
        # concepts held out of training stand in the other splits: counted here, never read
        columns = other.select_columns(["concept", "seen"]).to_dict()
        held = {c for c, seen in zip(columns["concept"], columns["seen"], strict=True) if not seen}
        rows += [{"concept": c, "seen": False} for c in sorted(held)]
    return concepts_from_rows(rows, languages, pivot, str(dataset))


def concepts_from_rows(
    rows: list[dict[str, Any]], languages: list[str], pivot: str, source: str
) -> Concepts:
    """Collect rows (one picture, one language) into concepts; leaves out those not `seen`."""
    texts: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    held_out = set()
    for row in rows:
        if not row["seen"]:
            held_out.add(row["concept"])
        elif row["lang"] in languages:
            texts[row["concept"]].setdefault(row["lang"], row)
    if not texts:
        raise ValueError(f"{source}: no rows with seen=True in the languages {languages}")
    ids = sorted(texts)
    missing = {lang: sum(lang not in texts[c] for c in ids) for lang in languages}
    for lang, count in missing.items():
        # CLDR lacks a name here and there; a language that lacks many is a wrong dataset.
        if count > len(ids) // 10:
            raise ValueError(f"{source}: {count} of {len(ids)} concepts have no text in {lang!r}")
    for concept in ids:
        if pivot not in texts[concept]:
            raise ValueError(f"{source}: concept {concept} has no text in the pivot {pivot!r}")
        for lang, row in texts[concept].items():
            if not row["text"].strip():
                raise ValueError(f"{source}: concept {concept} has an empty text in {lang!r}")
    names = {lang: [texts[c].get(lang, {}).get("text", "") for c in ids] for lang in languages}
    category = [texts[c][pivot]["category"] for c in ids]
    return Concepts(
        ids=ids,
        category=category,
        names=names,
        keywords={
            lang: [list(texts[c].get(lang, {}).get("keywords") or ()) for c in ids]
            for lang in languages
        },
        category_names={
            lang: {
                row["category"]: row["category_name"]
                for c in ids
                if (row := texts[c].get(lang)) is not None
            }
            for lang in languages
        },
        confusable=_confusable(names[pivot], category),
        held_out=len(held_out),
        missing=missing,
    )


def _confusable(names: list[str], category: list[str]) -> list[list[int]]:
    """For each concept the ones of its category whose name shares a word, or else all of it.

    A name whose words are all in the other's may be true of it ("person", "person running"), so
    such pairs are left out.
    """
    words = [set(name.lower().replace(":", "").split()) for name in names]
    near: list[list[int]] = []
    for i, own in enumerate(words):
        mates = [
            j
            for j, other in enumerate(words)
            if j != i and category[j] == category[i] and not (own <= other or other <= own)
        ]
        shared = [j for j in mates if any(len(w) > 2 for w in own & words[j])]
        near.append(shared if len(shared) > 2 else mates or [i])
    return near


def read_prompts(path: Path, languages: list[str]) -> dict[str, Any]:
    """Question wordings per language and task; see training/data/mini_dataset/prompts.json."""
    if not path.is_file():
        raise FileNotFoundError(f"prompts file {path} does not exist")
    prompts = json.loads(path.read_text(encoding="utf-8"))
    for lang in languages:
        if lang not in prompts:
            raise ValueError(f"{path}: no prompts for language {lang!r}; found {sorted(prompts)}")
        for key in ("name", "yesno", "category", "keywords", "yes", "no"):
            if not prompts[lang].get(key):
                raise ValueError(f"{path}: language {lang!r} has no {key!r}")
        for wording in prompts[lang]["yesno"]:
            if "{name}" not in wording:
                raise ValueError(f"{path}: {lang!r} yesno {wording!r} lacks the place '{{name}}'")
    return {lang: prompts[lang] for lang in languages}


def tokenizer_texts(
    concepts: Concepts, prompts: dict[str, Any], recipe: LanguageModelRecipe
) -> Iterator[str]:
    """What the merges are learned from: names (weighted), keywords, prompts, answers."""
    for lang in recipe.languages:
        weight = recipe.language_weights.get(lang, 2)
        for name, words in zip(concepts.names[lang], concepts.keywords[lang], strict=True):
            if name:
                yield from [name] * (recipe.caption_weight * weight)
                yield from [f" {name}"] * weight
            for word in words:
                yield from [word] * weight
        for _ in range(200):
            for key in ("name", "yesno", "category", "keywords"):
                yield from prompts[lang][key]
            yield from (prompts[lang]["yes"], prompts[lang]["no"])
            yield from concepts.category_names[lang].values()


# --------------------------------------------------------------------------------------------
# Rows: one context, many questions
# --------------------------------------------------------------------------------------------


@dataclass
class Segment:
    """One question (or two-turn chat) with its answer; loss on the answers only."""

    ids: list[int]
    targets: list[tuple[int, int, float]]  # (position in ids, next token, weight)
    task: str
    lang: str


@dataclass
class Batch:
    """Rows of `row_tokens`, padded at the end. R rows, L positions, N answer tokens.

    ids, positions, segment: (R, L) int64, segment 0 is the context, -1 padding. soft: (R, S, C)
    float32 weights of concepts with gains folded in, and `slot_noise`. The answers are flat:
    `at` (N,) into R*L, `target` (N,), `weight` (N,), and `group` (N,) numbering the segments.
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    soft_rows: Tensor
    soft_concepts: Tensor
    soft_weights: Tensor
    soft_noise: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor
    group: Tensor
    segments: list[Segment]
    context_length: list[int]


# How a language writes a list; elsewhere ", ".
_SEPARATORS = {"zh": "、", "ja": "、", "ar": "، ", "ur": "، "}
_CHATS = (
    ("category", "name"),
    ("name", "category"),
    ("category", "yesno"),
    ("yesno", "name"),
    ("yesno", "category"),
)


class Corpus:
    """All texts as token ids, and the sampling of rows from them."""

    def __init__(
        self,
        concepts: Concepts,
        prompts: dict[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        recipe: LanguageModelRecipe,
    ):
        self.concepts, self.prompts, self.recipe = concepts, prompts, recipe
        self.languages = recipe.languages
        self.tokenizer = tokenizer
        token = tokenizer.convert_tokens_to_ids
        self.end = token(END_OF_TURN)
        self.prefix = [tokenizer.bos_token_id, token(START_OF_TURN), token(USER)]
        self.to_answer = [self.end, token(START_OF_TURN), token(CHATBOT)]
        self.to_question = [token(START_OF_TURN), token(USER)]
        self.first_text = 8
        self.name = {lang: self._encode(concepts.names[lang]) for lang in self.languages}
        self.listed = {
            lang: self._encode([self.keyword_answer(lang, i) for i in range(len(concepts))])
            for lang in self.languages
        }
        self.keyword = {
            lang: [self._encode(words) for words in concepts.keywords[lang]]
            for lang in self.languages
        }
        self.comma = self._encode([", "])[0]
        self.category = {
            lang: dict(
                zip(
                    concepts.category_names[lang],
                    self._encode(list(concepts.category_names[lang].values())),
                    strict=True,
                )
            )
            for lang in self.languages
        }
        self.question = {
            lang: {
                task: self._encode(prompts[lang][task]) for task in ("name", "category", "keywords")
            }
            for lang in self.languages
        }
        self.stated = {
            lang: [
                self._encode([wording.replace("{name}", n) for n in concepts.names[lang]])
                for wording in prompts[lang]["yesno"]
            ]
            for lang in self.languages
        }
        self.named = {
            lang: np.array([bool(n) for n in concepts.names[lang]]) for lang in self.languages
        }
        self.yes = {lang: self._encode([prompts[lang]["yes"]])[0] for lang in self.languages}
        self.no = {lang: self._encode([prompts[lang]["no"]])[0] for lang in self.languages}

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def keyword_answer(self, lang: str, concept: int) -> str:
        words = self.concepts.keywords[lang][concept][: self.recipe.keyword_count]
        return _SEPARATORS.get(lang, ", ").join(words)

    # Contexts. Ids; for a soft one the ids are unknown tokens that are replaced by vectors.

    def context(self, kind: str, concept: int, lang: str, rng: np.random.Generator) -> list[int]:
        """Token ids of a text context of at most `context_slots` tokens."""
        slots = self.recipe.context_slots
        if kind in ("pivot", "other"):
            return self.name[lang][concept][:slots]
        words = self.keyword[lang][concept] or [self.name[lang][concept]]
        order = rng.permutation(len(words))
        listed = [t for n, k in enumerate(order) for t in ([*self.comma] if n else []) + words[k]]
        if kind == "keywords":
            return listed[:slots]
        name = self.name[lang][concept]
        if kind == "both":
            return (name + self.comma + listed)[:slots]
        # noisy: names in one or two languages (or keywords), thinned, among filler, anywhere
        words_in = list(name)
        if rng.random() < 0.5:
            named = self.languages_of(concept)
            words_in += self.name[named[rng.integers(len(named))]][concept]
        elif rng.random() < 0.5:
            words_in += listed
        keep = [t for t in words_in if rng.random() > 0.15] or words_in[:1]
        keep = keep[:slots]
        filler = rng.integers(self.first_text, self.recipe.vocab_size, slots - len(keep))
        filler = filler[: rng.integers(len(filler) + 1)]
        laid = np.zeros(len(keep) + len(filler), dtype=np.int64)
        places = np.sort(rng.permutation(len(laid))[: len(keep)])
        mask = np.zeros(len(laid), dtype=bool)
        mask[places] = True
        laid[mask], laid[~mask] = keep, filler
        return laid.tolist()

    # Questions

    def segment(
        self,
        task: str,
        concept: int,
        lang: str,
        rng: np.random.Generator,
        about: int | None = None,
    ) -> Segment:
        """A question about `concept`; for yesno `about` is the stated concept."""
        turns: list[tuple[list[int], list[int], float]] = []
        if task == "chat":
            tasks = _CHATS[rng.integers(len(_CHATS))]
        else:
            tasks = (task,)
        for turn in tasks:
            weight = 1.0
            if turn == "yesno":
                stated = self.stated[lang][rng.integers(len(self.stated[lang]))]
                about = concept if about is None else about
                question = stated[about]
                answer = self.yes[lang] if about == concept else self.no[lang]
            else:
                wordings = self.question[lang][turn]
                question = wordings[rng.integers(len(wordings))]
                if turn == "name":
                    answer = self.name[lang][concept]
                elif turn == "category":
                    answer = self.category[lang][self.concepts.category[concept]]
                else:
                    answer = self.listed[lang][concept]
                    weight = self.recipe.keyword_loss
            turns.append((question, answer, weight))
        ids: list[int] = []
        targets: list[tuple[int, int, float]] = []
        for n, (question, answer, weight) in enumerate(turns):
            ids += (self.to_question if n else []) + question + self.to_answer
            for target in [*answer, self.end]:
                targets.append((len(ids) - 1, target, weight))
                ids.append(target)
        del ids[-1]  # nothing follows the last end of turn
        return Segment(ids, targets, task, lang)

    def languages_of(self, concept: int) -> list[str]:
        """The languages in which the concept has a name."""
        return [lang for lang in self.languages if self.named[lang][concept]]

    def negative(self, concept: int, partner: int, lang: str, rng: np.random.Generator) -> int:
        """A wrong concept named in `lang`: the one mixed in, a confusable one, or any."""
        draw = rng.random()
        near = self.concepts.confusable[concept]
        other = (
            partner
            if draw < 0.2
            else near[rng.integers(len(near))]
            if draw < 0.6
            else int(rng.integers(len(self.concepts)))
        )
        while other == concept or not self.named[lang][other]:
            other = int(rng.integers(len(self.concepts)))
        return other

    def sample(self, rng: np.random.Generator, concepts: np.ndarray) -> Batch:
        """One training batch: a row for each of `concepts` (indices)."""
        recipe = self.recipe
        kinds, kind_p = _weights(recipe.contexts)
        tasks, task_p = _weights(recipe.tasks)
        rows = []
        for concept in concepts.tolist():
            kind = kinds[rng.choice(len(kinds), p=kind_p)]
            near = self.concepts.confusable[concept]
            partner = near[rng.integers(len(near))]
            soft = None
            if kind == "soft":
                soft = self._soft(concept, partner, rng)
                context = [self.tokenizer.unk_token_id] * recipe.context_slots
            else:
                lang = recipe.pivot
                named = self.languages_of(concept)
                if kind != "pivot" and not (kind == "noisy" and rng.random() < 0.5):
                    lang = named[rng.integers(len(named))]
                context = self.context(kind, concept, lang, rng)
            room = recipe.row_tokens - len(self.prefix) - len(context)
            segments = []
            order = rng.permutation(self.languages_of(concept)).tolist()
            n = 0
            while True:
                lang = order[n % len(order)]
                n += 1
                task = tasks[rng.choice(len(tasks), p=task_p)]
                if task == "keywords" and not self.keyword[lang][concept]:
                    continue
                about = None
                if task in ("yesno", "chat") and rng.random() < 0.5:
                    about = self.negative(concept, partner, lang, rng)
                segment = self.segment(task, concept, lang, rng, about)
                if len(segment.ids) > room:
                    break
                segments.append(segment)
                room -= len(segment.ids)
            if segments:
                rows.append((context, soft, segments))
        return self.batch(rows)

    def _soft(
        self, concept: int, partner: int, rng: np.random.Generator
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        """(two concepts, (S, 2) weights, (S + 1,) noise sizes: one a slot, then the shared one)"""
        recipe, slots = self.recipe, self.recipe.context_slots
        share = rng.random() * recipe.soft_mixture if rng.random() < 0.5 else 0.0
        gain = np.exp(rng.normal(0, 0.3)) * rng.uniform(0.5, 1.5, slots)
        gain *= rng.random(slots) >= rng.random() * recipe.soft_dropout
        weights = np.stack([gain * (1 - share), gain * share], 1)
        noise = np.full(slots + 1, rng.random() * recipe.soft_slot_noise)
        noise[-1] = rng.random() * recipe.soft_shared_noise
        return [concept, partner], weights.astype(np.float32), noise.astype(np.float32)

    def batch(self, rows: list[tuple[list[int], Any, list[Segment]]]) -> Batch:
        """Lay rows of (context ids, soft description or None, segments) into tensors."""
        lengths = [
            len(self.prefix) + len(context) + sum(len(s.ids) for s in segments)
            for context, _, segments in rows
        ]
        width = max(lengths)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        number = np.full_like(ids, -1)
        at: list[int] = []
        target: list[int] = []
        weight: list[float] = []
        group: list[int] = []
        flat: list[Segment] = []
        soft_rows, soft_concepts, soft_weights, soft_noise = [], [], [], []
        for r, (context, soft, segments) in enumerate(rows):
            here = len(self.prefix) + len(context)
            ids[r, :here] = self.prefix + context
            positions[r, :here] = np.arange(here)
            number[r, :here] = 0
            if soft is not None:
                soft_rows.append(r)
                soft_concepts.append(soft[0])
                soft_weights.append(soft[1])
                soft_noise.append(soft[2])
            start = here
            for n, segment in enumerate(segments):
                stop = start + len(segment.ids)
                ids[r, start:stop] = segment.ids
                positions[r, start:stop] = np.arange(here, here + stop - start)
                number[r, start:stop] = n + 1
                for place, token, w in segment.targets:
                    at.append(r * width + start + place)
                    target.append(token)
                    weight.append(w)
                    group.append(len(flat))
                flat.append(segment)
                start = stop
        slots = self.recipe.context_slots
        return Batch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            segment=torch.from_numpy(number),
            soft_rows=torch.tensor(soft_rows, dtype=torch.long),
            soft_concepts=torch.tensor(soft_concepts, dtype=torch.long).reshape(-1, 2),
            soft_weights=torch.from_numpy(
                np.stack(soft_weights) if soft_rows else np.zeros((0, slots, 2), np.float32)
            ),
            soft_noise=torch.from_numpy(
                np.stack(soft_noise) if soft_rows else np.zeros((0, slots + 1), np.float32)
            ),
            at=torch.tensor(at),
            target=torch.tensor(target),
            weight=torch.tensor(weight),
            group=torch.tensor(group),
            segments=flat,
            context_length=[len(context) for context, _, _ in rows],
        )


def _weights(table: dict[str, float]) -> tuple[list[str], np.ndarray]:
    p = np.array(list(table.values()), dtype=np.float64)
    return list(table), p / p.sum()


# --------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------


def build_language_model(recipe: LanguageModelRecipe, end_of_turn: int) -> CohereForCausalLM:
    """A CohereForCausalLM with fresh weights; seeded by the recipe."""
    torch.manual_seed(recipe.seed)
    config = CohereConfig(
        vocab_size=recipe.embedding_rows,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        logit_scale=recipe.logit_scale,
        initializer_range=recipe.initializer_range,
        # CohereConfig's own default is 500,000; Aya-23's is 10,000, so it is written out.
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    model = CohereForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(recipe.output_initializer_scale)
            layer.mlp.down_proj.weight.mul_(recipe.output_initializer_scale)
    return model


def group_attention(segment: Tensor) -> Tensor:
    """(R, 1, L, L) bool, True where a position may look: back in its own segment, and at the context."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    own = segment[:, :, None] == segment[:, None, :]
    context = segment[:, None, :] == 0
    return (causal & (own | context))[:, None]


def hidden_states(model: CohereForCausalLM, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """The decoder's last hidden states, (R, L, D) from embeddings (R, L, D).

    The same numbers as `model.model(inputs_embeds=..., position_ids=..., attention_mask=...)` with
    one product for query, key, value, gate and up, and fused norms: the library's own forward
    spends a third of a small model's time in element-wise steps on a CPU.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    angle = positions[..., None].float() * model.model.rotary_emb.inv_freq
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]  # (R, L, 1, size / 2)
    rows, length, width = x.shape
    splits = [heads * size, kv_heads * size, kv_heads * size, *[config.intermediate_size] * 2]
    for layer in model.model.layers:
        attn, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        h = F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)
        weight = torch.cat(
            [
                attn.q_proj.weight,
                attn.k_proj.weight,
                attn.v_proj.weight,
                mlp.gate_proj.weight,
                mlp.up_proj.weight,
            ]
        )
        q, k, v, gate, up = F.linear(h, weight).split(splits, dim=-1)
        q = _rotate(q.reshape(rows, length, heads, size), turn)
        k = _rotate(k.reshape(rows, length, kv_heads, size), turn)
        v = v.reshape(rows, length, kv_heads, size).transpose(1, 2)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = a.transpose(1, 2).reshape(rows, length, heads * size)
        x = x + attn.o_proj(a) + mlp.down_proj(F.silu(gate) * up)
    norm = model.model.norm
    return F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Cohere's interleaved rotary embedding as a complex product: (R, L, H, S) to (R, H, L, S)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).transpose(1, 2)


def embed(model: CohereForCausalLM, batch: Batch, soft: Tensor, prefix: int, seed: int) -> Tensor:
    """Embeddings of a batch (R, L, D), soft contexts mixed from the table `soft` (C, D) laid in."""
    x = model.model.embed_tokens(batch.ids)
    rows = len(batch.soft_rows)
    if not rows:
        return x
    slots = batch.soft_weights.shape[1]
    size = soft.detach().pow(2).mean().sqrt()
    noise = torch.randn(
        rows, slots + 1, soft.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    noise = noise * batch.soft_noise[:, :, None] * size
    shared = soft[batch.soft_concepts]  # (rows, 2, D)
    laid = batch.soft_weights @ shared + noise[:, :slots] + noise[:, slots:]
    x = x.index_put((batch.soft_rows[:, None], torch.arange(prefix, prefix + slots)[None]), laid)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is orthogonalised (Jordan et al. 2024), in float32.

    torch.optim.Muon runs its Newton-Schulz iteration in bfloat16, which has no fast path on many
    CPUs. Matrices of one shape are stacked and iterated together.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    buffer = state["momentum_buffer"]
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                update = _orthogonal(torch.stack(updates))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * scale)


def _orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Quintic Newton-Schulz towards the nearest (semi-)orthogonal matrices; g: (N, A, B)."""
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


# --------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------


class _Learner:
    """Model, soft vectors and optimisers; one step is a pure function of (state, step number)."""

    def __init__(self, model: CohereForCausalLM, corpus: Corpus):
        recipe = corpus.recipe
        self.model, self.corpus, self.recipe = model, corpus, recipe
        self.soft = nn.Parameter(_initial_soft(model, corpus))
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in model.model.layers.parameters() if p.ndim != 2]
        others += [model.model.norm.weight, model.model.embed_tokens.weight, self.soft]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, recipe.muon_learning_rate, 0.95, recipe.weight_decay),
            torch.optim.AdamW(others, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [recipe.muon_learning_rate, recipe.learning_rate]
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss and the answer-token counts it was made of."""
        recipe = self.recipe
        batch = self.corpus.sample(
            np.random.default_rng((recipe.seed, 1, self.step)), self._concepts()
        )
        loss, _ = answer_loss(self.model, self.corpus, batch, self.soft, self.step)
        loss.backward()
        rate = schedule(self.step, recipe)
        for optimizer, top in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = top * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "questions": len(batch.segments),
            "tokens": int((batch.segment >= 0).sum()),
            "cells": batch.ids.numel(),
        }

    def _concepts(self) -> np.ndarray:
        """The concepts of this step: every epoch is one shuffle of all."""
        rows, count = self.recipe.rows_per_step, len(self.corpus.concepts)
        wanted = np.arange(self.step * rows, (self.step + 1) * rows)
        return np.concatenate(
            [
                np.random.default_rng((self.recipe.seed, 2, int(epoch))).permutation(count)[
                    wanted[wanted // count == epoch] % count
                ]
                for epoch in np.unique(wanted // count)
            ]
        )

    # Checkpoint: tensors and a step number; the random draws follow from seed and step.

    def save(self, path: Path, key: str, seconds: float) -> None:
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors["soft"] = self.soft.detach()
        for o, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer.{o}.{i}.{name}"] = value
        tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
        part = path.with_suffix(".part")
        save_file(
            tensors, part, metadata={"step": str(self.step), "key": key, "seconds": str(seconds)}
        )
        os.replace(part, path)

    def load(self, path: Path, key: str) -> float | None:
        """Continue from `path` if the same recipe and texts made it; returns the seconds spent."""
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as f:
            meta = f.metadata()
            if meta["key"] != key:
                return None
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
            self.soft.copy_(tensors["soft"])
        for o, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for name, value in tensors.items():
                parts = name.split(".")
                if parts[0] == "optimizer" and int(parts[1]) == o:
                    state[int(parts[2])][parts[3]] = value
            whole = optimizer.state_dict()
            whole["state"] = dict(state)
            optimizer.load_state_dict(whole)
        self.step = int(meta["step"])
        return float(meta["seconds"])


def schedule(step: int, recipe: LanguageModelRecipe) -> float:
    """Warm up, hold, then fall linearly to zero; as a factor of the top rate."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    fall = int(recipe.steps * recipe.hold)
    return 1.0 if step < fall else max(0.0, (recipe.steps - step) / max(1, recipe.steps - fall))


def _initial_soft(model: CohereForCausalLM, corpus: Corpus) -> Tensor:
    """Soft vectors start as the sum of the embeddings of the names in all languages."""
    table = model.model.embed_tokens.weight.detach()
    vectors = torch.stack(
        [
            torch.stack([table[corpus.name[x][i]].mean(0) for x in corpus.languages_of(i)]).sum(0)
            for i in range(len(corpus.concepts))
        ]
    )
    return vectors * (table.std() / vectors.std())


def answer_loss(
    model: CohereForCausalLM, corpus: Corpus, batch: Batch, soft: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """(weighted mean loss over the answer tokens, logits (N, V) of just those)."""
    x = embed(model, batch, soft, len(corpus.prefix), seed)
    h = hidden_states(model, x, batch.positions, group_attention(batch.segment))
    h = h.reshape(-1, h.shape[-1])[batch.at]
    logits = F.linear(h, model.model.embed_tokens.weight) * model.config.logit_scale
    losses = F.cross_entropy(logits, batch.target, reduction="none")
    return (losses * batch.weight).sum() / batch.weight.sum(), logits


# --------------------------------------------------------------------------------------------
# What it learned
# --------------------------------------------------------------------------------------------

PROBES = (
    "name from the pivot name",
    "name from another language's name",
    "name from keywords",
    "name from a soft context",
    "category from the pivot name",
    "category from a soft context",
    "yes/no from the pivot name",
    "yes/no from a soft context",
    "keywords from the pivot name",
)


@torch.no_grad()
def score(
    model: CohereForCausalLM, corpus: Corpus, soft: Tensor, concepts: list[int], seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Greedy exact match {probe: {language: {"exact": share, "n": questions}}}.

    An answer counts only if every token of it, its end of turn included, is the most likely one
    given the tokens before it: exactly the answers that greedy decoding gives. Yes/no asks of
    every concept its own name and one confusable name. The soft contexts carry noise of half the
    training's largest size, no mixture.
    """
    rng = np.random.default_rng((seed, 3))
    right: dict[str, dict[str, list[bool]]] = {p: defaultdict(list) for p in PROBES}
    recipe, slots = corpus.recipe, corpus.recipe.context_slots
    for probe in PROBES:
        task, _, source = probe.partition(" from ")
        task = {"yes/no": "yesno"}.get(task, task)
        rows = []
        for concept in concepts:
            near = corpus.concepts.confusable[concept]
            wrong = near[rng.integers(len(near))]
            named = rng.permutation(corpus.languages_of(concept)).tolist()
            for langs in (named[: len(named) // 2], named[len(named) // 2 :]):
                described: Any = None
                context = [corpus.tokenizer.unk_token_id] * slots
                if source == "a soft context":
                    noise = np.full(slots + 1, 0.5 * recipe.soft_slot_noise, np.float32)
                    noise[-1] = 0.5 * recipe.soft_shared_noise
                    weights = np.tile(np.array([[1.0, 0.0]], np.float32), (slots, 1))
                    described = ([concept, concept], weights, noise)
                else:
                    lang, kind = recipe.pivot, "pivot"
                    if source == "another language's name":
                        others = [x for x in named if x not in langs] or langs
                        lang = others[rng.integers(len(others))]
                    elif source == "keywords":
                        lang, kind = langs[0], "keywords"
                    context = corpus.context(kind, concept, lang, rng)
                segments = [
                    corpus.segment(task, concept, x, rng, about)
                    for x in langs
                    for about in ((concept, wrong) if task == "yesno" else (None,))
                    if about is None or corpus.named[x][about]
                ]
                if segments:
                    rows.append((context, described, segments))
        for start in range(0, len(rows), 32):
            batch = corpus.batch(rows[start : start + 32])
            _, logits = answer_loss(model, corpus, batch, soft, seed + start)
            hit = (logits.argmax(-1) == batch.target).long()
            whole = torch.ones(len(batch.segments), dtype=torch.long)
            whole.scatter_reduce_(0, batch.group, hit, "amin")
            for segment, good in zip(batch.segments, whole.tolist(), strict=True):
                right[probe][segment.lang].append(bool(good))
    return {
        probe: {
            lang: {"exact": float(np.mean(found)), "n": len(found)}
            for lang, found in sorted(by.items(), key=lambda x: corpus.languages.index(x[0]))
        }
        for probe, by in right.items()
    }


def score_table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """The scores as a text table, a probe a line and a language a column, in percent."""
    langs = list(next(iter(scores.values())))
    lines = [f"{'exact match, %':36s}" + "".join(f"{x:>6s}" for x in [*langs, "mean", "n"])]
    for probe, by in scores.items():
        values = [100 * by[lang]["exact"] for lang in langs]
        cells = "".join(f"{v:6.1f}" for v in [*values, float(np.mean(values))])
        lines.append(f"{probe:36s}{cells}{sum(int(b['n']) for b in by.values()):6d}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.safetensors"


def train_language_model(recipe: LanguageModelRecipe, output_dir: Path) -> Path:
    """Train a tokenizer and a decoder, score them, and save both with metrics.json.

    The folder loads with AutoModelForCausalLM and AutoTokenizer. While it trains, the folder holds
    only a checkpoint, from which the same command with the same recipe and texts continues.

    Raises:
        FileNotFoundError: the dataset or the prompts are not there.
        ValueError: they lack something, or the output folder already holds a model.
    """
    output_dir = Path(output_dir)
    if (output_dir / "config.json").exists():
        raise ValueError(f"{output_dir} already holds a model: choose another folder or remove it")
    dataset = Path(recipe.dataset) if recipe.dataset else SHIPPED_DATASET
    concepts = read_concepts(dataset, recipe.languages, recipe.pivot)
    prompts = read_prompts(Path(recipe.prompts) if recipe.prompts else PROMPTS, recipe.languages)
    print(
        f"{len(concepts)} concepts in {len(recipe.languages)} languages; "
        f"{concepts.held_out} held out; names missing: {sum(concepts.missing.values())}",
        flush=True,
    )
    tokenizer = train_tokenizer(
        tokenizer_texts(concepts, prompts, recipe),
        recipe.vocab_size,
        load_chat_template("aya"),
    )
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    model = build_language_model(recipe, corpus.end)
    learner = _Learner(model, corpus)
    key = _fingerprint(recipe, concepts, prompts)
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = output_dir / CHECKPOINT
    spent = learner.load(checkpoint, key)
    if spent is not None:
        print(f"continuing from {checkpoint} at step {learner.step}", flush=True)
    seconds = _run_steps(learner, checkpoint, key, spent or 0.0)

    # Score what is shipped: the weights after rounding to the storage type.
    dtype = getattr(torch, recipe.storage_dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())
    chosen = np.random.default_rng((recipe.seed, 4)).permutation(len(concepts))
    chosen = np.sort(chosen[: recipe.evaluate_concepts or len(concepts)]).tolist()
    scores = score(model, corpus, learner.soft.detach(), chosen, recipe.seed)
    print(score_table(scores), flush=True)
    metrics = {
        "recipe": dataclasses.asdict(recipe) | {"dataset": None, "prompts": None},
        "data": {
            "fingerprint": key,
            "concepts": len(concepts),
            "held_out": concepts.held_out,
            "names_missing": concepts.missing,
        },
        "parameters": model.num_parameters(),
        "tokens_per_name": {
            lang: round(float(np.mean([len(t) for t in corpus.name[lang] if t])), 2)
            for lang in recipe.languages
        },
        "scores": scores,
        "concepts_scored": len(chosen),
        "training_seconds": round(seconds, 1),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "seed": recipe.seed,
    }
    _save(output_dir, model, tokenizer, dtype, metrics)
    checkpoint.unlink(missing_ok=True)
    return output_dir


def _run_steps(learner: _Learner, checkpoint: Path, key: str, spent: float) -> float:
    """Train to the recipe's last step; returns the seconds of all runs together."""
    recipe = learner.recipe
    started = time.monotonic() - spent
    first, losses = learner.step, []
    questions = 0
    learner.model.train()
    while learner.step < recipe.steps:
        done = learner.train_step()
        if not math.isfinite(done["loss"]):
            raise FloatingPointError(
                f"loss is {done['loss']} at step {learner.step}: lower the rates"
            )
        losses.append(done["loss"])
        questions += int(done["questions"])
        if learner.step % 100 == 0 or learner.step == recipe.steps:
            now = time.monotonic() - started
            pace = (now - spent) / (learner.step - first)
            print(
                f"step {learner.step}/{recipe.steps}  loss {np.mean(losses):.4f}  "
                f"{questions / (now - spent):.0f} questions/s  "
                f"{pace * (recipe.steps - learner.step):.0f} s left",
                flush=True,
            )
            losses = []
        if learner.step % recipe.checkpoint_every == 0:
            learner.save(checkpoint, key, time.monotonic() - started)
    return time.monotonic() - started


def _fingerprint(recipe: LanguageModelRecipe, concepts: Concepts, prompts: dict[str, Any]) -> str:
    """Hash of everything a run depends on; a checkpoint of another run is not continued."""
    values = dataclasses.asdict(recipe) | {
        "dataset": None,
        "prompts": None,
        "checkpoint_every": None,
    }
    text = json.dumps([values, dataclasses.asdict(concepts), prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(
    folder: Path,
    model: CohereForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    metrics: dict[str, Any],
) -> None:
    """Write everything beside the folder first, then move it in, config.json last."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(dtype).save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):
        os.replace(file, folder / file.name)
    part.rmdir()
