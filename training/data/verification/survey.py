"""Survey a build's translations: measure lengths, and find starts and ends that are too frequent.

One pass over the translated units of a language counts both, in bounded memory; a second pass looks at the
sources of frequent starts.

Lengths: log(characters of the translation / characters of the source), in bins of source length, counted
on a fine grid. The grid gives median and robust spread (1.4826 times the median absolute deviation).

Starts: in a language without phrases, a preface or refusal begins the same way for unrelated sources. "Une
photo de" also begins many captions, but the sources of these begin alike. So a start is suspicious if its
sources begin in many different ways. Ends reveal remarks.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.files import sha256_file, write_json
from ...common.reading import read_json
from ...common.schema import digest
from ...common.shapes import has_shape
from ...rows.parquet import Row, count_rows, read_columns
from ..checks.identify import scripts
from ..checks.plan import LengthBin
from ..engine.unit_files import UnitManifest, manifest_path

# Increase when the same rows yield another survey.
VERSION = 1
_FOUND = [{"text": str, "rows": int, "independence": float, "ids": [str]}]
_SURVEY = {
    "inputs": str,
    "lengths": [{"least": int, "median": float, "spread": float, "rows": int}],
    "starts": _FOUND,
    "ends": _FOUND,
}
# Minimum characters of the source; a bin with too few rows is merged with the previous one.
LENGTH_BINS = (0, 16, 32, 64, 128, 256)
_GRID_WIDTH, _GRID_LIMIT = 0.02, 4.0
_GRID_CELLS = round(2 * _GRID_LIMIT / _GRID_WIDTH)
_BIN_ROWS = 50
_LEAST_SPREAD = 0.05

# Sizes at which starts are counted, in words, or in characters if the language has no spaces.
_WORD_SIZES, _CHAR_SIZES = (1, 2, 3, 5), (3, 5, 8, 12)
# Maximum words of a source's start to compare.
_SOURCE_SIZES = 3
# Minimum frequency of a start: this number of rows, or this fraction of rows if that is more.
_START_ROWS, _START_SHARE = 8, 0.0005
# Minimum ratio of "two random sources begin alike" to "two sources of this start begin alike". The ratio is 1
# for a start that is unrelated to its sources.
_INDEPENDENCE = 0.3
# Rows per start whose sources are kept; for all rows together 1000 times as many.
_EXAMPLES = 200
_SPACELESS = {"han", "kana", "thai", "lao", "khmer", "myanmar"}
_WORD = re.compile(r"\S+")


@dataclass
class LengthHistogram:
    """Histogram of one language's log length ratios; `cells` is (bins, grid)."""

    cells: np.ndarray = field(
        default_factory=lambda: np.zeros((len(LENGTH_BINS), _GRID_CELLS), np.int64)
    )

    def add(self, source: str, text: str) -> None:
        if not source or not text:
            return
        row = int(np.searchsorted(LENGTH_BINS, len(source), side="right")) - 1
        value = math.log(len(text) / len(source))
        cell = int((value + _GRID_LIMIT) / _GRID_WIDTH)
        self.cells[row, min(max(cell, 0), _GRID_CELLS - 1)] += 1

    def bins(self) -> list[LengthBin]:
        """Return bins for `CheckPlan.lengths`; none if the rows in total are fewer than `_BIN_ROWS`."""
        groups: list[tuple[int, np.ndarray]] = []
        for start, cells in zip(LENGTH_BINS, self.cells, strict=True):
            if groups and (cells.sum() < _BIN_ROWS or groups[-1][1].sum() < _BIN_ROWS):
                groups[-1] = (groups[-1][0], groups[-1][1] + cells)
            else:
                groups.append((start, cells))
        found = []
        for start, cells in groups:
            rows = int(cells.sum())
            if rows < _BIN_ROWS:
                # Only the first bin can still be too small, if all rows together are too few.
                continue
            values = np.repeat(np.arange(_GRID_CELLS) + 0.5, cells) * _GRID_WIDTH - _GRID_LIMIT
            median = float(np.median(values))
            spread = 1.4826 * float(np.median(np.abs(values - median)))
            # The median deviation ignores a tail in a third of the texts; the percentiles keep it.
            low, high = np.percentile(values, [10, 90])
            spread = max(spread, float(high - low) / 2.563, _LEAST_SPREAD)
            found.append(LengthBin(start, round(median, 4), round(spread, 4), rows))
        return found


