"""Test the executors: one step in processes, on Slurm's command line and on Ray; rc 0 means complete."""

import functools
import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from maya_vlm.training.common.files import write_json
from maya_vlm.training.common.signals import Stopped
from maya_vlm.training.data.engine import executors as engine
from maya_vlm.training.data.engine.executors import ExecutorPlan, run_jobs
from maya_vlm.training.data.engine.journal import Journal
from maya_vlm.training.data.engine.progress import UNITS, build_status
from maya_vlm.training.data.engine.unit_files import (
    Job,
    UnitManifest,
    check_unit,
    manifest_path,
    reopen_unit,
)
from tests.data.engine.tiny_worker import TinyWorker, make, make_faulty, read, sources, write_source

TWO = ExecutorPlan(workers=2)


@pytest.fixture
def jobs(tmp_path):
    """Return jobs for three units of ten rows in two languages."""
    units = sources(tmp_path, 3, 10)
    return [
        Job(f"translate/{lang}", source, target.parents[1] / lang / target.name)
        for lang in ("fr", "hi")
        for source, target in units
    ]


def run(jobs, tmp_path, plan=ExecutorPlan(), factory=make, **options):  # noqa: B008
    return run_jobs(
        functools.partial(factory, **options), jobs, plan, tmp_path / "logs", progress=False
    )


def assert_all(jobs, key="model-1"):
    for job in jobs:
        worker = TinyWorker(job.worker, key)
        assert isinstance(check_unit(key, job.source, job.target), UnitManifest)
        assert read(job.target) == [worker.answer(row) for row in read(job.source)]


def test_all_units_of_all_workers(jobs, tmp_path):
    manifests = run(jobs, tmp_path)
    assert_all(jobs)
    assert [(m.worker, m.unit) for m in manifests] == [(j.worker, j.target.stem) for j in jobs]
    assert (tmp_path / "logs" / "rank_00000.stderr").is_file()


def test_finished_units_start_no_rank(jobs, tmp_path, monkeypatch):
    first = run(jobs, tmp_path)
    monkeypatch.setattr(engine, "_run_local", None)
    assert run(jobs, tmp_path) == first


def test_what_is_known_is_read_once(jobs, tmp_path, monkeypatch):
    run(jobs[:3], tmp_path)
    checked, counted = [], []
    count_rows = engine.count_rows
    monkeypatch.setattr(
        engine, "check_unit", lambda *unit: checked.append(unit[2]) or check_unit(*unit)
    )
    monkeypatch.setattr(engine, "count_rows", lambda path: counted.append(path) or count_rows(path))
    run(jobs, tmp_path)
    assert_all(jobs)
    assert checked == [job.target for job in jobs] + [job.target for job in jobs[3:]]
    assert counted == [job.source for job in jobs[:3]]


@pytest.mark.parametrize("lost", ["manifest", "parquet", "edited", "all"])
def test_completion_marks_hide_no_lost_unit(jobs, tmp_path, lost):
    """Other engines returned rc 0 with missing rows: they trusted completion marks, not files."""
    run(jobs, tmp_path)
    marks = tmp_path / "logs" / "completions"
    marks.mkdir(exist_ok=True)
    (marks / "00000").touch()
    job = jobs[4]
    if lost in ("manifest", "all"):
        manifest_path(job.target).unlink()
    if lost in ("parquet", "all"):
        job.target.unlink()
    if lost == "edited":
        job.target.write_bytes(job.target.read_bytes() + b"\0")
    run(jobs, tmp_path)
    assert_all(jobs)


def test_rank_that_does_nothing_is_no_success(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_run_local", lambda *args: None)
    with pytest.raises(OSError, match=r"6 of 6 units are not finished, the first is .*: not done"):
        run(jobs, tmp_path)


def test_error_in_this_process_is_raised_as_it_is(jobs, tmp_path):
    once = tmp_path / "once"
    with pytest.raises(ValueError, match=r"^401: the key is refused$"):
        run(jobs, tmp_path, factory=make_faulty, fault="401", at="000000012", once=once)
    run(jobs, tmp_path)
    assert_all(jobs)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("killed", OSError, "the process of rank 0 was killed by SIGKILL"),
        ("exit", OSError, "the process of rank 0 ended with 3"),
        ("unpicklable", RuntimeError, "Unpicklable: row: bad"),
        ("401", ValueError, "401: the key is refused"),
    ],
)
def test_failing_process_hangs_nobody(jobs, tmp_path, fault, error, message):
    """A pool waits forever for a killed rank, and for an exception that cannot be unpickled."""
    once = tmp_path / "once"
    options = {"fault": fault, "at": "000000005", "once": once}
    with pytest.raises(error, match=message):
        run(jobs[:2], tmp_path, TWO, make_faulty, **options)
    run(jobs[:2], tmp_path, TWO, make_faulty, **options)
    assert_all(jobs[:2])


