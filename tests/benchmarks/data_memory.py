"""Peak memory of a dataset's build with ten thousand and with many more generated rows.

    python tests/benchmarks/data_memory.py [--rows 4400000]

Writes a JSON file like LLaVA-Pretrain's with the given number of rows. Separate processes then read it into source
units (`sources`), and run the unit engine on them with a worker that answers at once (`units`): with the same
journals, parquet files and manifests as a translation. Memory is the kernel's count of a process's peak (VmHWM),
including Python and its packages. The result goes to results/data_memory.json; the files are deleted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "data_memory.json"
sys.path.insert(0, str(ROOT))

from tests.benchmarks.memory import bytes_of  # noqa: E402

SMALL = 10_000
# Limit: the additional memory of many rows compared with few.
MOST = 1.2
UNIT_ROWS = 2000

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "old",
    "small",
    "man",
    "woman",
    "dog",
    "street",
    "house",
    "with",
    "near",
    "under",
    "sky",
    "tree",
    "water",
]


def write_rows(path: Path, count: int) -> None:
    """Write captions of 9 to 17 words with ids and instructions like LLaVA-Pretrain's, in random order."""
    with path.open("w") as file:
        file.write("[")
        for n in range(count):
            identity = f"{n * 7919 % 999_999_937:09d}"
            words = [WORDS[(n * 31 + i * i) % len(WORDS)] for i in range(9 + n % 9)]
            row = {
                "id": identity,
                "image": f"{identity[:5]}/{identity}.jpg",
                "conversations": [
                    {"from": "human", "value": "Write a terse but informative summary.\n<image>"},
                    {"from": "gpt", "value": " ".join(words)},
                ],
            }
            file.write(("," if n else "") + json.dumps(row))
        file.write("]")


def measure_sources(folder: Path) -> dict:
    from maya_vlm.training.data.sources.plan import SourcePlan
    from maya_vlm.training.data.sources.step import build_sources

    plan = SourcePlan("llava", str(folder / "rows.json"), language="en", task="caption")
    imports, begun = bytes_of("VmHWM"), time.perf_counter()
    manifest = build_sources(plan, folder / "source", UNIT_ROWS, progress=False)
    return {"rows": manifest["rows"], "imports": imports, "seconds": time.perf_counter() - begun}


def measure_units(folder: Path) -> dict:
    from maya_vlm.training.data.engine.units import run_units
    from maya_vlm.training.data.translation.worker import TRANSLATED

    class Echo:
        """Worker that returns the unchanged text in the columns of a translated row."""

        name, key, schema, batch_rows, concurrency = "translate/xx", "echo", TRANSLATED, 1, 64

        async def __aenter__(self):
            return self

        async def __aexit__(self, *error):
            return None

        async def process(self, rows):
            return [
                dict.fromkeys(TRANSLATED.names)
                | {name: row[name] for name in ("id", "image", "image_sha256", "task", "text")}
                | {"lang": "xx", "source_text": row["text"], "source_lang": "en", "status": "ok"}
                | {"flags": [], "finish_reason": "stop", "model": "echo", "attempts": 1}
                for row in rows
            ]

    units = [
        (path, folder / "translate" / "xx" / path.name)
        for path in sorted((folder / "source").glob("*.parquet"))
    ]
    imports, begun = bytes_of("VmHWM"), time.perf_counter()
    rows = sum(manifest.rows for manifest in run_units(Echo(), units))
    return {"rows": rows, "imports": imports, "seconds": time.perf_counter() - begun}


MEASURES = {"sources": measure_sources, "units": measure_units}


def measure(rows: int, at: str | None) -> dict:
    found = {}
    with tempfile.TemporaryDirectory(dir=at) as place:
        write_rows(Path(place) / "rows.json", rows)
        for name in MEASURES:
            command = [sys.executable, __file__, "--measure", name, place]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(run.stderr)
            answer = json.loads(run.stdout.splitlines()[-1])
            if answer["rows"] != rows:
                sys.exit(f"{name}: {answer['rows']} of {rows} rows came out")
            seconds = answer.pop("seconds")
            found[name] = {
                "rows": rows,
                "peak_bytes": answer["peak"],
                "after_imports_bytes": answer["imports"],
                "seconds": round(seconds, 1),
                "rows_per_second": round(rows / seconds),
            }
            print(f"{name}, {rows:,} rows: {answer['peak'] / 1e6:.0f} MB, {seconds:.0f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_400_000)
    parser.add_argument("--at", help="where to make the files (default: the temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, place = args.measure
        print(json.dumps(MEASURES[name](Path(place)) | {"peak": bytes_of("VmHWM")}))
        return 0
    if args.rows <= SMALL:
        parser.error(f"--rows: expected more than {SMALL}, found {args.rows}")

    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.common.provenance import provenance

    few, many = measure(SMALL, args.at), measure(args.rows, args.at)
    ratios = {
        name: round(many[name]["peak_bytes"] / few[name]["peak_bytes"], 3) for name in MEASURES
    }
    result = {
        "what": "peak resident memory of a dataset's build, few rows against many",
        "few": few,
        "many": many,
        "peak_many_over_few": ratios,
        "limit": MOST,
        "within_limit": max(ratios.values()) <= MOST,
        "unit_rows": UNIT_ROWS,
        **provenance("pyarrow", "datatrove"),
        "load_average": [round(x, 1) for x in os.getloadavg()],
    }
    write_json(args.output, result)
    print(json.dumps(ratios))
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
