"""`maya data build`: run the steps of a plan in order, and continue each where it stopped."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.files import only_one
from ..common.signals import stopping
from ..common.telling import one_line
from .engine.executors import run_jobs
from .engine.progress import failure_lines
from .engine.unit_files import Job, UnitManifest, reopen_unit
from .plan import (
    Plan,
    load_plan,
    make_worker,
    toxicity_step_of_build,
    verification_step,
    write_plan,
)
from .sources.step import build_sources, finished_sources


@dataclass(frozen=True)
class _Options:
    """Options of `maya data build` other than the plan."""

    retry_failed: bool
    progress: bool
    trust_remote_code: bool


def build_dataset(
    path: Path,
    overrides: Sequence[str] = (),
    steps: Sequence[str] | None = None,
    retry_failed: bool = False,
    progress: bool = True,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> Path:
    """Build the dataset of a plan, and return its folder. The same call continues a build that stopped.

    Args:
        path: file of the plan.
        overrides: `a.b=value` settings that replace values of the plan.
        steps: steps to run; default: every step that has a section in the plan.
        retry_failed: repeat the requests of rows that failed for good.
        progress: show progress bars.
        trust_remote_code: allow a model to run its own code.
        allow_code: allow functions and programs that the plan names to run.

    Raises:
        Stopped: after SIGTERM or SIGINT; finished rows are kept.
        ValueError, OSError: bad plan or source, unfinished previous step, failing disk or endpoint,
            or another build in the same folder.
    """
    options = _Options(retry_failed, progress, trust_remote_code)
    plan = load_plan(path, overrides)
    if not allow_code:
        try:
            plan.check_code()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    wanted = [s for s, (_, section) in _RUN.items() if section is None or getattr(plan, section)]
    if steps is not None:
        for step in steps:
            if step not in _RUN:
                raise ValueError(f"step {step!r}: expected one of {', '.join(_RUN)}")
            if step not in wanted:
                raise ValueError(f"step {step!r}: expected a section for it in {path}, found none")
        wanted = [step for step in wanted if step in steps]
    plan.folder.mkdir(parents=True, exist_ok=True)
    refusal = f"{plan.folder}: another build is running here; wait for it or stop it"
    with (
        only_one(plan.folder / ".build.lock", refusal),
        stopping("the same command continues"),
    ):
        write_plan(plan, plan.folder / "plan.yaml")
        for step in wanted:
            if step == "assemble" and plan.toxicity is not None and "toxicity" not in wanted:
                # Texts or reviews may have changed since the last decisions.
                _decide_again(plan)
            _RUN[step][0](plan, options)
    return plan.folder


def _source(plan: Plan, options: _Options) -> None:
    build_sources(
        plan.source,
        plan.folder / "source",
        plan.unit_rows,
        options.progress,
        plan.layout.images == "bytes",  # published pictures must decode
    )


def _translate(plan: Plan, options: _Options) -> None:
    units = [unit["unit"] for unit in finished_sources(plan.folder / "source")["units"]]
    jobs = [
        Job(
            f"translate/{lang}",
            plan.folder / "source" / f"{unit}.parquet",
            plan.folder / "translate" / lang / f"{unit}.parquet",
        )
        for lang in plan.languages
        for unit in units
    ]
    _run(plan, jobs, options)


def _verify(plan: Plan, options: _Options) -> None:
    from .verification.report import format_report

    step = verification_step(plan)
    for units in step.rounds():
        jobs = [Job(name, *pair) for name, pairs in units.items() for pair in pairs]
        _run(plan, jobs, options)
    print(format_report(step.report()), flush=True)


def _toxicity(plan: Plan, options: _Options) -> None:
    from .toxicity.decisions import decide_build, format_summary

    step = toxicity_step_of_build(plan)
    for units in step.rounds(options.retry_failed):
        jobs = [Job(name, *pair) for name, pairs in units.items() for pair in pairs]
        _run(plan, jobs, options)
    print(format_summary(decide_build(step)), flush=True)


def _decide_again(plan: Plan) -> None:
    from .toxicity.decisions import decide_build, stored_policy

    step = toxicity_step_of_build(plan)
    decide_build(step, stored_policy(step))


def _assemble(plan: Plan, options: _Options) -> None:
    from .dataset.layout import assemble

    assemble(plan, options.progress)


# Step -> its function, and the section of the plan that enables it (None: always run).
_RUN: dict[str, tuple[Callable[[Plan, _Options], None], str | None]] = {
    "source": (_source, None),
    "translate": (_translate, "translator"),
    "verify": (_verify, "verification"),
    "toxicity": (_toxicity, "toxicity"),
    "assemble": (_assemble, None),
}


def _run(plan: Plan, jobs: Sequence[Job], options: _Options) -> None:
    if not jobs:
        return
    if options.retry_failed:
        again = sum(reopen_unit(job.target, {"failed"}) for job in jobs)
        print(f"{again:,} failed rows are requested again", flush=True)
    logs = plan.folder / "logs" / jobs[0].worker.split("/")[0]
    make = functools.partial(make_worker, plan, trust_remote_code=options.trust_remote_code)
    manifests = run_jobs(make, jobs, plan.executor, logs, progress=options.progress)
    for line in summary(manifests):
        print(line, flush=True)
    check_answers(manifests)


def summary(manifests: Sequence[UnitManifest]) -> list[str]:
    """Return per worker one line of row counts by status or label, then the reasons for missing answers."""
    rows: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    failures: dict[str, Counter[str]] = {}
    for manifest in manifests:
        rows[manifest.worker] += manifest.rows
        counts.setdefault(manifest.worker, Counter()).update(manifest.counts)
        failures.setdefault(manifest.worker, Counter()).update(manifest.failures)
    lines = []
    for name, n in rows.items():
        listed = "".join(f", {label} {number:,}" for label, number in sorted(counts[name].items()))
        lines.append(f"{name}: {n:,} rows{listed}")
        lines += failure_lines(name, failures[name])
    return lines


def check_answers(manifests: Sequence[UnitManifest]) -> None:
    """Raise OSError if no row of a step has an answer."""
    rows, failed = sum(m.rows for m in manifests), sum(m.failed for m in manifests)
    if rows and failed == rows:
        reasons: Counter[str] = Counter()
        for manifest in manifests:
            reasons.update(manifest.failures)
        told = "; ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(3))
        step = manifests[0].worker.partition("/")[0]
        raise OSError(
            f"{step}: all {rows:,} rows failed: {one_line(told, 300)}: fix the cause, then run the same "
            "command with --retry-failed"
        )
