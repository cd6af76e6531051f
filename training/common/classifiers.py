"""Text classifiers (transformers) that return the probability that a text is toxic.

The defaults of transformers' pipeline do not fit here: it returns only the top label, applies softmax
unless the model's config says multi-label, and fails on long texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Activation = Literal["softmax", "sigmoid"]


class TextClassifier:
    """A transformers text-classification model.

    A text longer than the model's input is split into overlapping pieces, so all of it is classified.

    Args:
        model, revision: a Hub repository and its commit, or a folder.
        toxic: the labels that mean toxic, by name or index. With softmax their probabilities are summed;
            with sigmoid the largest one counts.
        activation: "softmax" for mutually exclusive labels, "sigmoid" for independent labels. There is
            no default, because few models declare it.
        max_length: in tokens; required if the tokenizer does not state the model's limit.
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
        # The commit that the revision resolved to; set when a model from the Hub is loaded.
        self.commit: str | None = None
        self._pipeline: Any = None
        self._toxic: list[str] = []

    def load(self) -> None:
        """Load the model. Raises ValueError (one line) if its labels or tokenizer do not fit."""
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
                    f"{self.model}: toxic: expected a label of the model, found {wanted!r}: use one of "
                    + ", ".join(f"{n}: {label!r}" for n, label in labels.items())
                )
        self._toxic = [labels[t] if isinstance(t, int) else t for t in self.toxic]
        problem = getattr(config, "problem_type", None)
        if self.activation == "softmax" and (
            problem == "multi_label_classification" or len(labels) == 1
        ):
            raise ValueError(
                f"{self.model}: activation: expected sigmoid, found softmax over {len(labels)} labels"
                + (" that are not mutually exclusive" if len(labels) > 1 else ", which is always 1")
                + ": use sigmoid"
            )
        if self.activation == "sigmoid" and problem == "single_label_classification":
            raise ValueError(
                f"{self.model}: activation: expected softmax for mutually exclusive labels "
                f"(problem_type {problem!r}), found sigmoid: use softmax"
            )
        if self.max_length is None and tokenizer.model_max_length > 1_000_000:
            raise ValueError(
                f"{self.model}: expected a tokenizer with the model's longest input, found none: set "
                "max_length, in tokens"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"{self.model}: expected a fast tokenizer, which can split long texts, found a slow one: "
                "use a model with a tokenizer.json"
            )

    def release(self) -> None:
        """Free the model's memory."""
        self._pipeline = None

    @property
    def _limit(self) -> int:
        """Longest input of the model in tokens, special tokens included."""
        known = self._pipeline.tokenizer.model_max_length
        return min(self.max_length or known, known)

    def pieces(self, text: str) -> list[str]:
        """Split a text into overlapping pieces that fit the model; a short text is one piece.

        A piece may have one token more than it had inside the text, so pieces are a little shorter than
        the limit.
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
        """Return label -> probability for every piece of every text."""
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
        """Return the probability that a piece is toxic, and the most probable toxic label.

        Returns None if a score is not a probability: a model in half precision may return NaN.
        """
        if not all(0 <= value <= 1 + 1e-6 for value in scores.values()):
            return None
        toxic = {label: scores[label] for label in self._toxic}
        score = sum(toxic.values()) if self.activation == "softmax" else max(toxic.values())
        return score, max(toxic, key=toxic.__getitem__)
