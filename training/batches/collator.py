"""Make the batches of a rank: read, tokenize and pack each step's groups, and add their pixels.

Rows that cannot be trained on (a truncated image, an empty text, too many tokens) either stop the run with
the row's name, or are skipped, counted and listed. The recipe's policies decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..common.signals import ignore_foreign_sigterm
from ..common.telling import one_line
from ..model.attention import AttentionBackend
from ..model.templates import find_template
from ..rows.tables import row_name
from .packing import Encoded, Packed, balance_rows, lay_out, pack_group
from .source import Conversation, GroupSource, RowName

# Limit on tokenized conversations kept in memory, about a kilobyte each.
KEPT = 1 << 19


@dataclass(frozen=True)
class BadRow(RowName):
    """A row that the run skipped or shortened, and the reason."""

    reason: str
    action: Literal["skipped", "shortened"]


class LongRow(ValueError):
    """A conversation is longer than max_length, and the recipe's policy is "stop"."""


class GroupCollator:
    """Collator that turns one share of a step, {"step", "rank"}, into the rows that this rank computes.

    A step is the next `batch_size` groups of `plan`. `packing.balance_rows` divides it among ranks, so the
    groups of a step, and therefore the result, do not depend on the number of processes.

    Conversations are tokenized once and cached, except those of streams. Images are read and processed
    each time.

    Args:
        plan: the result of `data.plan`.
        ranks: number of processes that share a step.
        max_length: most real tokens of a row, and so of a conversation; None for no limit.
        on_bad_row: policy for a row that cannot be read or has nothing to learn.
        on_long_row: policy for a conversation longer than max_length. "shorten" cuts its end but never an
            image; if nothing to learn remains, the row is skipped.

    Raises:
        ValueError: naming the row, if a policy is "stop".
    """

    def __init__(
        self,
        data: GroupSource,
        processor: Any,
        *,
        attention: AttentionBackend = "segments",
        max_length: int | None = None,
        plan: Sequence[tuple[int, np.ndarray]] = (),
        batch_size: int = 1,
        ranks: int = 1,
        on_bad_row: Literal["stop", "skip"] = "stop",
        on_long_row: Literal["stop", "skip", "shorten"] = "stop",
    ):
        self.data = data
        self.processor = processor
        self.attention: AttentionBackend = attention
        self.max_length = max_length
        self.plan = plan
        self.batch_size = batch_size
        self.ranks = ranks
        self.on_bad_row = on_bad_row
        self.on_long_row = on_long_row
        self.image_token = processor.image_token_id
        self.pad_token = processor.tokenizer.pad_token_id or 0
        self.templates = [
            find_template(name, processor.tokenizer, processor.image_token).text
            if (name := s.recipe.chat_template)
            else None
            for s in data.sources
        ]
        self._languages = {name: number for number, name in enumerate(data.languages)}
        self._encoded: dict[int, Encoded | BadRow] = {}
        self._shortened: dict[int, BadRow] = {}
        self._outlives = (
            False  # whether this loader's worker already ignores signals meant for the rank
        )

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return {"rows": list of dicts of tensors as from `lay_out`, "bad_rows": list of BadRow}.

        In a worker of a loader, bad input returns {"error": exception} instead of raising it. A row with
        images also has `pixel_values`, the distinct images, and `image_index`, the index into them of
        each block of image tokens.
        """
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker and not self._outlives:
            ignore_foreign_sigterm()
            self._outlives = True
        try:
            return self._share(items)
        except (ValueError, OSError) as error:
            if not in_worker:
                raise
            # A loader would wrap the exception in the worker's traceback. The trainer raises it unchanged
            # at the step it belongs to.
            return {"error": error}

    def _share(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (item,) = items
        step, rank = item["step"], item["rank"]
        groups = self.plan[step * self.batch_size : (step + 1) * self.batch_size]
        if self.data.streamed:
            self._encoded.clear()
            self._shortened.clear()
        bad: list[BadRow] = []
        trees: list[Packed] = []
        for _, part in groups:
            encoded = []
            for index in part.tolist():
                found = self._usable(index)
                if isinstance(found, BadRow) or index in self._shortened:
                    # Every rank tokenizes the whole step; only rank 0 reports.
                    note = found if isinstance(found, BadRow) else self._shortened[index]
                    if rank == 0:
                        bad.append(note)
                if isinstance(found, Encoded):
                    encoded.append(found)
            if encoded:
                trees += pack_group(encoded, self.image_token, self.max_length)
        shares = balance_rows([len(tree) for tree in trees], self.ranks, self.max_length)
        rows = [self._row([trees[i] for i in row], bad) for row in shares[rank]]
        return {"rows": rows, "bad_rows": bad}

    def _row(self, trees: Sequence[Packed], bad: list[BadRow]) -> dict[str, Any]:
        packed: list[Packed] = []
        pixels: dict[tuple, torch.Tensor] = {}
        shown: list[tuple] = []
        for tree in trees:
            first = tree.encoded[0]
            names = [(first.source, key) for key in first.images]
            try:
                new = {
                    name: self._pixels(first, key)
                    for name, key in zip(names, first.images, strict=True)
                    if name not in pixels
                }
            except ValueError as error:
                if self.on_bad_row == "stop":
                    raise
                bad += [self._bad_row(e.index, str(error)) for e in tree.encoded]
                continue
            packed.append(tree)
            pixels |= new
            shown += names
        if not packed:
            # A rank without data still takes part in the step, with one token and nothing to learn.
            packed = [Packed(np.array([self.pad_token], np.int32), [], [])]
            assert not pixels
        batch = lay_out(packed, self.attention, len(self.data.languages), self.pad_token)
        if pixels:
            batch["pixel_values"] = torch.cat(list(pixels.values()))
            number = {name: n for n, name in enumerate(pixels)}
            batch["image_index"] = torch.tensor([number[name] for name in shown])
        return batch

    def _bad_row(
        self, index: int, reason: str, action: Literal["skipped", "shortened"] = "skipped"
    ) -> BadRow:
        return BadRow(**vars(self.data.name(index)), reason=one_line(reason), action=action)

    def _pixels(self, first: Encoded, key: Any) -> torch.Tensor:
        """Return the processed image, (1, 3, height, width). Raise ValueError, with the row's name, on failure."""
        image = self.data.load_image(first.source, key, first.id)
        try:
            return self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            path = self.data.sources[first.source].recipe.path
            name = row_name(first.id, self.data.languages[first.language], path)
            raise ValueError(
                f"{name}: its image cannot be used: {str(error).removesuffix('.')}: repair the file or "
                "remove the row"
            ) from None

    def encode(self, index: int) -> Encoded:
        """Return conversation `index` as tokens. Raise ValueError if it cannot be used."""
        found = self._usable(index)
        if isinstance(found, BadRow):
            raise ValueError(found.reason)
        return found

    def _usable(self, index: int) -> Encoded | BadRow:
        """Return the tokens, or the reason for a skip. Raise ValueError if a policy is "stop"."""
        known = self._encoded.get(index)
        if known is None:
            try:
                known = self._encode(index)
            except LongRow:
                raise
            except ValueError as error:
                if self.on_bad_row == "stop":
                    raise
                known = self._bad_row(index, str(error))
            if len(self._encoded) < KEPT:
                self._encoded[index] = known
        return known

    def _encode(self, index: int) -> Encoded | BadRow:
        conversation = self.data.conversation(index)
        path = self.data.sources[conversation.source].recipe.path
        name = row_name(conversation.id, conversation.language, path)
        template = self.templates[conversation.source]
        tokens = self.processor.encode_conversation(
            conversation.messages,
            num_images=len(conversation.images),
            chat_template=template,
            name=name,
        )
        ids = np.array(tokens["input_ids"], np.int32)
        trained = np.array(tokens["assistant_mask"], bool)
        share = 1.0  # share of the trained text that is kept
        if self.max_length is not None and len(ids) > self.max_length:
            reason = (
                f"{name}: expected at most max_length {self.max_length} tokens, found {len(ids)}: shorten the row "
                "or raise max_length"
            )
            if self.on_long_row == "stop":
                raise LongRow(reason)
            kept_images = not (ids[self.max_length :] == self.image_token).any()
            if (
                self.on_long_row == "skip"
                or not kept_images
                or not trained[: self.max_length].any()
            ):
                return self._bad_row(index, reason)
            self._shortened[index] = self._bad_row(index, reason, "shortened")
            share = trained[: self.max_length].sum() / trained.sum()
            ids, trained = ids[: self.max_length], trained[: self.max_length]
        return Encoded(
            id=conversation.id,
            language=self._languages[conversation.language],
            ids=ids,
            trained=trained,
            text_bytes=round(share * len(_assistant_text(conversation).encode())),
            images=conversation.images,
            source=conversation.source,
            index=index,
        )


def _assistant_text(conversation: Conversation) -> str:
    text = ""
    for message in conversation.messages:
        if message["role"] == "assistant":
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            text += "".join(part.get("text", "") for part in parts)
    return text
