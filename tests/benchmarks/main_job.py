"""Times of the README's main example: `maya train RECIPE`, then `maya evaluate`, once per seed.

    python tests/benchmarks/main_job.py --recipe mini --seeds 0 1 2
    python tests/benchmarks/main_job.py --recipe mini --readme

The first writes `results/main_job_RECIPE.json`; the second puts its tables into docs/results.md (those of mini-apart
into docs/studies.md) and three lines into the README, where a test compares them with the file.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from maya_vlm.training.common.files import write_json
from maya_vlm.training.evaluation.protocol import MODEL
from maya_vlm.training.evaluation.table import Column, Scores, markdown_tables

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
DOCS = HERE.parents[1] / "docs"
PAGE = DOCS / "results.md"
# Pages of recipes whose results do not go to PAGE.
PAGES = {"mini-apart": DOCS / "studies.md"}
# The README's section with the three lines of mini's results.
SUMMARY = "mini-summary"
PICTURE = HERE.parents[1] / "model_card" / "pictures" / "mini_sheet.png"


def results_file(recipe: str) -> Path:
    """Return the file with the results of a recipe's runs."""
    return HERE / "results" / f"main_job_{recipe}.json"


def run_once(recipe: str, seed: int, work: Path) -> dict[str, Any]:
    """Train and evaluate in fresh processes, and return the seconds of each and the evaluation's results."""
    folder = work / f"seed-{seed}"
    maya = [sys.executable, "-m", "maya_vlm.training.cli"]
    seconds = {}
    for name, command in {
        "train": ["train", recipe, "--output-dir", str(folder), "--set", f"seed={seed}"],
        "evaluate": ["evaluate", str(folder)],
    }.items():
        began = time.perf_counter()
        subprocess.run([*maya, *command], check=True, cwd=HERE.parents[1])
        seconds[name] = round(time.perf_counter() - began, 1)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = {"seed": seed, "seconds": seconds, "results": results, "folder": str(folder)}
    if losses := held_out_losses(folder):
        found["held_out_loss"] = losses
    return found


def held_out_losses(folder: Path) -> dict[str, float]:
    """Stage -> the last loss on its eval_data, for the stages that have some."""
    found = {}
    for file in sorted(folder.glob("*/training_log.json")):
        log = json.loads(file.read_text(encoding="utf-8"))
        if losses := [line["eval_loss"] for line in log["log"] if "eval_loss" in line]:
            found[log["stage"]] = losses[-1]
    return found


def render(record: dict[str, Any]) -> str:
    """Return a recipe's section of docs/results.md: all languages for mini, only additional ones for others."""
    if record["recipe"] == "mini":
        return render_languages(record)
    mini = json.loads(results_file("mini").read_text(encoding="utf-8"))
    return render_growth([mini, record])


def render_summary(record: dict[str, Any]) -> str:
    """Return the README's three lines: means over languages on concepts seen in training, and the blind run's."""
    run = record["runs"][0]
    scores, info = Scores(run["results"], "mini"), run["results"]["tasks"]["mini"]
    lines = []
    for subset, title in info["subsets"].items():
        if _part(subset) == "seen":
            own = scores.shown(Column(subset, MODEL), "all", True)
            blind = scores.shown(Column(subset, "blind"), "all", False)
            lines.append(f"- {title}: {own} % right, {blind} without the picture")
    minutes = statistics.median(each["seconds"]["train"] for each in record["runs"]) / 60
    lines += [
        "",
        f"Means of ten languages with 95 % intervals, on pictures of an art style that no part has seen; trained in "
        f"{minutes:.1f} minutes. {_source(record)}",
    ]
    return "\n".join(lines)


def render_growth(records: list[dict[str, Any]]) -> str:
    """Return one table row per recipe, first seed each: minutes, and the means over languages."""
    info = records[0]["runs"][0]["results"]["tasks"]["mini"]
    heads = ["recipe", "training, minutes"]
    heads += [f"{title}, {_part(subset)}" for subset, title in info["subsets"].items()]
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for record in records:
        run = record["runs"][0]
        scores = Scores(run["results"], "mini")
        cells = [f"`{record['recipe']}`", f"{run['seconds']['train'] / 60:.0f}"]
        cells += [scores.shown(Column(subset, MODEL), "all", True) for subset in info["subsets"]]
        lines.append("| " + " | ".join(cells) + " |")
    last = records[-1]
    if losses := last["runs"][0].get("held_out_loss"):
        blind = [
            f"{title} ({_part(subset)}) {scores.shown(Column(subset, 'blind'), 'all', False)}"
            for subset, title in info["subsets"].items()
        ]
        stages = [stage for stage in ("pretrain", "finetune") if stage in losses]
        shown = ", ".join(f"{losses[stage]:.2f} after {stage}" for stage in stages)
        lines += ["", f"`{last['recipe']}` without the picture: {', '.join(blind)}."]
        lines += [f"Its loss per token on captions of the validation style: {shown}."]
    lines += ["", _source(last)]
    return "\n".join(lines)


