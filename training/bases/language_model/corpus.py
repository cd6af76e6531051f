"""Training rows of one context and many questions, made from the texts of the concepts.

A context describes one concept, at the positions of a Maya's image tokens; train.py explains why.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .concepts import Concepts
from .recipe import LanguageModelRecipe
from .tokenizer import CHATBOT, CONTROL_TOKENS, END_OF_TURN, START_OF_TURN, USER


@dataclass
class Segment:
    """One question (or two-turn chat) with its answer; only answers have a loss."""

    ids: list[int]
    targets: list[tuple[int, int, float]]  # (position in ids, next token, weight)
    task: str
    lang: str
    # (index where a question that states a name ends and its answer starts; the named concept)
    stated: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Batch:
    """Rows of at most `row_tokens`, padded at the end: R rows, L positions, S slots, N answer tokens."""

    ids: Tensor  # (R, L) int64
    positions: Tensor  # (R, L) int64
    segment: Tensor  # (R, L) int64: 0 for the context, 1 and up for questions, -1 for padding
    soft_rows: Tensor  # (Q,) rows with a soft context
    soft_concepts: Tensor  # (Q, 2) the two concepts mixed in a soft context
    soft_weights: Tensor  # (Q, S, 2) float32, the concepts' weights in every slot
    soft_noise: Tensor  # (Q, S + 1) float32, noise sizes: one per slot, then the shared one
    at: Tensor  # (N,) into R*L, positions that predict an answer token
    target: Tensor  # (N,) the answer tokens
    weight: Tensor  # (N,) weights of their losses
    group: Tensor  # (N,) index into `segments`
    # (M,) into R*L: the last tokens of text contexts and of questions that state a name, and the first
    # positions of the answers to these questions.
    code_at: Tensor
    code_of: Tensor  # (M,) the concepts named there
    claim_at: Tensor  # (K,) positions of `code_at` that state something about a soft context
    claim_true: Tensor  # (K,) float32, whether the statement is true
    segments: list[Segment]


# List separators by language; the default is ", ".
_SEPARATORS = {"zh": "、", "ja": "、", "ar": "، ", "ur": "، "}
_CHATS: tuple[tuple[str, ...], ...] = (
    ("category", "name"),
    ("name", "category"),
    ("category", "yesno"),
    ("yesno", "name"),
    ("yesno", "category"),
)


class Corpus:
    """All texts as token ids, and random rows made from them."""

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
        self.first_text = len(CONTROL_TOKENS)
        self.comma = self._encode([", "])[0]
        # Token ids by language, and by concept if the text differs between concepts.
        self.name: dict[str, list[list[int]]] = {}
        self.listed: dict[str, list[list[int]]] = {}  # keywords as one answer
        self.keyword: dict[str, list[list[list[int]]]] = {}
        self.category: dict[str, dict[str, list[int]]] = {}
        self.question: dict[str, dict[str, list[list[int]]]] = {}  # task -> wordings
        self.stated: dict[str, list[list[list[int]]]] = {}  # wording -> about each concept
        self.yes: dict[str, list[int]] = {}
        self.no: dict[str, list[int]] = {}
        self.named: dict[str, np.ndarray] = {}  # bool [concepts]
        for lang in self.languages:
            asked, names = prompts[lang], concepts.names[lang]
            keywords, comma = concepts.keywords[lang], _SEPARATORS.get(lang, ", ")
            kinds = concepts.category_names[lang]
            self.name[lang] = self._encode(names)
            self.listed[lang] = self._encode(
                [comma.join(words[: recipe.keyword_count]) for words in keywords]
            )
            self.keyword[lang] = [self._encode(words) for words in keywords]
            self.category[lang] = dict(zip(kinds, self._encode(list(kinds.values())), strict=True))
            self.question[lang] = {
                task: self._encode(asked[task]) for task in ("name", "category", "keywords")
            }
            self.stated[lang] = [
                self._encode([wording.replace("{name}", name) for name in names])
                for wording in asked["yesno"]
            ]
            self.yes[lang], self.no[lang] = self._encode([asked["yes"], asked["no"]])
            self.named[lang] = np.array([bool(name) for name in names])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    # Contexts. The ids of a soft context are unknown tokens, whose embeddings are replaced by vectors.

    def context(self, kind: str, concept: int, lang: str, rng: np.random.Generator) -> list[int]:
        """Return token ids of a text context, at most `context_slots` tokens."""
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
        # noisy: names in one or two languages (or keywords), some dropped, at random places in filler
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
        laid: np.ndarray = np.zeros(len(keep) + len(filler), dtype=np.int64)
        places = np.sort(rng.permutation(len(laid))[: len(keep)])
        mask: np.ndarray = np.zeros(len(laid), dtype=bool)
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
        """Build a question about `concept`; for yesno `about` is the stated concept."""
        made = Segment([], [], task, lang)
        for turn in _CHATS[rng.integers(len(_CHATS))] if task == "chat" else (task,):
            weight, named = 1.0, None
            if turn == "yesno":
                stated = self.stated[lang][rng.integers(len(self.stated[lang]))]
                about = concept if about is None else about
                question, named = stated[about], about
                answer = self.yes[lang] if about == concept else self.no[lang]
                weight = self.recipe.yesno_loss
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
            for part in ([*(self.to_question if made.ids else []), *question], self.to_answer):
                made.ids += part
                if named is not None:
                    made.stated.append((len(made.ids) - 1, named))
            for target in [*answer, self.end]:
                made.targets.append((len(made.ids) - 1, target, weight))
                made.ids.append(target)
        del made.ids[-1]  # no turn follows the last end of turn
        return made

    def languages_of(self, concept: int) -> list[str]:
        """Return the languages in which the concept has a name."""
        return [lang for lang in self.languages if self.named[lang][concept]]

    def negative(
        self,
        concept: int,
        partner: int,
        lang: str,
        rng: np.random.Generator,
        difficulty: float = 1.0,
    ) -> int:
        """Return a wrong concept with a name in `lang`; confusable ones are likelier at high difficulty."""
        draw = rng.random()
        near = self.concepts.confusable[concept]
        other = (
            partner
            if draw < 0.15 * difficulty
            else near[rng.integers(len(near))]
            if draw < 0.75 * difficulty
            else int(rng.integers(len(self.concepts)))
        )
        while other == concept or not self.named[lang][other]:
            other = int(rng.integers(len(self.concepts)))
        return other

    def sample(
        self, rng: np.random.Generator, concepts: np.ndarray, difficulty: float = 1.0
    ) -> Batch:
        """Draw one training batch.

        Args:
            concepts: indices, one per row.
            difficulty: from 0 to 1; scales the weight of yes/no and the disturbance of soft contexts.
        """
        recipe = self.recipe
        kinds, kind_p = _weights(recipe.contexts)
        tasks, task_p = _weights(
            {t: w * (difficulty if t == "yesno" else 1.0) for t, w in recipe.tasks.items()}
        )
        rows = []
        described: list[int | None] = []
        for concept in concepts.tolist():
            kind = kinds[rng.choice(len(kinds), p=kind_p)]
            near = self.concepts.confusable[concept]
            partner = near[rng.integers(len(near))]
            soft = None
            if kind == "soft":
                soft = self._soft(concept, partner, rng, difficulty)
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
                    about = self.negative(concept, partner, lang, rng, difficulty)
                segment = self.segment(task, concept, lang, rng, about)
                if len(segment.ids) > room:
                    break
                segments.append(segment)
                room -= len(segment.ids)
            if segments:
                rows.append((context, soft, segments))
                described.append(None if soft is not None else concept)
        return self.batch(rows, described)

    def _soft(
        self, concept: int, partner: int, rng: np.random.Generator, difficulty: float
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return (two concepts, (S, 2) weights, (S + 1,) noise sizes: one per slot, then the shared one)."""
        recipe, slots = self.recipe, self.recipe.context_slots
        share = difficulty * rng.random() * recipe.soft_mixture if rng.random() < 0.5 else 0.0
        gain = np.exp(rng.normal(0, 0.3)) * rng.uniform(0.5, 1.5, slots)
        gain *= rng.random(slots) >= rng.random() * recipe.soft_dropout * difficulty
        weights = np.stack([gain * (1 - share), gain * share], 1)
        noise = np.full(slots + 1, rng.random() * recipe.soft_slot_noise)
        noise[-1] = rng.random() * recipe.soft_shared_noise
        noise *= difficulty
        return [concept, partner], weights.astype(np.float32), noise.astype(np.float32)

    def batch(
        self,
        rows: list[tuple[list[int], Any, list[Segment]]],
        described: list[int | None] | None = None,
    ) -> Batch:
        """Arrange rows as tensors.

        Args:
            rows: (context ids, result of `_soft` or None, segments).
            described: for each row, the concept whose code is read from its text context, or None.
        """
        # Empty rows.
        lengths = [
            len(self.prefix) + len(context) + sum(len(s.ids) for s in segments)
            for context, _, segments in rows
        ]
        width = max(lengths)
        ids: np.ndarray = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        number = np.full_like(ids, -1)
        answers: list[tuple[int, int, float, int]] = []  # place, token, weight, segment
        codes: list[tuple[int, int]] = []  # place, concept
        claims: list[tuple[int, float]] = []  # place, truth
        soft_rows: list[int] = []
        flat: list[Segment] = []
        # Fill rows with contexts and questions.
        for r, (context, soft, segments) in enumerate(rows):
            here = len(self.prefix) + len(context)
            ids[r, :here] = self.prefix + context
            positions[r, :here] = np.arange(here)
            number[r, :here] = 0
            if soft is not None:
                soft_rows.append(r)
            concept = described[r] if described else None
            if concept is not None:
                codes.append((r * width + here - 1, concept))
            start = here
            for n, segment in enumerate(segments):
                stop = start + len(segment.ids)
                ids[r, start:stop] = segment.ids
                positions[r, start:stop] = np.arange(here, here + stop - start)
                number[r, start:stop] = n + 1
                first = r * width + start
                answers += [(first + at, token, w, len(flat)) for at, token, w in segment.targets]
                codes += [(first + at, named) for at, named in segment.stated]
                if soft is not None:
                    claims += [(first + at, float(c == soft[0][0])) for at, c in segment.stated]
                flat.append(segment)
                start = stop
        # Tensors.
        slots = self.recipe.context_slots
        concepts, weights, noise = ([rows[r][1][part] for r in soft_rows] for part in range(3))
        return Batch(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            segment=torch.from_numpy(number),
            soft_rows=torch.tensor(soft_rows, dtype=torch.long),
            soft_concepts=torch.tensor(concepts, dtype=torch.long).reshape(-1, 2),
            soft_weights=torch.from_numpy(np.array(weights, np.float32).reshape(-1, slots, 2)),
            soft_noise=torch.from_numpy(np.array(noise, np.float32).reshape(-1, slots + 1)),
            at=torch.tensor([place for place, *_ in answers]),
            target=torch.tensor([token for _, token, *_ in answers]),
            weight=torch.tensor([weight for _, _, weight, _ in answers]),
            group=torch.tensor([segment for *_, segment in answers]),
            code_at=torch.tensor([place for place, _ in codes], dtype=torch.long),
            code_of=torch.tensor([concept for _, concept in codes], dtype=torch.long),
            claim_at=torch.tensor([place for place, _ in claims], dtype=torch.long),
            claim_true=torch.tensor([truth for _, truth in claims]),
            segments=flat,
        )


def _weights(table: dict[str, float]) -> tuple[list[str], np.ndarray]:
    p = np.array(list(table.values()), dtype=np.float64)
    return list(table), p / p.sum()
