"""Which rank computes which groups of a step, and in which rows.

The lengths of all groups of a step are known before an image is opened: a picture is always the
same number of tokens. So every rank works out the same division of the step by itself, and no rank
waits for another: rows of at most `max_length` real tokens, as many on every rank, of nearly equal
length.
"""

from collections.abc import Sequence


def divide(
    lengths: Sequence[int], ranks: int, max_length: int | None = None
) -> list[list[list[int]]]:
    """Divide the groups of one step among ranks and rows.

    Longest first into the emptiest row (Graham's rule): the fullest row is at most 4/3 of the best
    possible. Rows are added, one on every rank, until none is longer than `max_length`.

    Args:
        lengths: real tokens of every group. ranks: processes that share the step.
        max_length: most tokens of a row; None for one row a rank, however long.

    Returns:
        [rank][row] -> indices of groups, ascending. Every rank has the same number of rows, so
        that collective calls meet; a row is empty when there are fewer groups than rows. The same
        lengths give the same division everywhere.

    Raises:
        ValueError: a group is longer than max_length.
    """
    if max_length is not None and lengths and max(lengths) > max_length:
        raise ValueError(
            f"a group of {max(lengths)} tokens does not fit rows of max_length {max_length}"
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
    # The r-th longest rows go to ranks to and fro, so that sums over a rank's rows are even too.
    by_fill = sorted(range(len(rows)), key=lambda r: (-fill[r], r))
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for place, row in enumerate(by_fill):
        turn, rank = divmod(place, ranks)
        shares[rank if turn % 2 == 0 else ranks - 1 - rank].append(sorted(rows[row]))
    return shares
