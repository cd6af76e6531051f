"""Two installed versions of this package side by side: seconds and peak memory of the same commands.

    python tests/benchmarks/two_versions.py --before OLD/.venv/bin/maya --after .venv/bin/maya

Each version is installed in a separate virtual environment with the same libraries. Every command runs in a separate
process, on the same input:

    help      `maya --help`
    train     `maya train mini`, a few steps of both stages
    evaluate  `maya evaluate`, on the model that this version trained, without baselines
    validate  `maya data validate`, on LLaVA's JSON with pictures

In every round both versions run each command, and the order alternates. A ratio is the median over rounds of the
ratio of two times in one round, after / before, with minimum and maximum. CPU seconds include child processes; they
vary less than wall-clock seconds if other programs run. `weights_equal` says whether both trainings wrote the same
weights.

Results go to results/two_versions.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maya_vlm.training.common.files import files_sha256, write_json
from maya_vlm.training.common.provenance import provenance

RESULT = Path(__file__).parent / "results" / "two_versions.json"
VERSIONS = ("before", "after")
STEPS = "stages.{}.args.max_steps={}"


def make_rows(folder: Path, rows: int, pictures: int = 200) -> Path:
    """Write LLaVA's JSON with `rows` conversations about `pictures` pictures of 64 x 64, and return the file."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(pictures):
        colour = (number, 255 - number, 7 * number % 256)
        Image.new("RGB", (64, 64), colour).save(folder / "pictures" / f"{number}.png")
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A picture of one colour."},
    ]
    found = [
        {"id": str(row), "image": f"{row % pictures}.png", "conversations": turns}
        for row in range(rows)
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def run(command: Sequence[str]) -> dict[str, float]:
    """Return the seconds and peak memory of one command. Raise RuntimeError with its output if it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}:\n{said}")
    return {
        "wall_seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mib": used.ru_maxrss / 1024,
    }


def commands(
    maya: str, version: str, work: Path, rows: Path, steps: Sequence[int], limit: int
) -> dict[str, Callable[[int], list[str]]]:
    """Return command name -> its command line in a round."""
    sets = [STEPS.format(stage, count) for stage, count in enumerate(steps)]

    def model(number: int) -> str:
        return str(work / version / f"model-{number}")

    return {
        "help": lambda _: [maya, "--help"],
        "train": lambda n: [maya, "train", "mini", "--output-dir", model(n), "--set", *sets],
        "evaluate": lambda n: [
            *(maya, "evaluate", model(n), "--limit", str(limit), "--no-baselines"),
            *("--output", str(work / version / f"scores-{n}")),
        ],
        "validate": lambda _: [
            *(maya, "data", "validate", str(rows)),
            *("--images", str(rows.parent / "pictures"), "--language", "en"),
        ],
    }


def weights(folder: Path) -> list[str]:
    """Return the SHA-256 of each trained model's weights, in the order of rounds."""
    return [files_sha256([path]) for path in sorted(folder.glob("model-*/model.safetensors"))]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the whole comparison, in the form of the results file."""
    rows = make_rows(work / "rows", args.rows)
    plans = {
        version: commands(getattr(args, version), version, work, rows, args.steps, args.limit)
        for version in VERSIONS
    }
    names = list(plans["before"])
    taken: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {version: [] for version in VERSIONS} for name in names
    }
    for number in range(args.rounds):
        for name in names:
            for version in VERSIONS if number % 2 == 0 else VERSIONS[::-1]:
                found = run(plans[version][name](number))
                taken[name][version].append(found)
                print(f"round {number}, {name}, {version}: {found['wall_seconds']:.2f} s")
    measures = ("wall_seconds", "cpu_seconds", "peak_memory_mib")
    trained = {version: weights(work / version) for version in VERSIONS}
    return {
        "what": (__doc__ or "").splitlines()[0],
        "settings": {
            "rounds": args.rounds,
            "steps": args.steps,
            "limit": args.limit,
            "rows": args.rows,
        },
        "versions_compared": {version: commit_of(getattr(args, version)) for version in VERSIONS},
        "weights_equal": trained["before"] == trained["after"],
        "commands": {
            name: {
                "after_over_before": {
                    measure: spread(
                        [
                            after[measure] / before[measure]
                            for before, after in zip(*map(taken[name].get, VERSIONS), strict=True)
                        ]
                    )
                    for measure in measures
                },
                **{
                    version: {
                        measure: spread([one[measure] for one in taken[name][version]])
                        for measure in measures
                    }
                    for version in VERSIONS
                },
            }
            for name in names
        },
        **provenance(),
    }


def commit_of(maya: str) -> str:
    """Return the commit that an environment's `maya` was installed from."""
    python = Path(maya).parent / "python"
    code = "import maya_vlm.training as room; print(room.__path__[0])"
    place = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    command = ["git", "-C", place.stdout.strip(), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", required=True, help="the `maya` of the older version")
    parser.add_argument("--after", required=True, help="the `maya` of the newer version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs=2, default=[40, 60], help="of the two stages")
    parser.add_argument("--limit", type=int, default=100, help="pictures of the evaluation")
    parser.add_argument("--rows", type=int, default=40_000, help="of the validation")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="two-versions-") as work:
        found = measure(args, Path(work))
    write_json(args.output, found)
    for name, each in found["commands"].items():
        ratio = each["after_over_before"]
        print(
            f"{name}: CPU {ratio['cpu_seconds']['median']:.2f} "
            f"({ratio['cpu_seconds']['least']:.2f} to {ratio['cpu_seconds']['most']:.2f}), wall "
            f"{ratio['wall_seconds']['median']:.2f}, memory {ratio['peak_memory_mib']['median']:.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
