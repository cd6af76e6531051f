"""Survey a build's own translations: their lengths, and starts and ends that are too frequent.

Both are counted in one pass over the translated units of a language, in bounded memory; a second pass
looks at the sources of what came often.

Lengths: log(characters of the translation / characters of the source), in bins of source length, as
counts on a fine grid; median and robust spread (1.4826 times the median absolute deviation) are read
from the grid.

Starts: a preface or a refusal in a language that has no list of phrases begins the same way for
sources that have nothing in common. "Une photo de" begins many captions too, but their sources then
begin alike: what counts is one start over many different starts of sources. Ends show remarks.
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

# Raised by one when the same rows give another survey.
VERSION = 1
_FOUND = [{"text": str, "rows": int, "independence": float, "ids": [str]}]
_SURVEY = {
    "inputs": str,
    "lengths": [{"least": int, "median": float, "spread": float, "rows": int}],
    "starts": _FOUND,
    "ends": _FOUND,
}
# Least characters of the source; a bin with too few rows is joined to the one before.
LENGTH_BINS = (0, 16, 32, 64, 128, 256)
_GRID_WIDTH, _GRID_LIMIT = 0.02, 4.0
_GRID_CELLS = round(2 * _GRID_LIMIT / _GRID_WIDTH)
_BIN_ROWS = 50
_LEAST_SPREAD = 0.05

# Starts are counted at these lengths: words, or characters where there are no spaces.
_WORD_SIZES, _CHAR_SIZES = (1, 2, 3, 5), (3, 5, 8, 12)
# Words of a source's start that are compared.
_SOURCE_SIZES = 3
# How often a start must come: so many times, or in this share of the rows, if that is more.
_START_ROWS, _START_SHARE = 8, 0.0005
# Least ratio of "two random sources begin alike" to "two sources of this start begin alike"; 1 for a
# start that has nothing to do with its sources.
_INDEPENDENCE = 0.3
# Rows whose sources are kept for each start, and in thousands for all rows.
_EXAMPLES = 200
_SPACELESS = {"han", "kana", "thai", "lao", "khmer", "myanmar"}
_WORD = re.compile(r"\S+")


@dataclass
class LengthHistogram:
    """Log length ratios of one language, counted on a grid; `cells` is (bins, grid)."""

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
        """Return bins for `CheckPlan.lengths`; none if there are fewer than `_BIN_ROWS` rows in total."""
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
                # Only the first can still be short: then all of them together are.
                continue
            values = np.repeat(np.arange(_GRID_CELLS) + 0.5, cells) * _GRID_WIDTH - _GRID_LIMIT
            median = float(np.median(values))
            spread = 1.4826 * float(np.median(np.abs(values - median)))
            # Two texts in three hide no tail; the 10th and 90th percentile keep a skewed one in.
            low, high = np.percentile(values, [10, 90])
            spread = max(spread, float(high - low) / 2.563, _LEAST_SPREAD)
            found.append(LengthBin(start, round(median, 4), round(spread, 4), rows))
        return found


def starts(text: str, *, end: bool = False) -> list[str]:
    """Return the starts (or ends) of a text at several sizes, shortest first, in lower case.

    An end has two words at least: verbs and particles end unlike sentences alike.
    """
    text = text.strip().casefold()
    if " " not in text[:40] and _SPACELESS & scripts(text[:40]).keys():
        sizes = [size for size in _CHAR_SIZES[end:] if len(text) >= 2 * size]
        return [text[-size:] if end else text[:size] for size in sizes]
    words = [m.span() for m in _WORD.finditer(text)]
    sizes = [size for size in _WORD_SIZES[end:] if len(words) >= 2 * size]
    return [text[words[-size][0] :] if end else text[: words[size - 1][1]] for size in sizes]


class Miner:
    """Finds starts (or ends) that many translations share though their sources do not.

    Call `count` with every pair, then `look` with every pair again, then `found`.

    A start is suspicious when its sources are as different as any sources of the build are: when two
    of them begin alike hardly more often than two taken at random, and end alike no more often
    either. This is asked of one word, of two and of three, so that "Le", from "The ...", is not
    suspicious.

    Args:
        end: look at ends.
        capacity: counts kept in memory; the rarest go when there are more (lossy counting), so a
            start that comes in more than rows / capacity is never lost.
    """

    def __init__(self, *, end: bool = False, capacity: int = 200_000):
        self.end, self.capacity = end, capacity
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self._floor = 0
        # Starts of the build's sources at each size.
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
            # A source without spaces.
            words = list(source.casefold())
        # Its ends too: what stands last in English stands first in Japanese.
        sizes = range(1, _SOURCE_SIZES + 1)
        return [" ".join(words[:n]) for n in sizes] + [" ".join(words[-n:]) for n in sizes]

    @property
    def least(self) -> int:
        return max(_START_ROWS, math.ceil(_START_SHARE * self.rows))

    def look(self, row_id: str, source: str, text: str) -> None:
        """Second pass: keeps how the sources of up to `examples` rows of a frequent start begin and end."""
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
        """Return the least ratio over the sizes; at most 1."""
        ratio = 1.0
        for own, every in zip(counters, self._all, strict=True):
            n = own.total()
            # One chance meeting more than was seen keeps few rows from being sure of anything.
            alike = (sum(c * (c - 1) for c in own.values()) + 1) / (n * (n - 1) + 1)
            ratio = min(ratio, (_collisions(every) + 1 / (n * (n - 1) + 1)) / alike)
        return ratio

    def found(self) -> list[dict[str, Any]]:
        """Return the suspicious starts, most frequent first; of nested ones the longest that keeps the rows.

        Each is {"text", "rows", "independence", "ids"}: the rows counted, the ratio of the
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
    """Return the probability that two of them are equal."""
    n = counter.total()
    return sum(c * (c - 1) for c in counter.values()) / (n * (n - 1)) if n > 1 else 0.0


