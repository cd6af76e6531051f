"""Share of an endpoint's concurrency that each engine uses: `maya data`, datatrove's InferenceRunner, datasets.map.

    python tests/benchmarks/translation_engine.py

A local server answers every request after the same latency, at most `--slots` requests at a time. The share is the
total seconds of answering, divided by the slots and by the time from an engine's first request to its last answer: an
engine that keeps every slot busy has a share of 1. All engines send the same messages for the same captions. `maya`
is the whole step: checks of every answer, journal with fsync, parquet, manifest. The engines alternate, each in a
separate process.

In addition to this package's extras, datatrove's runner needs aiofiles httpx aiosqlite typer pandas.
`datasets.map` has one blocking request per process, so its share is at most its processes over slots.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pyarrow.parquet as pq  # noqa: E402

from tests.data.toxicity.judges import source_row, write_build  # noqa: E402
from tests.helpers.endpoint_server import endpoint_process, stats  # noqa: E402

TARGET = 0.95
UNIT_ROWS = 500
PARAMETERS = {"temperature": 0.0, "max_tokens": 2048, "seed": 0}
ENGLISH = [
    ["a red", "a small", "an old", "a black", "a white", "a brown", "a grey", "a young"],
    ["dog", "cat", "horse", "bird", "cow", "donkey", "rabbit", "duck"],
    ["sleeps", "runs", "waits", "stands", "eats", "drinks"],
    ["near the river", "in front of the house", "under a tree", "on the beach", "in the garden"],
    ["at night", "in the morning", "in winter", "in the rain"],
]
FRENCH = [
    ["un", "un petit", "un vieux", "un beau", "un grand", "un gros", "un autre", "un jeune"],
    ["chien", "chat", "cheval", "oiseau", "bœuf", "âne", "lapin", "canard"],
    ["dort", "court", "attend", "se tient debout", "mange", "boit"],
    ["près de la rivière", "devant la maison", "sous un arbre", "sur la plage", "dans le jardin"],
    ["la nuit", "le matin", "en hiver", "sous la pluie"],
]
# Engine -> its function.
PACKAGES = ("aiohttp", "datatrove", "datasets", "httpx", "aiosqlite", "pyarrow")


def captions(rows: int) -> list[tuple[str, str]]:
    """Return (English, French) pairs of different captions."""
    english, french = itertools.product(*ENGLISH), itertools.product(*FRENCH)
    pairs = zip(map(" ".join, english), map(" ".join, french), strict=True)
    found = list(itertools.islice(pairs, rows))
    assert len(found) == rows, f"at most {len(found)} rows"
    return found


# ------------------------------------------------------------------------------ engines


def run_maya(url: str, folder: Path, slots: int) -> None:
    """Run units through the step of `maya data build`."""
    from maya_vlm.training.common.endpoint import EndpointPlan
    from maya_vlm.training.data.engine.units import run_units
    from maya_vlm.training.data.translation.plan import TranslatorPlan
    from maya_vlm.training.data.translation.worker import TranslateWorker

    plan = TranslatorPlan(
        endpoint=EndpointPlan(base_url=url, model="truth", concurrency=slots),
        parameters=dict(PARAMETERS),
    )
    worker = TranslateWorker(plan, "fr")
    sources = sorted((folder / "source").glob("*.parquet"))
    done = run_units(worker, [(s, folder / "maya" / s.name) for s in sources])
    counts: dict[str, int] = {}
    for manifest in done:
        for status, number in manifest.counts.items():
            counts[status] = counts.get(status, 0) + number
    assert set(counts) == {"ok"}, counts


def run_datatrove(url: str, folder: Path, slots: int, checkpoints: bool) -> None:
    """Run InferenceRunner as in its documentation, with or without its checkpoints."""
    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    messages = _messages()

    async def rollout(document: Document, generate: Any) -> Any:
        return await generate({"messages": messages(document.text)})

    runner = InferenceRunner(
        rollout_fn=rollout,
        config=InferenceConfig(
            server_type="endpoint",
            endpoint_url=url.removesuffix("/v1"),
            model_name_or_path="truth",
            default_generation_params=PARAMETERS,
            max_concurrent_generations=slots,
            metric_interval=600,
        ),
        output_writer=JsonlWriter(
            str(folder / "datatrove"), output_filename="${rank}_${chunk_index}.jsonl"
        )
        if checkpoints
        else JsonlWriter(str(folder / "datatrove")),
        checkpoints_local_dir=str(folder / "checkpoints") if checkpoints else None,
        records_per_chunk=UNIT_ROWS,
    )
    runner.run(Document(text=row["text"], id=row["id"]) for row in _rows(folder))


def run_datasets(url: str, folder: Path, processes: int) -> None:
    """Run `datasets.map`, with one blocking request per row in each process."""
    import datasets

    dataset = datasets.Dataset.from_list(
        [{"id": r["id"], "text": r["text"]} for r in _rows(folder)]
    )
    messages = _messages()

    def translate(row: dict[str, str]) -> dict[str, str]:
        import urllib.request

        body = {"model": "truth", "messages": messages(row["text"]), **PARAMETERS}
        request = urllib.request.Request(
            url + "/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = json.load(response)
        return {"translation": answer["choices"][0]["message"]["content"]}

    dataset.map(translate, num_proc=processes).to_parquet(folder / "datasets.parquet")


def _messages() -> Any:
    from maya_vlm.training.data.translation.prompts import read_prompt

    return read_prompt("rules", "en", "fr", ("〘", "〙")).messages


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row
        for file in sorted((folder / "source").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


# ------------------------------------------------------------------------------ measurement


def measure(engine: str, rows: int, args: argparse.Namespace) -> dict[str, float]:
    """Run an engine once, in a new process with a new server."""
    pairs = captions(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [source_row(f"{n:09}", text) for n, (text, _) in enumerate(pairs)]
        write_build(folder, sources, {}, UNIT_ROWS)
        truths = {"fr": dict(pairs)}
        with endpoint_process(truths, latency=args.latency, slots=args.slots) as url:
            command = [sys.executable, __file__, "--engine", engine, "--url", url]
            command += ["--folder", name, "--slots", str(args.slots)]
            command += ["--processes", str(args.processes)]
            started = time.monotonic()
            environment = {**os.environ, "no_proxy": "*", "OMP_NUM_THREADS": "1"}
            run = subprocess.run(command, capture_output=True, text=True, env=environment)
            whole = time.monotonic() - started
            assert run.returncode == 0, run.stderr[-3000:]
            counted = stats(url)
    assert counted["requests"] == rows, f"{engine}: {counted['requests']} requests for {rows} rows"
    return {
        "share": rows * args.latency / (args.slots * counted["seconds"]),
        "rows_per_second": rows / counted["seconds"],
        "seconds": counted["seconds"],
        "seconds_with_start": whole,
        "peak": counted["peak"],
    }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--slots", type=int, default=64, help="the endpoint's concurrency")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a request takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=8, help="of datasets.map")
    parser.add_argument("--engines", nargs="+", help="only these")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "tests/benchmarks/results/translation_engine.json"
    )
    for name in ("--engine", "--url", "--folder"):  # options of the measured processes
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.engine:
        folder = Path(args.folder)
        if args.engine == "maya":
            run_maya(args.url, folder, args.slots)
        elif args.engine == "datasets_map":
            run_datasets(args.url, folder, args.processes)
        else:
            run_datatrove(args.url, folder, args.slots, args.engine == "datatrove_checkpoints")
        return 0
    engines = args.engines or ["maya", "datasets_map"]
    if not args.engines and all(
        importlib.util.find_spec(name) for name in ("aiofiles", "httpx", "aiosqlite")
    ):
        engines[1:1] = ["datatrove", "datatrove_checkpoints"]
    # datasets.map would take slots / processes times as long, so it gets equal time instead of equal rows.
    rows = dict.fromkeys(engines, args.rows)
    rows["datasets_map"] = max(args.processes, args.rows * args.processes // args.slots)
    loads = []
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for number in range(args.rounds):
        for engine in engines:
            loads.append(os.getloadavg()[0])
            found = measure(engine, rows[engine], args)
            runs[engine].append(found)
            print(
                f"round {number + 1} {engine}: {found['share']:.3f} of the concurrency, "
                f"{found['rows_per_second']:.1f} rows/s",
                flush=True,
            )
    from maya_vlm.training.common.files import write_json

    record = summarise(runs, rows, loads, args)
    write_json(args.output, record)
    print(f"saved to {args.output}")
    return 0


def summarise(
    runs: dict[str, list[dict[str, float]]],
    rows: dict[str, int],
    loads: list[float],
    args: argparse.Namespace,
) -> dict[str, Any]:
    from maya_vlm.training.common.provenance import provenance

    engines = {
        engine: {
            "rows": rows[engine],
            "runs": len(found),
            **{key: spread([run[key] for run in found]) for key in found[0]},
        }
        for engine, found in runs.items()
    }
    found = provenance()
    record: dict[str, Any] = {
        "benchmark": "translation_engine",
        **found,
        "load_average_before_runs": spread(loads),
        "versions": found["versions"] | _installed(),
        "settings": {
            "slots": args.slots,
            "latency_seconds": args.latency,
            "rounds": args.rounds,
            "datasets_map_processes": args.processes,
            "unit_rows": UNIT_ROWS,
        },
        "engines": engines,
    }
    if "maya" in engines:
        own = engines["maya"]
        record["times_as_fast"] = {
            engine: round(own["rows_per_second"]["median"] / each["rows_per_second"]["median"], 3)
            for engine, each in engines.items()
            if engine != "maya"
        }
        share = own["share"]["median"]
        record["target"] = {"share": TARGET, "reached": share >= TARGET}
    return record


def _installed() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in PACKAGES
        if importlib.util.find_spec(name)
    }


if __name__ == "__main__":
    sys.exit(main())
