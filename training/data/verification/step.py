"""The verification step of a build: accept every translated row, or reject it with reasons.

First the translations of each language are surveyed (survey.py). Then every row is checked (checks/), with
the survey's findings, and scored by a quality-estimation model if the plan has one (quality.py). Last, a
sample is translated back. People's decisions (review/) override the step, in `final_rows`.
"""

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from ...common.files import write_json, write_parquet
from ...common.signals import end_with_parent
from ...rows.parquet import Row
from ..engine.executors import leave_ctrl_c, without_signals
from ..engine.units import Worker
from ..translation.worker import check_translated
from .back_translation import SAMPLE, BackTranslationWorker, drawn, plain_source
from .plan import VerificationPlan
from .report import verify_report
from .rows import plain_translation, verified_rows
from .survey import read_survey, survey_language, survey_path
from .worker import VerifyWorker


@dataclass
class VerificationStep:
    """The step in the folder of one build.

    folder: folder of the build, with `translate/<lang>/`.
    workers: number of processes for the survey.
    run_id: hash that is stored with every row.
    """

    plan: VerificationPlan
    folder: Path
    source_language: str
    languages: Sequence[str]
    workers: int = 1
    run_id: str = ""

    def rounds(self) -> Iterator[dict[str, list[tuple[Path, Path]]]]:
        """Yield {worker: its (source, target) units}; the second round needs results of the first.

        Raises:
            ValueError: a source unit is not translated yet.
        """
        check_translated(self.folder, self.languages)
        self.survey()
        yield {
            f"verify/{lang}": [(unit, self.folder / "verify" / lang / unit.name) for unit in units]
            for lang in self.languages
            if (units := sorted((self.folder / "translate" / lang).glob("*.parquet")))
        }
        if self.plan.back_translation is not None:
            yield {
                f"back_translation/{lang}": [(sample, self._back_translation(lang))]
                for lang in self.languages
                if (sample := self._sample(lang)) is not None
            }

    def survey(self) -> dict[str, Row]:
        """Return {language: survey}; surveys that are not up to date are made."""
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
                raise OSError(
                    "verify: a process of the survey was killed; the same command continues"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return dict(zip(self.languages, found, strict=True))

    def worker(self, name: str) -> Worker:
        """Return the worker "verify/<lang>" or "back_translation/<lang>".

        Raises:
            ValueError: the language has no survey.
        """
        step, _, lang = name.partition("/")
        if step == "back_translation":
            assert self.plan.back_translation is not None
            return BackTranslationWorker(self.plan.back_translation, lang)
        survey = read_survey(self.folder, lang)
        if survey is None:
            path = survey_path(self.folder, lang)
            raise ValueError(
                f"{path}: expected a survey of {lang}, found none: run the step verify"
            )
        return VerifyWorker(
            self.plan, lang, self.source_language, self.languages, survey, self.run_id
        )

    def report(self) -> Row:
        """Return counts per language, and write them to `verify/report.json`."""
        found = verify_report(self.folder, self.languages, self.plan)
        write_json(self.folder / "verify" / "report.json", found)
        return found

    def _back_translation(self, lang: str) -> Path:
        return self.folder / "back_translation" / lang / "00000.parquet"

    def _sample(self, lang: str) -> Path | None:
        """Write the sampled rows as a separate unit; return None if no row was accepted."""
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
                "text": plain_translation(row),
                "source_text": plain_source(row),
                "source_lang": row["source_lang"],
            }
            for row in sorted(chosen, key=lambda row: row["id"])
        ]
        path = self.folder / "back_translation" / "samples" / f"{lang}.parquet"
        write_parquet(path, pa.Table.from_pylist(sample, schema=SAMPLE))
        return path


def _follow() -> None:
    """Initialise a process of the survey: it ends with its parent, and leaves Ctrl-C to the parent."""
    leave_ctrl_c()
    end_with_parent()
