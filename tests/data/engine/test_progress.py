"""Test the status, which is read from disk, also during writes."""

import functools
import json
import time

import pytest

from maya_vlm.training.cli import main
from maya_vlm.training.common.files import write_json
from maya_vlm.training.data.engine.executors import ExecutorPlan, run_jobs
from maya_vlm.training.data.engine.journal import Journal
from maya_vlm.training.data.engine.progress import Progress, build_status, format_status
from maya_vlm.training.data.engine.unit_files import Job
from maya_vlm.training.data.engine.units import run_unit
from tests.data.engine.tiny_worker import SCHEMA, TinyWorker, make, sources


@pytest.fixture
def jobs(tmp_path):
    units = sources(tmp_path, 3, 10)
    write_json(
        tmp_path / "source" / "manifest.json", {"rows": 30, "refused": 2, "units": [{}, {}, {}]}
    )
    return [Job("translate/fr", *pair) for pair in units]


def run(jobs, tmp_path, **options):
    make_worker = functools.partial(make, **options)
    run_jobs(make_worker, jobs, ExecutorPlan(), tmp_path / "logs", progress=False)


class Judging(TinyWorker):
    schema = SCHEMA.append(SCHEMA.field("text").with_name("reasons"))

    def answer(self, row):
        bad = row["id"].endswith("7")
        return {**super().answer(row), "status": "rejected" if bad else "ok", "reasons": ""}


def test_finished_build(jobs, tmp_path):
    run(jobs, tmp_path)
    (worker,) = build_status(tmp_path).workers
    assert (worker.units_done, worker.units) == (3, 3)
    assert (worker.rows_done, worker.rows) == (30, 30)
    assert worker.counts == {"ok": 30}
    assert worker.retries == worker.restarts == 0
    assert worker.seconds_left == 0.0


def test_unit_in_work_counts_from_its_journal(jobs, tmp_path):
    run(jobs, tmp_path)
    job = jobs[1]
    job.target.unlink()
    job.target.with_suffix(".json").unlink()
    journal = Journal(job.target.parent / "journal" / "0123456789abcdef-00001.jsonl", 10)
    for n in range(4):
        journal.append(n, {"id": str(n), "lang": "fr", "status": "failed", "attempts": 3})
    journal.close()
    # An incomplete line.
    with journal.path.open("ab") as file:
        file.write(b'00000000 {"n": 5, "ro')
    (worker,) = build_status(tmp_path).workers
    assert (worker.units_done, worker.rows_done) == (2, 24)
    assert worker.counts == {"ok": 20, "failed": 4}
    assert worker.retries == 8
    assert worker.rate > 0
    text = "\n".join(format_status(build_status(tmp_path)))
    assert "30 rows in 3 units, 2 refused" in text
    assert "24/30" in text
    assert "failed 4, ok 20" in text
    assert "6 rows left" in text


def test_nothing_moves_and_time_left_is_unknown(jobs, tmp_path):
    run(jobs, tmp_path)
    jobs[2].target.with_suffix(".json").unlink()
    (worker,) = build_status(tmp_path, now=time.time() + 3600).workers
    assert worker.rate == 0.0
    assert worker.seconds_left is None
    assert "rows left" not in "\n".join(
        format_status(build_status(tmp_path, now=time.time() + 3600))
    )


def test_other_settings_do_not_count(jobs, tmp_path):
    run(jobs, tmp_path)
    listed = tmp_path / "translate" / "fr" / "units.json"
    write_json(listed, {**json.loads(listed.read_bytes()), "key": "model-2"})
    (worker,) = build_status(tmp_path).workers
    assert (worker.units_done, worker.rows_done) == (0, 0)


def test_progress_counts_manifests_and_journals(jobs):
    run_unit(TinyWorker(key="old"), *jobs[0][1:])
    progress = Progress(jobs, [10, 10, 10])
    assert progress.count() == 0  # rows made with other settings are made again
    run_unit(Judging(), *jobs[0][1:])
    assert progress.count() == 10
    journal = Journal(jobs[1].target.parent / "journal" / "0123456789abcdef-00001.jsonl", 10)
    for n in range(3):
        journal.append(n, {"id": str(n), "lang": "fr"})
        assert progress.count() == 11 + n
    journal.close()
    run_unit(Judging(), *jobs[1][1:])
    assert progress.count() == 20
    with progress:
        run_unit(Judging(), *jobs[2][1:])
    assert progress.count() == 30


def test_progress_tells_units_apart_by_their_whole_names(jobs):
    folder = jobs[0].target.parent
    named = [jobs[0]._replace(target=folder / f"{stem}.parquet") for stem in ("rules", "my-rules")]
    for job, rows in zip(named, (3, 5), strict=True):
        path = folder / "journal" / f"0123456789abcdef-{job.target.stem}.jsonl"
        journal = Journal(path, 10)
        for n in range(rows):
            journal.append(n, {"id": str(n), "lang": "fr"})
        journal.close()
    counts = [Progress([job], [10]).count() for job in named]
    assert (counts, Progress(named, [10, 10]).count()) == ([3, 5], 8)


def test_command(jobs, tmp_path, capsys):
    run(jobs, tmp_path)
    assert main(["data", "status", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path}: ")
    assert out[2].split()[:3] == ["step", "units", "rows"]
    assert out[3].split()[:5] == ["translate/fr", "3/3", "30/30", "ok", "30"]
    assert main(["data", "status", str(tmp_path / "nothing")]) == 2
    assert "expected the output_dir of a plan, found no build" in capsys.readouterr().err
