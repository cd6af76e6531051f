"""Groups to rows: tokens, positions, pixels, and which position predicts which token.

The conversations of a group start with the same tokens (the turn's opening and the image). That
common start is laid down once, the rest of each conversation follows as a branch whose positions
restart behind the prefix. The first token of a branch is predicted from the prefix's last position,
once per branch, which shifted labels cannot express: so a row carries explicit pairs
`source` -> `labels`.

What cannot be trained on (a truncated image, an empty text, too many tokens) stops the run with the
row's name, or is left out, counted and listed, as the recipe's policies say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..common.signals import end_by_parent_only
from ..common.telling import one_line
from ..model.attention import Layout, dense_mask, row_plan
from ..model.templates import find_template
from ..rows.tables import row_name
from .encoding import ConversationEncoder
from .packing import divide
from .source import Conversation, GroupSource

# Tokenised conversations kept in memory, about a kilobyte each.
KEPT = 1 << 19


@dataclass(frozen=True)
class Encoded:
    """One conversation in tokens. ids, trained: (n,); trained is True where a token is learned. index: its
    number in the data."""

    id: str
    language: int
    ids: np.ndarray
    trained: np.ndarray
    text_bytes: int
    images: tuple[Any, ...]
    source: int
    index: int = -1


@dataclass(frozen=True)
class Packed:
    """A group's tokens: `prefix` once, then the branches. Pairs are (source, target) positions in
    the tokens of each conversation."""

    prefix: np.ndarray
    branches: list[np.ndarray]
    encoded: list[Encoded]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


@dataclass(frozen=True)
class BadRow:
    """A row that the run did without, or did not learn whole, and why.

    id, language, path, row, data: as in `RowName`.
    """

    id: str
    language: str
    path: str
    row: int
    data: int
    reason: str
    action: Literal["skipped", "shortened"]


def shared_prefix(encoded: Sequence[Encoded], image_token: int) -> int:
    """How many tokens the conversations of a group share at their start.

    Never reaches a trained token, nor takes a conversation's last token. 0 when their common start
    does not hold all of their image: then nothing is worth sharing. One conversation alone is all
    prefix.
    """
    if len(encoded) == 1:
        return len(encoded[0].ids)
    limit = min(min(int(e.trained.argmax()), len(e.ids) - 1) for e in encoded)
    first = encoded[0].ids[:limit]
    common = limit
    for other in encoded[1:]:
        different = np.flatnonzero(first[:common] != other.ids[:common])
        if len(different):
            common = int(different[0])
    blocks = [int((e.ids == image_token).sum()) for e in encoded]
    inside = int((first[:common] == image_token).sum())
    return common if all(b == inside for b in blocks) and inside else 0


class LongRow(ValueError):
    """A conversation is longer than max_length, and the recipe says stop."""


def pack_group(
    encoded: Sequence[Encoded], image_token: int, max_length: int | None = None
) -> list[Packed]:
    """The group as one tree; as several when it is longer than `max_length` tokens; as separate
    conversations when they have no start in common."""
    length = shared_prefix(encoded, image_token)
    if length == 0:
        return [Packed(e.ids, [], [e]) for e in encoded]
    if len(encoded) == 1:
        return [Packed(encoded[0].ids, [], list(encoded))]
    branches = [e.ids[length:] for e in encoded]
    if max_length is None or length + sum(map(len, branches)) <= max_length:
        return [Packed(encoded[0].ids[:length], branches, list(encoded))]
    trees: list[list[Encoded]] = []
    room = 0
    for item, branch in zip(encoded, branches, strict=True):
        if not trees or len(branch) > room:
            trees.append([])
            room = max_length - length
        trees[-1].append(item)
        room -= len(branch)
    # Fewer conversations may share a longer start, never a shorter one: what fitted still fits.
    return [tree for part in trees for tree in pack_group(part, image_token)]


def lay_out(
    packed: Sequence[Packed], layout: Layout, languages: int, pad_token: int
) -> dict[str, Any]:
    """Tensors of a batch of groups, without pixels.

    Returns:
        input_ids, position_ids: (R, N); one row a group for "dense", else R is 1.
        attention_mask: the dense mask (R, 1, N, N), or a stand-in.
        plan: what `attention.row_plan` returns (not for "dense").
        source (M,): index into R * N of the position that predicts; labels (M,): the token it
        predicts; language (M,): whose token it is. text_bytes (languages,): UTF-8 bytes of the
        trained text. padding: how many of the tokens are padding.
    """
    rows: list[dict[str, list]] = []
    nothing: np.ndarray = np.zeros(0, np.int64)
    source, target, language = [nothing], [nothing], [nothing]
    text_bytes = torch.zeros(languages, dtype=torch.long)
    sizes = [len(p) for p in packed]
    width = max(sizes) if layout == "dense" else sum(sizes)
    start = 0
    for number, item in enumerate(packed):
        if layout == "dense":
            start = number * width
        prefix = len(item.prefix)
        ids, positions = [item.prefix], [np.arange(prefix)]
        branch_of: list[np.ndarray] = [np.zeros(prefix, np.int64)]
        offset = start + prefix
        for j, branch in enumerate(item.branches):
            ids.append(branch)
            positions.append(np.arange(prefix, prefix + len(branch)))
            branch_of.append(np.full(len(branch), j + 1))
        for j, conversation in enumerate(item.encoded):
            targets = np.flatnonzero(conversation.trained)
            # A position of the prefix keeps its place; behind it the branch begins.
            behind = offset - prefix
            before: np.ndarray = targets - 1
            source.append(np.where(before < prefix, start + before, behind + before))
            target.append(conversation.ids[targets])
            language.append(np.full(len(targets), conversation.language))
            text_bytes[conversation.language] += conversation.text_bytes
            if item.branches:
                offset += len(item.branches[j])
        rows.append(
            {
                "ids": np.concatenate(ids),
                "positions": np.concatenate(positions),
                "branch": np.concatenate(branch_of),
            }
        )
        start += sizes[number]

    batch: dict[str, Any] = {
        "source": torch.from_numpy(np.concatenate(source)),
        "labels": torch.from_numpy(np.concatenate(target).astype(np.int64)),
        "language": torch.from_numpy(np.concatenate(language).astype(np.int64)),
        "text_bytes": text_bytes,
        "padding": 0,
    }
    if layout != "dense":
        batch["input_ids"] = torch.from_numpy(
            np.concatenate([r["ids"] for r in rows]).astype(np.int64)
        )[None]
        batch["position_ids"] = torch.from_numpy(np.concatenate([r["positions"] for r in rows]))[
            None
        ]
        batch["plan"] = row_plan(
            [(len(p.prefix), [len(b) for b in p.branches]) for p in packed], layout
        )
        # A ready-made mask: keeps transformers from building one over the whole row.
        batch["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        return batch

    def fill(name: str, value: int) -> torch.Tensor:
        out: np.ndarray = np.full((len(rows), width), value, np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row[name])] = row[name]
        return torch.from_numpy(out)

    branch_ids = fill("branch", -1)
    batch["padding"] = int((branch_ids < 0).sum())
    batch["input_ids"] = fill("ids", pad_token)
    batch["position_ids"] = fill("positions", 0)
    batch["attention_mask"] = dense_mask(torch.zeros_like(branch_ids), branch_ids)
    return batch


class GroupCollator:
    """Turns one share of a step, {"step", "rank"}, into the rows that this rank computes.

    The steps are cut from `plan`, `batch_size` groups each, and divided by `packing.divide`; so the
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
        layout: Layout = "segments",
        max_length: int | None = None,
        plan: Sequence[tuple[int, np.ndarray]] = (),
        batch_size: int = 1,
        ranks: int = 1,
        on_bad_row: Literal["stop", "skip"] = "stop",
        on_long_row: Literal["stop", "skip", "shorten"] = "stop",
    ):
        self.data = data
        self.processor = processor
        self.layout: Layout = layout
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
        self.encoder = ConversationEncoder(processor)
        self._languages = {name: number for number, name in enumerate(data.languages)}
        self._encoded: dict[int, Encoded | BadRow] = {}
        self._shortened: dict[int, BadRow] = {}
        self._outlives = False  # as a loader's worker, signals that are for the rank

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """{"rows": a list of tensors as `lay_out` returns, "bad_rows": a list of BadRow}; in a worker
        of a loader {"error": what it would raise elsewhere} if that is bad input.

        A row with images has besides `pixel_values` of the distinct ones, and `image_index`, which
        of them each block of image tokens is.
        """
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker and not self._outlives:
            end_by_parent_only()
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
        shares = divide([len(tree) for tree in trees], self.ranks, self.max_length)
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
        batch = lay_out(packed, self.layout, len(self.data.languages), self.pad_token)
        if pixels:
            batch["pixel_values"] = torch.cat(list(pixels.values()))
            number = {name: n for n, name in enumerate(pixels)}
            batch["image_index"] = torch.tensor([number[name] for name in shown])
        return batch

    def _bad_row(
        self, index: int, reason: str, action: Literal["skipped", "shortened"] = "skipped"
    ) -> BadRow:
        return BadRow(*self.data.name(index), one_line(reason), action)

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
        ids, trained = self.encoder.encode(conversation, template, name)
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
