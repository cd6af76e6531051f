"""Run one unit and die at its n-th system call, for every n: `python crash_points.py FOLDER`.

Prints one JSON line per n: what the next, undisturbed run found and did. The calls are all those that write
to disk. A write dies half-way, other calls die before they run. Modules are imported once and each run is a
fork, so that a hundred deaths take seconds.
"""

import json
import os
import sys
from pathlib import Path

from maya_vlm.training.data.engine.journal import read_journal
from maya_vlm.training.data.engine.unit_files import UnitManifest, check_unit, manifest_path
from maya_vlm.training.data.engine.units import run_unit
from tests.data.engine.tiny_worker import TinyWorker, read, sources

CALLS = ("write", "fsync", "ftruncate", "replace", "rename", "unlink")
ROWS = 5


def dying(at: int) -> None:
    """Let the `at`-th call from now on end the process, as a kill does."""
    count = 0

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count - 1 == at:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os._exit(9)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)


def forked(run) -> int:
    """Run in a separate process, and return the exit status."""
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def state(target: Path) -> dict:
    """Return what a reader finds after the crash; an unreadable parquet file raises."""
    answers = [
        record["n"]
        for path in (target.parent / "journal").glob("*.jsonl")
        for _, record in read_journal(path)
        if "n" in record
    ]
    return {
        "parquet": len(read(target)) if target.exists() else None,
        "manifest": UnitManifest.read(manifest_path(target)) is not None,
        "journal": answers,
    }


def main(folder: Path) -> None:
    for at in range(1000):
        place = folder / f"{at:03d}"

        def crash(at=at, place=place):
            ((source, target),) = sources(place, 1, ROWS)
            dying(at)
            run_unit(TinyWorker(), source, target)

        def check(at=at, place=place):
            source = place / "source" / "00000.parquet"
            target = place / "translate" / "fr" / "00000.parquet"
            found = state(target)
            finished = isinstance(check_unit("model-1", source, target), UnitManifest)
            worker = TinyWorker()
            run_unit(worker, source, target)
            good = read(target) == [worker.answer(row) for row in read(source)]
            left = [p.name for p in (target.parent / "journal").iterdir()]
            left += [p.name for p in target.parent.glob(".*")]
            line = {
                "at": at,
                "found": found,
                "finished": finished,
                "asked": dict(worker.asked),
                "whole": good and isinstance(check_unit("model-1", source, target), UnitManifest),
                "left": left,
            }
            print(json.dumps(line))

        died = forked(crash)
        if forked(check):
            sys.exit(f"after a crash at call {at} the next run failed")
        if died == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