def shares_start(text: str, found: Container[str], *, end: bool = False) -> str | None:
    """Return the first of the found starts (or ends) that the text has, or None."""
    return next((key for key in starts(text, end=end) if key in found), None)


def row_pairs(row: Row) -> list[tuple[str, str]]:
    """Yield (source, text) of a caption, or of every turn."""
    if row["turns"] is None:
        return [(row["source_text"], row["text"] or "")]
    sources = json.loads(row["source_text"])
    return [(a["content"], b["content"]) for a, b in zip(sources, row["turns"], strict=False)]


def survey_language(
    folder: Path, lang: str, least_rows: int | None, mine: bool, most_rows: int
) -> Row:
    """The survey of the translations of one language: they are read twice, in bounded memory.

    Args:
        folder: of the build.
        least_rows: accepted rows that are needed to calibrate lengths; None for no calibration.
        mine: look for starts and ends.
        most_rows: of so many rows, evenly taken from all units; more say the same more slowly.

    Returns {"lengths": bins, "starts": [...], "ends": [...], "rows": those looked at, "inputs": hash
    of the units}. Written to `verify/surveys/<lang>.json`, and read from there while the units are
    the same.
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
    """Read a language's survey; return None if there is none that can be read."""
    try:
        found = read_json(survey_path(folder, lang))
    except (OSError, ValueError):
        return None
    return found if has_shape(found, _SURVEY) else None


def unit_sha256(unit: Path) -> str:
    """Return the SHA-256 of a unit, by its manifest if it has one."""
    manifest = UnitManifest.read(manifest_path(unit))
    return manifest.parquet_sha256 if manifest else sha256_file(unit)


def _accepted(units: Sequence[Path], step: int) -> Iterator[Row]:
    """Yield every `step`-th row of those that are ok."""
    columns = ["id", "text", "turns", "source_text", "status"]
    for unit in units:
        table = read_columns(unit, columns)
        for row in table.take(np.arange(0, len(table), step)).to_pylist():
            if row["status"] == "ok":
                yield row
