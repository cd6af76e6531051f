"""Pack tokenized conversations into the rows of a step: trees with a shared prefix, balanced, as tensors.

The conversations of a group start with the same tokens (the start of the turn and the image). This common
start is stored once, as the prefix. The other tokens of each conversation follow as a branch, whose
positions continue from the prefix. The first token of each branch is predicted from the prefix's last
position. Shifted labels cannot express that, so a row carries explicit pairs `logit_positions` -> `labels`.

The lengths of a step's groups are known before an image is opened, because an image always has the same
number of tokens. So every rank computes the same division of the step without communication: rows of
at most `max_length` real tokens, equally many on every rank, of nearly equal length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..model.attention import AttentionBackend, dense_mask, row_plan


@dataclass(frozen=True)
class Encoded:
    """One tokenized conversation.

    ids, trained: (n,); trained is True for tokens that are learned.
    index: number of the conversation in the data.
    """

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
    """A group's tokens: the prefix once, then the branches. `encoded` are its conversations."""

    prefix: np.ndarray
    branches: list[np.ndarray]
    encoded: list[Encoded]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


def shared_prefix(encoded: Sequence[Encoded], image_token: int) -> int:
    """Return how many tokens the conversations of a group share at their start.

    The prefix never contains a trained token or the last token of a conversation. It is 0 if the common
    start does not contain all image tokens, because then sharing gains nothing. A single conversation
    is all prefix.
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


def pack_group(
    encoded: Sequence[Encoded], image_token: int, max_length: int | None = None
) -> list[Packed]:
    """Pack a group as one tree; several if it is longer than `max_length` tokens; separate conversations
    if they share no start."""
    length = shared_prefix(encoded, image_token)
    if length == 0 or len(encoded) == 1:
        return [Packed(e.ids, [], [e]) for e in encoded]
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
    # Fewer conversations share an equal or longer start, so the parts still fit.
    return [tree for part in trees for tree in pack_group(part, image_token)]


def balance_rows(
    lengths: Sequence[int], ranks: int, max_length: int | None = None
) -> list[list[list[int]]]:
    """Divide the groups of one step among ranks and rows.

    The longest group goes into the emptiest row first (Graham's rule), so the fullest row is at most 4/3
    of the optimum. Rows are added, one on every rank, until none is longer than `max_length`.

    Args:
        lengths: real tokens of every group.
        ranks: processes that share the step.
        max_length: most tokens of a row; None for one row per rank of any length.

    Returns:
        [rank][row] -> indices of groups, ascending. Every rank has the same number of rows, because
        collective calls must match; a row is empty if there are fewer groups than rows. The result
        depends only on the arguments.

    Raises:
        ValueError: if a group is longer than max_length.
    """
    if max_length is not None and lengths and max(lengths) > max_length:
        raise ValueError(
            f"expected groups of at most max_length {max_length} tokens, found one of {max(lengths)}"
        )
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows_each = 1 if max_length is None else max(1, -(-sum(lengths) // (ranks * max_length)))
    while True:
        rows: list[list[int]] = [[] for _ in range(ranks * rows_each)]
        fill = [0] * len(rows)
        for i in order:
            emptiest = min(range(len(rows)), key=lambda r: (fill[r], r))
            rows[emptiest].append(i)
            fill[emptiest] += lengths[i]
        if max_length is None or max(fill) <= max_length:
            break
        rows_each += 1
    # Deal the sorted rows to the ranks back and forth, so that the ranks' totals are even too.
    by_fill = sorted(range(len(rows)), key=lambda r: (-fill[r], r))
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for place, row in enumerate(by_fill):
        turn, rank = divmod(place, ranks)
        shares[rank if turn % 2 == 0 else ranks - 1 - rank].append(sorted(rows[row]))
    return shares


def lay_out(
    packed: Sequence[Packed], attention: AttentionBackend, languages: int, pad_token: int
) -> dict[str, Any]:
    """Build the tensors of a batch of groups, without pixels.

    Returns:
        input_ids, position_ids: (R, N); one row per group for "dense", otherwise R is 1.
        attention_mask: the dense mask (R, 1, N, N), or a placeholder.
        attention_plan: result of `attention.row_plan` (not for "dense").
        logit_positions: (M,), index into R * N of the predicting position.
        labels: (M,), the predicted token.
        language: (M,), the language index of the predicted token.
        text_bytes: (languages,), UTF-8 bytes of the trained text.
        padding: number of padding tokens.
    """
    trees: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # ids, positions, branch numbers
    # Tokens and positions of every group, and its pairs of predicting position and token.
    nothing: np.ndarray = np.zeros(0, np.int64)
    predicting, target, language = [nothing], [nothing], [nothing]
    text_bytes = torch.zeros(languages, dtype=torch.long)
    sizes = [len(p) for p in packed]
    width = max(sizes) if attention == "dense" else sum(sizes)
    start = 0
    for number, item in enumerate(packed):
        if attention == "dense":
            start = number * width
        prefix, widths = len(item.prefix), [len(branch) for branch in item.branches]
        positions = [np.arange(prefix), *(np.arange(prefix, prefix + n) for n in widths)]
        trees.append(
            (
                np.concatenate([item.prefix, *item.branches]),
                np.concatenate(positions),
                np.repeat(np.arange(len(widths) + 1), [prefix, *widths]),
            )
        )
        offset = start + prefix
        for j, conversation in enumerate(item.encoded):
            targets = np.flatnonzero(conversation.trained)
            # Positions in the prefix are offset by its start, those after it by the branch's start.
            behind = offset - prefix
            before: np.ndarray = targets - 1
            predicting.append(np.where(before < prefix, start + before, behind + before))
            target.append(conversation.ids[targets])
            language.append(np.full(len(targets), conversation.language))
            text_bytes[conversation.language] += conversation.text_bytes
            if item.branches:
                offset += widths[j]
        start += sizes[number]

    # Tensors that all layouts share.
    batch: dict[str, Any] = {
        "logit_positions": torch.from_numpy(np.concatenate(predicting)),
        "labels": torch.from_numpy(np.concatenate(target).astype(np.int64)),
        "language": torch.from_numpy(np.concatenate(language).astype(np.int64)),
        "text_bytes": text_bytes,
        "padding": 0,
    }
    ids, places, branches = (
        [torch.from_numpy(column.astype(np.int64)) for column in columns]
        for columns in zip(*trees, strict=True)
    )
    # One row for all groups.
    if attention != "dense":
        batch["input_ids"] = torch.cat(ids)[None]
        batch["position_ids"] = torch.cat(places)[None]
        batch["attention_plan"] = row_plan(
            [(len(p.prefix), [len(b) for b in p.branches]) for p in packed], attention
        )
        # A given mask keeps transformers from building one over the whole row.
        batch["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        return batch
    # One padded row per group.
    branch_ids = pad_sequence(branches, batch_first=True, padding_value=-1)
    batch["padding"] = int((branch_ids < 0).sum())
    batch["input_ids"] = pad_sequence(ids, batch_first=True, padding_value=pad_token)
    batch["position_ids"] = pad_sequence(places, batch_first=True)
    batch["attention_mask"] = dense_mask(torch.zeros_like(branch_ids), branch_ids)
    return batch
