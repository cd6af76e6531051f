"""transformers text-classification models that give the probability that a text is toxic.

transformers' own defaults would mislead here: they return the top label only, put a softmax over
the labels of a model that does not say it is multi-label, and fail on long texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Activation = Literal["softmax", "sigmoid"]


class TextClassifier:
    """A transformers text-classification model.

    A text longer than the model reads is judged in overlapping pieces: nothing at its end goes unread.

    Args:
        model, revision: a Hub repository and its commit, or a folder.
        toxic: the labels that mean toxic, by name or index. Under softmax their probabilities add up,
            under sigmoid the largest counts.
        activation: "softmax" for labels that exclude each other, "sigmoid" for labels that do not; there
            is no default, since models seldom say it.
        max_length: tokens; needed where the tokenizer does not say what its model takes.
    """

    def __init__(
        self,
        model: str,
        toxic: Sequence[str | int],
        activation: Activation,
        *,
        revision: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.model, self.revision, self.toxic = model, revision, list(toxic)
        self.activation, self.batch_size, self.max_length = activation, batch_size, max_length
        self.device, self.dtype, self.trust_remote_code = device, dtype, trust_remote_code
        # The commit that a branch led to, where the model came from the Hub and is loaded.
        self.commit: str | None = None
        self._pipeline: Any = None
        self._toxic: list[str] = []

    def load(self) -> None:
        """Read the model. Raises ValueError, in one line, for labels that this activation does not fit."""
        from transformers import pipeline

        self._pipeline = pipeline(
            "text-classification",
            model=self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype or "auto",
            trust_remote_code=self.trust_remote_code,
        )
        config, tokenizer = self._pipeline.model.config, self._pipeline.tokenizer
        self.commit = getattr(config, "_commit_hash", None)
        labels = {int(n): str(label) for n, label in config.id2label.items()}
        for wanted in self.toxic:
            if wanted not in labels and wanted not in labels.values():
                raise ValueError(
                    f"{self.model}: toxic: {wanted!r} is none of its labels; they are "
                    + ", ".join(f"{n}: {label!r}" for n, label in labels.items())
                )
        self._toxic = [labels[t] if isinstance(t, int) else t for t in self.toxic]
        problem = getattr(config, "problem_type", None)
        if self.activation == "softmax" and (
            problem == "multi_label_classification" or len(labels) == 1
        ):
            raise ValueError(
                f"{self.model}: activation: softmax over {len(labels)} labels"
                + (" that do not exclude each other" if len(labels) > 1 else " is always 1")
                + "; use sigmoid"
            )
        if self.activation == "sigmoid" and problem == "single_label_classification":
            raise ValueError(
                f"{self.model}: activation: its labels exclude each other "
                f"(problem_type {problem!r}); use softmax"
            )
        if self.max_length is None and tokenizer.model_max_length > 1_000_000:
            raise ValueError(
                f"{self.model}: its tokenizer does not say how many tokens the model takes; set "
                "max_length"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"{self.model}: its tokenizer is a slow one, which cannot cut long texts into "
                "pieces; use a model with a tokenizer.json"
            )

    def release(self) -> None:
        """Let go of the model."""
        self._pipeline = None

    @property
    def _limit(self) -> int:
        """Tokens that the model takes at once, special ones included."""
        known = self._pipeline.tokenizer.model_max_length
        return min(self.max_length or known, known)

    def pieces(self, text: str) -> list[str]:
        """The text in overlapping pieces that fit the model; mostly the text itself.

        A piece cut out may have a token more than it had inside the text, so there is some room.
        """
        tokenizer = self._pipeline.tokenizer
        room = self._limit - tokenizer.num_special_tokens_to_add()
        spans = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False
        )["offset_mapping"]
        if len(spans) <= room:
            return [text]
        overlap = min(32, room // 4)
        size = room - overlap // 2
        starts = [*range(0, len(spans) - size, size - overlap), len(spans) - size]
        return [text[spans[s][0] : spans[s + size - 1][1]] for s in starts]

    def probabilities(self, texts: Sequence[str]) -> list[list[dict[str, float]]]:
        """Of each text, of each of its pieces: label -> probability."""
        pieces = [(n, piece) for n, text in enumerate(texts) for piece in self.pieces(text)]
        answers = self._pipeline(
            [piece for _, piece in pieces],
            top_k=None,
            function_to_apply=self.activation,
            truncation=True,
            max_length=self._limit,
            batch_size=self.batch_size,
        )
        found: list[list[dict[str, float]]] = [[] for _ in texts]
        for (n, _), scores in zip(pieces, answers, strict=True):
            found[n].append({each["label"]: each["score"] for each in scores})
        return found

    def read(self, scores: Mapping[str, float]) -> tuple[float, str] | None:
        """The probability that a piece is toxic and the likeliest toxic label; None for no probabilities.

        A model in half precision may give no number.
        """
        if not all(0 <= value <= 1 + 1e-6 for value in scores.values()):
            return None
        toxic = {label: scores[label] for label in self._toxic}
        score = sum(toxic.values()) if self.activation == "softmax" else max(toxic.values())
        return score, max(toxic, key=toxic.__getitem__)
