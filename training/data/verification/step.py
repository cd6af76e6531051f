"""The verification step of a build: every translated row is accepted, or rejected with its reasons.

    step = VerificationStep(plan, folder, source_language="en", languages=["fr", "ja"])
    for units in step.rounds():           # back-translation comes after the checks
        for name, pairs in units.items():
            run_units(step.worker(name), pairs)
    print(format_report(step.report()))

First each language's translations are surveyed (survey.py): their lengths, and starts and ends that
come too often, whatever their sources. Then every row is checked (checks.py) by what the survey
found, and by a quality-estimation model if the plan has one (quality.py). Last, a drawn sample is
translated back. What asks again for a better answer is the translation; this step only accepts,
flags and rejects. Decisions of people (review.py) win over it, in `final_rows`.
"""

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.files import sha256_text, write_json, write_parquet
from ...common.schema import digest
from ...common.signals import end_with_parent
from ...rows.parquet import parquet_file
from ..checks.rules import CheckPlan, Examination, Flag, LengthBin, RowChecker
from ..engine.executors import leave_ctrl_c, without_signals
from ..engine.units import UnitManifest, Worker, manifest_path, run_units
from ..review.pages import read_overrides
from ..sources.records import Row
from ..translation.worker import TRANSLATED, check_translated
from .back_translation import (
    SAMPLE,
    BackTranslationPlan,
    BackTranslationWorker,
    drawn,
    plain_source,
    plain_text,
)
from .quality import QualityPlan, QualityScorer
from .survey import read_survey, row_pairs, shares_start, survey_language, survey_path, unit_sha256

# Raised by one when the same plan decides differently on the same rows.
VERSION = 1

VERIFIED = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("status", pa.string()),  # ok, rejected, failed
        ("flags", pa.list_(pa.string())),  # checks that fired, hard ones first
        ("details", pa.list_(pa.string())),  # what each of them saw
        ("hard", pa.list_(pa.string())),  # those of them that reject
        ("reasons", pa.string()),  # why rejected or failed, one line
        ("lid", pa.string()),  # language identified; null for too little text
        ("lid_confidence", pa.float32()),
        ("lid_expected", pa.float32()),  # confidence in the row's own language
        ("length_z", pa.float32()),  # null where no lengths are known
        ("quality", pa.float32()),  # null where not scored
        ("run_id", pa.string()),
    ]
)


@dataclass
class VerificationPlan:
    """Section `verification` of a plan.

    checks: which checks are hard, and their thresholds; the translator retries by the same ones.
    calibrate: lengths are measured on the build's own rows, where a language has
        `calibration_rows`; else the defaults of `checks` stay.
    mine: look for starts and ends that many rows share though their sources do not.
    survey_rows: rows of a language that are surveyed for both, evenly taken from all.
    quality: a quality-estimation model in an environment of its own.
    back_translation: of a sample, by an endpoint.
    review_rows: rows of each language in a review sheet.
    seed: of the samples.
    """

    checks: CheckPlan = field(default_factory=CheckPlan)
    calibrate: bool = True
    calibration_rows: int = 200
    mine: bool = True
    survey_rows: int = 50_000
    quality: QualityPlan | None = None
    back_translation: BackTranslationPlan | None = None
    review_rows: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration_rows", "survey_rows", "review_rows"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"verification.{name}: expected at least 1, found {getattr(self, name)}"
                )