SCRIPT = """
import functools, sys
from pathlib import Path
from tests.data.engine.tiny_worker import make, sources
from maya_vlm.training.data.engine.executors import ExecutorPlan, run_jobs
from maya_vlm.training.data.engine.unit_files import Job

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = [Job("translate/fr", *pair) for pair in sources(folder, 2, 200)]
    run_jobs(
        functools.partial(make, pause=0.1, concurrency=4),
        jobs, ExecutorPlan(workers=2), folder / "logs", progress=False,
    )
"""


@pytest.mark.parametrize(
    "kind",
    [
        "SIGTERM",
        "group SIGKILL",
        pytest.param("SIGINT", marks=pytest.mark.slow),
        pytest.param("group SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_signals_reach_every_process(tmp_path, kind):
    (tmp_path / "run.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    folder = tmp_path / "translate" / "fr" / "journal"
    while sum(path.stat().st_size > 1000 for path in folder.glob("*.jsonl")) < 2:
        assert process.poll() is None, process.stderr.read()
    number = signal.Signals[kind.split()[-1]]
    (os.killpg if "group" in kind else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    if number != signal.SIGKILL:
        assert f"Stopped: stopped by {number.name}" in errors
    else:
        # Its children and their locks are gone too.
        assert not list(tmp_path.glob("translate/fr/*.parquet"))
    jobs = [
        Job("translate/fr", source, tmp_path / "translate" / "fr" / source.name)
        for source in sorted((tmp_path / "source").glob("*.parquet"))
    ]
    manifests = run(jobs, tmp_path)
    assert_all(jobs)
    assert {m.sessions for m in manifests} == {2}


def test_units_that_the_source_lost_are_deleted(jobs, tmp_path, capsys):
    run(jobs, tmp_path)
    run(jobs[:2], tmp_path)
    left = sorted(p.name for p in jobs[0].target.parent.iterdir())
    assert left == ["00000.json", "00000.parquet", "00001.json", "00001.parquet", "journal", UNITS]
    assert "deleted 2 files of units that are no longer in the source" in capsys.readouterr().out
    assert len(list(jobs[3].target.parent.glob("*.parquet"))) == 3


def test_changed_unit_size_loses_and_doubles_nothing(jobs, tmp_path):
    """In the engine that we measured, 553 of 1,050 rows were missing, with rc 0."""
    run(jobs[:3], tmp_path)
    rows = [row for job in jobs[:3] for row in read(job.source)]
    for job in jobs[:3]:
        job.source.unlink()
    again = [
        Job("translate/fr", write_source(tmp_path / "source" / f"{n:05d}.parquet", rows[i : i + 7]),
            tmp_path / "translate" / "fr" / f"{n:05d}.parquet")
        for n, i in enumerate(range(0, 30, 7))
    ]  # fmt: skip
    run(again, tmp_path)
    assert_all(again)
    out = [row["id"] for path in sorted((tmp_path / "translate" / "fr").glob("*.parquet"))
           for row in read(path)]  # fmt: skip
    assert out == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "executor: workers: expected 1 or more, found 0"),
        ({"tasks": 0}, "executor: tasks: expected 1 or more, found 0"),
        ({"options": {"a": 1}}, "executor.options: expected kind slurm or ray"),
        ({"kind": "slurm"}, "slurm: expected at least partition and time"),
    ],
)
def test_bad_executors(options, message):
    with pytest.raises(ValueError, match=message):
        ExecutorPlan(**options)


# Failed rows, requested again on demand


class Failing(TinyWorker):
    def answer(self, row):
        status = "failed" if row["id"].endswith("3") else "ok"
        return {**super().answer(row), "status": status}


def test_failed_rows_and_only_these_are_done_again(jobs, tmp_path):
    from maya_vlm.training.data.engine.units import run_unit

    job = jobs[0]
    assert run_unit(Failing(job.worker), *job[1:]).counts == {"failed": 1, "ok": 9}
    assert reopen_unit(job.target, {"rejected"}) == 0
    assert reopen_unit(job.target, {"failed"}) == 1
    assert reopen_unit(job.target, {"failed"}) == 0
    worker = TinyWorker(job.worker)
    run_unit(worker, *job[1:])
    assert_all([job])
    assert list(worker.asked) == ["000000003"]


def test_unit_that_cannot_be_reopened_keeps_no_file_open(jobs, monkeypatch):
    from maya_vlm.training.data.engine.units import run_unit

    job, closed = jobs[0], []
    run_unit(Failing(job.worker), *job[1:])
    close = Journal.close

    def fill(journal, number, row):
        raise OSError("the disk is full")

    monkeypatch.setattr(Journal, "append", fill)
    monkeypatch.setattr(Journal, "close", lambda self: closed.append(close(self)))
    with pytest.raises(OSError, match="the disk is full"):
        reopen_unit(job.target, {"failed"})
    assert len(closed) == 1
    assert isinstance(check_unit("model-1", job.source, job.target), UnitManifest)


# Slurm's commands only: sbatch runs the tasks of the array one after the other, in the background, and squeue
# shows the job while it runs. test_slurm.py uses a real Slurm.

SBATCH = """\
    #!{python}
    import os, re, subprocess, sys
    script = sys.stdin.read() if sys.argv[-1] in ("-", "sbatch") else open(sys.argv[-1]).read()
    folder = {folder!r}
    number = len(os.listdir(folder + "/jobs")) + 1
    array = re.search(r"--array=0-(\\d+)", script)
    path = folder + "/jobs/" + str(number)
    open(path, "w").write(script)
    if array:
        open(path + ".running", "w").close()
        command = " ; ".join(
            f"SLURM_ARRAY_TASK_ID={{n}} RUN_OFFSET=0 SLURM_NODELIST=localhost bash {{path}}"
            for n in range(int(array.group(1)) + 1)
        )
        subprocess.Popen(f"({{command}}) > {{path}}.log 2>&1; rm {{path}}.running", shell=True)
    print("Submitted batch job", number)
"""
SQUEUE = """\
    #!{python}
    import os, sys
    number = sys.argv[sys.argv.index("--jobs") + 1]
    if os.path.exists({folder!r} + "/jobs/" + number + ".running"):
        print(number)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    (folder / "jobs").mkdir(parents=True)
    scontrol = "#!/bin/sh\necho localhost\n"
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": scontrol}.items():
        path = folder / name
        text = textwrap.dedent(text).format(python=sys.executable, folder=str(folder))
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return ExecutorPlan(
        "slurm", 2, options={"partition": "all", "time": "01:00:00", "with_srun": False}
    )


def test_slurm(jobs, tmp_path, slurm):
    run(jobs[:3], tmp_path, slurm)
    assert_all(jobs[:3])
    script = (tmp_path / "slurm" / "jobs" / "1").read_text()
    assert "#SBATCH --array=0-1%2" in script


@pytest.mark.slow
def test_slurm_tells_why_a_rank_failed(jobs, tmp_path, slurm):
    options = {"fault": "401", "at": "000000005", "once": tmp_path / "once"}
    with pytest.raises(OSError, match=r"units are not finished, the first is .*: 401: the key"):
        run(jobs[:2], tmp_path, slurm, make_faulty, **options)


@pytest.mark.slow
def test_ray(jobs, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run(jobs, tmp_path, ExecutorPlan("ray", 2, options={"mem_per_cpu_gb": 0.2}))
    finally:
        ray.shutdown()
    assert_all(jobs)


def test_stop_is_told_apart_from_failure(jobs, tmp_path, monkeypatch):
    def stop(*args):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(engine, "_run_local", stop)
    with pytest.raises(Stopped):
        run(jobs, tmp_path)


def test_survey_needs_a_build(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no build"):
        build_status(tmp_path / "nothing")
    write_json(tmp_path / "source" / "x.json", {})
    assert build_status(tmp_path).source is None