def _part(subset: str) -> str:
    return subset.partition("/")[0].replace("_", " ")


def _source(record: dict[str, Any]) -> str:
    first = record["runs"][0]["results"]["tasks"]["mini"]
    machine, versions = first["machine"], first["versions"]
    return (
        f"Measured on {machine['cores']} cores of {machine['processor']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}; from `tests/benchmarks/results/{record['file']}`, "
        f"written by `python tests/benchmarks/main_job.py --recipe {record['recipe']}`."
    )


def render_languages(record: dict[str, Any]) -> str:
    """Return the full results of the first seed, the spread over seeds, the time and the machine."""
    first = record["runs"][0]["results"]
    info = first["tasks"]["mini"]
    lines = [
        f"On {', '.join(info['data']['styles'])}, the art style kept for the test: percent right with 95 % "
        f"intervals, beside the same model without the image (blind) and with another image (shuffled), "
        f"both on {info['settings']['baseline_items']} pictures drawn from all.",
    ]
    for title, text in markdown_tables(first, "mini"):
        lines += ["", f"{title[:1].upper()}{title[1:]}:", "", text]
    if len(record["runs"]) > 1:
        spread = []
        for subset, title in info["subsets"].items():
            if _part(subset) == "seen":
                values = [
                    Scores(run["results"], "mini").rows[subset, MODEL, "all"]["value"]
                    for run in record["runs"]
                ]
                spread.append(f"{title} {', '.join(f'{100 * value:.1f}' for value in values)}")
        seeds = ", ".join(str(run["seed"]) for run in record["runs"])
        lines += ["", f"Mean of all languages for seeds {seeds}: {'; '.join(spread)}."]
    train = statistics.median(run["seconds"]["train"] for run in record["runs"]) / 60
    evaluate = statistics.median(run["seconds"]["evaluate"] for run in record["runs"]) / 60
    lines += [
        "",
        f"Training took {train:.1f} minutes and evaluation {evaluate:.1f} (median of "
        f"{len(record['runs'])}). {_source(record)}",
        "",
        "![Test pictures with answers in ten languages](../model_card/pictures/mini_sheet.png)",
    ]
    return "\n".join(lines)


def readme_with(section: str, name: str, text: str) -> str:
    """Return `text` with the part between `<!-- NAME:begin -->` and `<!-- NAME:end -->` replaced."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    if not rest or end not in rest:
        raise ValueError(f"expected a section between {begin.strip()} and {end}, found none")
    return f"{head}{begin}{section}\n{end}{tail}"


def put(page: Path, name: str, section: str) -> None:
    """Write a section into a page, between its markers."""
    text = page.read_text(encoding="utf-8")
    page.write_text(readme_with(section, name, text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--readme",
        action="store_true",
        help="only put the results into the README and docs/results.md",
    )
    parser.add_argument("--work", type=Path, help="keep the runs here, and continue what is there")
    args = parser.parse_args()
    file = results_file(args.recipe)
    if not args.readme:
        with tempfile.TemporaryDirectory() as scratch:
            work = (args.work or Path(scratch)).resolve()
            runs = [run_once(args.recipe, seed, work) for seed in args.seeds]
            if args.recipe == "mini":
                PICTURE.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(runs[0]["folder"]) / "sheet.png", PICTURE)
        for run in runs:
            del run["folder"]
        record = {"file": file.name, "recipe": args.recipe, "runs": runs}
        write_json(file, record)
    record = json.loads(file.read_text(encoding="utf-8"))
    put(PAGES.get(args.recipe, PAGE), args.recipe, render(record))
    if args.recipe == "mini":
        put(README, SUMMARY, render_summary(record))


if __name__ == "__main__":
    main()