class VerifyWorker:
    """The step `verify/<lang>` (a Worker of units.py) on translated rows.

    Args:
        survey: of the language, as `survey_language` gives it; {} for none.

    Raises ValueError for a language that cannot be identified.
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
            # Where the program lies and how patiently it is asked changes no score.
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
        """Verified rows, in order. Raises ValueError for a row in another language."""
        for row in rows:
            if row["lang"] != self.lang:
                raise ValueError(
                    f"{self.name}: row {row['id']!r}: lang: expected {self.lang!r}, found {row['lang']!r}"
                )
        examined = [self._examine(row) if row["status"] == "ok" else None for row in rows]
        scores = await self._scores(rows, examined)
        # Others get their turn between two batches.
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
                "text": _plain(rows[n]),
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


def _plain(row: Row) -> str:
    return (row["text"] or "") if row["turns"] is None else plain_text(row["turns"])


# ------------------------------------------------------------------------------- the step


class VerificationStep:
    """The step on one build's folder.

    Args:
        folder: of the build, with `translate/<lang>/`.
        workers: processes of the survey.
        run_id: stored with every row.
    """

    def __init__(
        self,
        plan: VerificationPlan,
        folder: Path,
        *,
        source_language: str,
        languages: Sequence[str],
        workers: int = 1,
        run_id: str = "",
    ):
        self.plan, self.folder, self.run_id = plan, folder, run_id
        self.source_language, self.languages = source_language, list(languages)
        self.workers = workers

    def run(self) -> None:
        """Everything in this process."""
        for units in self.rounds():
            for name, pairs in units.items():
                run_units(self.worker(name), pairs)

    def rounds(self) -> Iterator[dict[str, list[tuple[Path, Path]]]]:
        """Worker -> its (source, target) units; the second round needs the first one's results.

        Raises ValueError when a source unit is not translated yet.
        """
        check_translated(self.folder, self.languages)
        self.survey()
        yield {
            f"verify/{lang}": [(unit, self.folder / "verify" / lang / unit.name) for unit in units]
            for lang in self.languages
            if (units := self._units("translate", lang))
        }
        if self.plan.back_translation is not None:
            yield {
                f"back_translation/{lang}": [(sample, self._back_translation(lang))]
                for lang in self.languages
                if (sample := self._sample(lang)) is not None
            }

    def survey(self) -> dict[str, Row]:
        """The surveys of all languages, made where they are not up to date."""
        plan = self.plan
        least = plan.calibration_rows if plan.calibrate else None
        jobs = [(self.folder, lang, least, plan.mine, plan.survey_rows) for lang in self.languages]
        workers = min(self.workers, len(jobs))
        if workers <= 1:
            return {
                lang: survey_language(*job) for lang, job in zip(self.languages, jobs, strict=True)
            }
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow) as pool:
            with without_signals():
                asked = pool.map(survey_language, *zip(*jobs, strict=True))
            try:
                found = list(asked)
            except BrokenProcessPool:
                raise OSError("verify: a process was killed; the same command continues") from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return dict(zip(self.languages, found, strict=True))

    def worker(self, name: str) -> Worker:
        """The worker "verify/<lang>" or "back_translation/<lang>".

        Raises ValueError where the language was not surveyed.
        """
        step, _, lang = name.partition("/")
        if step == "back_translation":
            assert self.plan.back_translation is not None
            return BackTranslationWorker(self.plan.back_translation, lang)
        survey = read_survey(self.folder, lang)
        if survey is None:
            path = survey_path(self.folder, lang)
            raise ValueError(f"{path}: {lang} was not surveyed; run the step verify")
        return VerifyWorker(
            self.plan,
            lang,
            self.source_language,
            self.languages,
            survey,
            self.run_id,
        )

    def report(self) -> Row:
        """Counts per language; written to `verify/report.json`."""
        from .report import verify_report

        found = verify_report(self.folder, self.languages, self.plan)
        write_json(self.folder / "verify" / "report.json", found)
        return found

    def _units(self, step: str, lang: str) -> list[Path]:
        return sorted((self.folder / step / lang).glob("*.parquet"))

    def _back_translation(self, lang: str) -> Path:
        return self.folder / "back_translation" / lang / "00000.parquet"

    def _sample(self, lang: str) -> Path | None:
        """The drawn rows as a unit of their own; None where no row was accepted."""
        assert self.plan.back_translation is not None
        size, seed = self.plan.back_translation.rows, self.plan.seed
        rows = (
            (drawn(seed, row["id"], lang), row["id"], row)
            for row in verified_rows(self.folder, lang)
            if row["status"] == "ok"
        )
        chosen = [row for *_, row in heapq.nsmallest(size, rows, key=lambda item: item[:2])]
        if not chosen:
            return None
        sample = [
            {
                "id": row["id"],
                "lang": lang,
                "text": _plain(row),
                "source_text": plain_source(row),
                "source_lang": row["source_lang"],
            }
            for row in sorted(chosen, key=lambda row: row["id"])
        ]
        path = self.folder / "back_translation" / "samples" / f"{lang}.parquet"
        write_parquet(path, pa.Table.from_pylist(sample, schema=SAMPLE))
        return path


# ------------------------------------------------------------------------------- what came out


def _follow() -> None:
    """In a process of the survey: end with the parent, and leave Ctrl-C to it."""
    leave_ctrl_c()
    end_with_parent()


def verified_rows(folder: Path, lang: str) -> Iterator[Row]:
    """Translated rows with `verified`, their row of `VERIFIED`; text as translated, `status` as verified.

    Raises ValueError for a unit that is not verified, or was translated again since.
    """
    units = sorted((folder / "translate" / lang).glob("*.parquet"))
    if not units:
        raise ValueError(
            f"{folder}: nothing is translated into {lang}; run the step translate first"
        )
    for unit in units:
        path = folder / "verify" / lang / unit.name
        if not path.is_file():
            raise ValueError(f"{path}: not verified yet; run the step verify")
        manifest = UnitManifest.read(manifest_path(path))
        if manifest is not None and manifest.source_sha256 != unit_sha256(unit):
            raise ValueError(f"{path}: translated again since; run the step verify")
        rows, found = _rows_of(unit, TRANSLATED), _rows_of(path, VERIFIED)
        if [row["id"] for row in rows] != [row["id"] for row in found]:
            raise ValueError(f"{path}: has other rows than {unit}; run the step verify again")
        for row, verified in zip(rows, found, strict=True):
            yield {**row, "status": verified["status"], "verified": verified}


def _rows_of(unit: Path, schema: pa.Schema) -> list[Row]:
    """The rows of a finished unit. Raises ValueError for a table of other columns."""
    with parquet_file(unit) as file:
        if file.schema_arrow.names == schema.names:
            return file.read().to_pylist()
    raise ValueError(f"{unit}: expected the columns {', '.join(schema.names)}, found others")


def final_rows(folder: Path, lang: str) -> Iterator[Row]:
    """The rows of a language as they leave the step, people's decisions applied: `final_row` of each."""
    overrides = read_overrides(folder, "translation")
    for row in verified_rows(folder, lang):
        yield final_row(row, overrides)


