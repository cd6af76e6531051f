"""Kill a build at random moments for a number of times, then let it finish.

    python -m tests.data.engine.chaos PLAN URL KILLS SEED

Prints one JSON line about the files on disk after each kill, and one at the end. Modules are imported
once; each run of the build is a fork in a separate process group, which is killed as a whole.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from maya_vlm.training.common.files import sha256_file
from maya_vlm.training.data.build import build_dataset
from maya_vlm.training.data.engine.journal import read_journal
from maya_vlm.training.data.engine.unit_files import UnitManifest, manifest_path
from maya_vlm.training.data.plan import load_plan
from tests.data.engine.crash_points import forked
from tests.helpers.endpoint_server import stats

STEPS = ("source", "translate")


def look(folder: Path) -> dict:
    """Return what a reader finds at any moment: complete files, correct manifests, no row twice."""
    import pyarrow.parquet as pq

    seen: Counter = Counter()
    found: dict = {"finished": 0, "unreadable": [], "wrong_hash": []}
    for path in sorted(folder.glob("translate/*/*.parquet")):
        try:
            rows = pq.ParquetFile(path).read(["id", "lang"]).to_pylist()
        except Exception as error:
            found["unreadable"].append(f"{path}: {error}")
            continue
        seen.update((row["id"], row["lang"]) for row in rows)
        manifest = UnitManifest.read(manifest_path(path))
        if manifest is not None:
            found["finished"] += 1
            if manifest.parquet_sha256 != sha256_file(path):
                found["wrong_hash"].append(str(path))
    for path in folder.glob("translate/*/journal/*.jsonl"):
        unit = path.parents[1] / f"{path.stem.rpartition('-')[2]}.parquet"
        if not unit.exists():
            answers = [r["row"] for _, r in read_journal(path) if "row" in r]
            seen.update((row["id"], row["lang"]) for row in answers)
    return found | {"rows": len(seen), "doubled": sum(n > 1 for n in seen.values())}


def main(path: str, url: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    folder = load_plan(Path(path)).folder
    done = 0
    while done < kills:
        stop_at = stats(url)["requests"] + chance.randrange(1, 250)
        child = os.fork()
        if not child:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            build_dataset(Path(path), steps=STEPS, progress=False)
            os._exit(0)
        while stats(url)["requests"] < stop_at:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit(f"the build ended after {done} kills: too little work for {kills}")
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        if forked(lambda: print(json.dumps(look(folder)))):
            sys.exit("what the kill left cannot be read")
    if forked(lambda: build_dataset(Path(path), steps=STEPS, progress=False)):
        sys.exit("the last run failed")
    print(json.dumps(look(folder)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