def starts(text: str, *, end: bool = False) -> list[str]:
    """Return the starts (or ends) of a text at several sizes, shortest first, in lower case.

    An end has at least two words: single verbs and particles end many unrelated sentences.
    """
    text = text.strip().casefold()
    if " " not in text[:40] and _SPACELESS & scripts(text[:40]).keys():
        sizes = [size for size in _CHAR_SIZES[end:] if len(text) >= 2 * size]
        return [text[-size:] if end else text[:size] for size in sizes]
    words = [m.span() for m in _WORD.finditer(text)]
    sizes = [size for size in _WORD_SIZES[end:] if len(words) >= 2 * size]
    return [text[words[-size][0] :] if end else text[: words[size - 1][1]] for size in sizes]


class Miner:
    """Find starts (or ends) that many translations share although their sources do not.

    Call `count` with every pair, then `look` with every pair again, then `found`.

    A start is suspicious if its sources are as varied as all sources of the build: two of them begin
    alike hardly more often than two random sources, and end alike no more often. The comparison uses
    one, two and three words, so "Le", from "The ...", is not suspicious.

    Args:
        end: look at ends.
        capacity: maximum number of counts in memory. The rarest are dropped (lossy counting); a start in
            more than rows / capacity rows is never lost.
    """

    def __init__(self, *, end: bool = False, capacity: int = 200_000):
        self.end, self.capacity = end, capacity
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self._floor = 0
        # Starts and ends of all sources, at each size.
        self._all = [Counter[str]() for _ in range(2 * _SOURCE_SIZES)]
        self._candidates: set[str] | None = None
        self._sources: dict[str, list[Counter[str]]] = {}
        self._ids: dict[str, list[str]] = {}

    def count(self, source: str, text: str) -> None:
        self.rows += 1
        self.counts.update(starts(text, end=self.end))
        if self.rows <= 1000 * _EXAMPLES:
            for counter, start in zip(self._all, self._source_starts(source), strict=True):
                counter[start] += 1
        if len(self.counts) > self.capacity:
            self._floor += 1
            self.counts = Counter({key: n - 1 for key, n in self.counts.items() if n > 1})

    def _source_starts(self, source: str) -> list[str]:
        words = source.casefold().split()
        if len(words) < 3 and len(source) > 12:
            # A source without spaces: compare characters.
            words = list(source.casefold())
        # Compare ends too: the last words in English may be the first in Japanese.
        sizes = range(1, _SOURCE_SIZES + 1)
        return [" ".join(words[:n]) for n in sizes] + [" ".join(words[-n:]) for n in sizes]

    @property
    def least(self) -> int:
        return max(_START_ROWS, math.ceil(_START_SHARE * self.rows))

    def look(self, row_id: str, source: str, text: str) -> None:
        """Count starts and ends of the sources of a frequent start, for up to `_EXAMPLES` rows (second pass)."""
        if self._candidates is None:
            self._candidates = {
                key for key, n in self.counts.items() if n + self._floor >= self.least
            }
        for key in starts(text, end=self.end):
            if key not in self._candidates:
                continue
            counters = self._sources.setdefault(key, [Counter() for _ in self._all])
            if counters[0].total() < _EXAMPLES:
                for counter, start in zip(counters, self._source_starts(source), strict=True):
                    counter[start] += 1
                ids = self._ids.setdefault(key, [])
                if len(ids) < 5:
                    ids.append(row_id)

    def _independent(self, counters: list[Counter[str]]) -> float:
        """Return the minimum ratio over all sizes; at most 1."""
        ratio = 1.0
        for own, every in zip(counters, self._all, strict=True):
            n = own.total()
            # Add one coincidence to what was seen, so that few rows give no certainty.
            alike = (sum(c * (c - 1) for c in own.values()) + 1) / (n * (n - 1) + 1)
            ratio = min(ratio, (_collisions(every) + 1 / (n * (n - 1) + 1)) / alike)
        return ratio

    def found(self) -> list[dict[str, Any]]:
        """Return suspicious starts, most frequent first; of nested ones the longest that keeps the rows.

        Returns:
            {"text", "rows", "independence", "ids"} of each: the text, number of rows, ratio of the
            independence test, and a few ids.
        """
        suspects = {}
        for key, counters in self._sources.items():
            if counters[0].total() >= _START_ROWS:
                ratio = self._independent(counters)
                if ratio >= _INDEPENDENCE:
                    suspects[key] = ratio
        kept = []
        for key, ratio in suspects.items():
            longer = (
                other != key
                and (other.endswith(key) if self.end else other.startswith(key))
                and self.counts[other] >= 0.8 * self.counts[key]
                for other in suspects
            )
            if not any(longer):
                kept.append(
                    {
                        "text": key,
                        "rows": self.counts[key],
                        "independence": round(ratio, 3),
                        "ids": self._ids[key],
                    }
                )
        return sorted(kept, key=lambda item: (-item["rows"], item["text"]))