def final_row(row: Row, overrides: Mapping[tuple[str, str], Row]) -> Row:
    """A row of `verified_rows` with people's decisions applied.

    Columns of `TRANSLATED`, with `flags` and `reasons` of translation and verification, and
    `lid_confidence`, `quality` and `reviewed` ("accept", "reject" or None). A row that is not "ok"
    has neither text nor turns. A decision about a text that has changed since is not applied.

    Args:
        overrides: as `read_overrides` gives them, of the kind "translation".
    """
    verified = row["verified"]
    override = overrides.get((row["id"], row["lang"]))
    made = {name: value for name, value in row.items() if name != "verified"}
    reviewed = None
    if override and override["text_sha256"] == sha256_text(_plain(row)):
        reviewed = override["decision"]
        made["status"] = "ok" if reviewed == "accept" else "rejected"
    if made["status"] == "ok":
        made["reasons"] = None
    else:
        made["text"] = made["turns"] = None
        made["reasons"] = verified["reasons"] or row["reasons"]
        if reviewed and override:
            made["reasons"] = f"review: {override['note'] or 'rejected'}"
    return made | {
        "flags": sorted({*row["flags"], *verified["flags"]}),
        "lid_confidence": verified["lid_confidence"],
        "quality": verified["quality"],
        "reviewed": reviewed,
    }
