"""The worker of the verification step: accept every translated row, or reject it with reasons."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ...common.schema import digest
from ...rows.parquet import Row
from ..checks.plan import Flag, LengthBin
from ..checks.rules import Examination, RowChecker
from .back_translation import drawn, plain_source
from .plan import VerificationPlan
from .quality import QualityScorer
from .rows import VERIFIED, plain_translation
from .survey import row_pairs, shares_start

# Increase when the same plan decides differently on the same rows.
VERSION = 1


class VerifyWorker:
    """The step `verify/<lang>` (a `Worker` of the engine) on translated rows.

    Args:
        plan: section `verification` of the plan.
        lang: language of the translations.
        source_language: language of the sources.
        languages: all target languages of the project; default: `lang` alone.
        survey: result of `survey_language`; {} for none.
        run_id: hash that is stored with every row.

    Raises:
        ValueError: a language cannot be identified.
    """

    schema = VERIFIED
    batch_rows = 250
    concurrency = 1

    def __init__(
        self,
        plan: VerificationPlan,
        lang: str,
        source_language: str = "en",
        languages: Sequence[str] | None = None,
        survey: Row | None = None,
        run_id: str = "",
    ):
        self.plan, self.lang, self.run_id = plan, lang, run_id
        self.source_language = source_language
        self.name = f"verify/{lang}"
        survey = survey or {}
        checks = plan.checks
        bins = [LengthBin(**item) for item in survey.get("lengths", [])]
        if bins and lang not in checks.lengths:
            checks = replace(checks, lengths={**checks.lengths, lang: bins})
        self.checker = RowChecker(source_language, list(languages or [lang]), checks)
        self._starts = frozenset(item["text"] for item in survey.get("starts", []))
        self._ends = frozenset(item["text"] for item in survey.get("ends", []))
        self._scorer = QualityScorer(plan.quality) if plan.quality else None
        quality = None
        if plan.quality:
            # Path and timeouts do not affect scores, so they are not part of the key.
            quality = asdict(plan.quality) | dict.fromkeys(
                ("command", "timeout", "batch_rows", "environment")
            )
        self.key = digest(
            {
                "version": VERSION,
                "lang": lang,
                "checks": self.checker.key,
                "starts": sorted(self._starts),
                "ends": sorted(self._ends),
                "quality": quality,
                "seed": plan.seed,
            }
        )

    async def __aenter__(self) -> "VerifyWorker":
        if self._scorer:
            await self._scorer.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self._scorer:
            await self._scorer.__aexit__(*error)

    async def process(self, rows: list[Row]) -> list[Row]:
        """Return verified rows, in order; raise ValueError for a row in another language."""
        for row in rows:
            if row["lang"] != self.lang:
                raise ValueError(
                    f"{self.name}: row {row['id']!r}: lang: expected {self.lang!r}, found {row['lang']!r}"
                )
        examined = [self._examine(row) if row["status"] == "ok" else None for row in rows]
        scores = await self._scores(rows, examined)
        # Let other tasks run between batches.
        await asyncio.sleep(0)
        return [self._row(*each) for each in zip(rows, examined, scores, strict=True)]

    def _examine(self, row: Row) -> Examination:
        found = self.checker.examine_row(row)
        flags = list(found.flags)
        for name, known, end in (
            ("same_start", self._starts, False),
            ("same_end", self._ends, True),
        ):
            for _, text in row_pairs(row) if known else ():
                if shared := shares_start(text, known, end=end):
                    flags.append(self._flag(name, repr(shared)))
                    break
        return replace(found, flags=flags)

    def _flag(self, name: str, detail: str) -> Flag:
        return Flag(name, name in self.plan.checks.hard, detail)

    async def _scores(
        self, rows: Sequence[Row], examined: Sequence[Examination | None]
    ) -> list[float | None]:
        scores: list[float | None] = [None] * len(rows)
        if self._scorer is None:
            return scores
        plan = self._scorer.plan
        wanted = [
            n
            for n, (row, found) in enumerate(zip(rows, examined, strict=True))
            if found is not None
            and not found.hard
            and drawn(self.plan.seed, row["id"], self.lang) < plan.share
        ]
        given = [
            {
                "id": rows[n]["id"],
                "source_lang": self.source_language,
                "lang": self.lang,
                "source": plain_source(rows[n]),
                "text": plain_translation(rows[n]),
            }
            for n in wanted
        ]
        for n, score in zip(wanted, await self._scorer.score(given), strict=True):
            scores[n], found = score, examined[n]
            assert found is not None
            if score is None:
                found.flags.append(self._flag("quality_failed", "the model could not score it"))
            elif plan.flag_below is not None and score < plan.flag_below:
                found.flags.append(self._flag("quality", f"{score:.3f}"))
        return scores

    def _row(self, row: Row, found: Examination | None, score: float | None) -> Row:
        common = {"id": row["id"], "lang": row["lang"], "run_id": self.run_id, "quality": score}
        if found is None:
            return {
                **dict.fromkeys(VERIFIED.names),
                **common,
                "status": row["status"],
                "flags": [],
                "details": [],
                "hard": [],
                "reasons": row["reasons"],
            }
        flags = [
            flag
            for flag in sorted(found.flags, key=lambda flag: not flag.hard)
            if flag.name not in self.plan.checks.off
        ]
        hard = [flag for flag in flags if flag.hard]
        reasons = "; ".join(f"{flag.name}: {flag.detail}" for flag in hard)
        known = bool(found.identified.language)
        return {
            **common,
            "status": "rejected" if hard else "ok",
            "flags": [flag.name for flag in flags],
            "details": [flag.detail for flag in flags],
            "hard": [flag.name for flag in hard],
            "reasons": " ".join(reasons.split()) or None,
            "lid": found.identified.language or None,
            "lid_confidence": found.identified.confidence if known else None,
            "lid_expected": found.identified.expected if known else None,
            "length_z": found.length_z,
        }