def _collisions(counter: Counter[str]) -> float:
    """Return the probability that two draws without replacement are equal."""
    n = counter.total()
    return sum(c * (c - 1) for c in counter.values()) / (n * (n - 1)) if n > 1 else 0.0


def shares_start(text: str, found: Container[str], *, end: bool = False) -> str | None:
    """Return the first start (or end) of the text that is among `found`, or None."""
    return next((key for key in starts(text, end=end) if key in found), None)


def row_pairs(row: Row) -> list[tuple[str, str]]:
    """Return [(source, text)] of a caption, or of each turn."""
    if row["turns"] is None:
        return [(row["source_text"], row["text"] or "")]
    sources = json.loads(row["source_text"])
    return [(a["content"], b["content"]) for a, b in zip(sources, row["turns"], strict=False)]


def survey_language(
    folder: Path, lang: str, least_rows: int | None, mine: bool, most_rows: int
) -> Row:
    """Survey the translations of one language, in two passes with bounded memory.

    The result is written to `verify/surveys/<lang>.json`, and read from there while the units are unchanged.

    Args:
        folder: folder of the build.
        lang: the language.
        least_rows: minimum number of accepted rows to calibrate lengths; None for no calibration.
        mine: find starts and ends.
        most_rows: maximum number of rows, evenly spaced over all units; more rows only take longer.

    Returns:
        {"lengths": bins, "starts": [...], "ends": [...], "rows": number of rows read, "inputs": hash of
        the units}.
    """
    units = sorted((folder / "translate" / lang).glob("*.parquet"))
    inputs = digest([VERSION, least_rows, mine, most_rows, *map(unit_sha256, units)])
    path = survey_path(folder, lang)
    known = read_survey(folder, lang)
    if known is not None and known["inputs"] == inputs:
        return known
    histogram, starts, ends = LengthHistogram(), Miner(), Miner(end=True)
    step = -(-sum(count_rows(unit) for unit in units) // most_rows)
    rows = 0
    for row in _accepted(units, step):
        rows += 1
        for source, text in row_pairs(row):
            histogram.add(source, text)
            if mine:
                starts.count(source, text)
                ends.count(source, text)
    if mine:
        for row in _accepted(units, step):
            for source, text in row_pairs(row):
                starts.look(row["id"], source, text)
                ends.look(row["id"], source, text)
    bins = [] if least_rows is None or rows < least_rows else histogram.bins()
    found = {
        "lang": lang,
        "rows": rows,
        "lengths": [asdict(item) for item in bins],
        "starts": starts.found(),
        "ends": ends.found(),
        "inputs": inputs,
    }
    write_json(path, found)
    return found


def survey_path(folder: Path, lang: str) -> Path:
    return folder / "verify" / "surveys" / f"{lang}.json"


def read_survey(folder: Path, lang: str) -> Row | None:
    """Read a language's survey; return None if it is missing or unreadable."""
    try:
        found = read_json(survey_path(folder, lang))
    except (OSError, ValueError):
        return None
    return found if has_shape(found, _SURVEY) else None


def unit_sha256(unit: Path) -> str:
    """Return the SHA-256 of a unit, from its manifest if there is one."""
    manifest = UnitManifest.read(manifest_path(unit))
    return manifest.parquet_sha256 if manifest else sha256_file(unit)


def _accepted(units: Sequence[Path], step: int) -> Iterator[Row]:
    """Yield the accepted rows among every `step`-th row."""
    columns = ["id", "text", "turns", "source_text", "status"]
    for unit in units:
        table = read_columns(unit, columns)
        for row in table.take(np.arange(0, len(table), step)).to_pylist():
            if row["status"] == "ok":
                yield row
