"""The batches of a rank: the groups of each step are read, tokenised, packed and given their pixels.

What cannot be trained on (a truncated image, an empty text, too many tokens) stops the run with the
row's name, or is left out, counted and listed, as the recipe's policies say.
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

# Tokenised conversations kept in memory, about a kilobyte each.
KEPT = 1 << 19


@dataclass(frozen=True)
class BadRow(RowName):
    """A row that the run did without, or did not learn whole, and why."""

    reason: str
    action: Literal["skipped", "shortened"]


class LongRow(ValueError):
    """A conversation is longer than max_length, and the recipe says stop."""


class GroupCollator:
    """Turns one share of a step, {"step", "rank"}, into the rows that this rank computes.

    The steps are cut from `plan`, `batch_size` groups each, and divided by `packing.balance_rows`; so the
    groups of a step, and with them the result, do not depend on the number of processes.

    Conversations are tokenised when first seen and kept, but for those of streams; images are read
    and processed each time.

    Args:
        plan: what `data.plan` returned. ranks: processes that share a step.
        max_length: most real tokens of a row, and so of a conversation; None for no limit.
        on_bad_row: what becomes of a row that cannot be read or has nothing to learn.
        on_long_row: what becomes of a conversation longer than max_length; "shorten" cuts its end,
            never an image, and refuses what then has nothing to learn.

    Raises:
        ValueError: names the row, when a policy is "stop".
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
        self._outlives = False  # as a loader's worker, signals that are for the rank

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """{"rows": a list of tensors as `lay_out` returns, "bad_rows": a list of BadRow}; in a worker
        of a loader {"error": what it would raise elsewhere} if that is bad input.

        A row with images also has `pixel_values` of the distinct ones, and `image_index`, which of
        them each block of image tokens is.
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
            # A loader would tell it with the worker's traceback; the trainer raises it as it is, when
            # its step comes.
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
                    # Every rank tokenises the whole step; one of them reports.
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
            # A rank with nothing to do still takes part: one token, nothing to learn.
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
        """The image as it is trained on, (1, 3, height, width). Raises ValueError naming the row."""
        image = self.data.load_image(first.source, key, first.id)
        try:
            return self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        except ValueError as error:
            path = self.data.sources[first.source].recipe.path
            name = row_name(first.id, self.data.languages[first.language], path)
            raise ValueError(
                f"{name}: its image cannot be used: {str(error).removesuffix('.')}; repair the file or "
                "remove the row"
            ) from None

    def encode(self, index: int) -> Encoded:
        """Conversation `index` in tokens. Raises ValueError as the class says."""
        found = self._usable(index)
        if isinstance(found, BadRow):
            raise ValueError(found.reason)
        return found

    def _usable(self, index: int) -> Encoded | BadRow:
        """The conversation, or why it is left out; raises ValueError when a policy says stop."""
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
        share = 1.0  # of the trained text that is kept
        if self.max_length is not None and len(ids) > self.max_length:
            reason = (
                f"{name}: {len(ids)} tokens, more than max_length {self.max_length}; shorten the row "
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
