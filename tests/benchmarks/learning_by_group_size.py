"""What sharing an image among K languages does to learning: held-out loss for K = 1, 2, 4, 8.

    python tests/benchmarks/learning_by_group_size.py [--minutes 240] [--seeds 0 1 2 3 4] [--jobs 2]
    python tests/benchmarks/learning_by_group_size.py --plot

A group of K captions of one image costs less than K rows, but its captions are more similar than those of K images.
So the same compute gives more samples with less information each. This study measures which effect is larger, with
`maya train` on the mini dataset: the pretrain stage of the `mini` recipe (projector only, eight languages) for every
K and several compute budgets. Batch size (in images) and rate are tuned for each of these by hill climbing from the
last best point, with a separate seed. At the largest budget, every K climbs again from the best point of all K.
Held-out loss is in nats per token of the captions of concepts without any training picture or caption, in the
training styles. (In a new style, errors of the tower determine the loss, whatever the projector has learned.)

A mini picture has only 16 tokens to share. So compute is counted for the same training of the full-size model: FLOPs
of Aya-23-8B with 256 image tokens and captions of 30 tokens (`maya_vlm.training.model.flops`). The results also have
the seconds of the mini model. Budgets are fractions of the cost of one pass over all captions with K = 1.

Every run writes one JSON file to --work and is not repeated. If the time is over, the same command continues. Runs
with another recipe, data or base models use another folder. Results of the finished runs:
results/learning_by_group_size.json and .png.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).resolve().parent / "results" / "learning_by_group_size.json"
sys.path.insert(0, str(ROOT))

GROUP_SIZES = (1, 2, 4, 8)
BUDGETS = (1 / 48, 1 / 24, 1 / 12, 1 / 6, 1 / 3)
START = {k: (32 // k, 2e-2) for k in GROUP_SIZES}  # images per step, rate
TUNING_SEED = 1000
IMAGE_TOKENS, TEXT_TOKENS = 256, 30
LOG_STEP = 2.0  # factor between neighbouring batch sizes or rates
WORTH = 0.01  # smallest improvement in nats for a tuning step; another seed changes a loss by three times as much


@dataclass(frozen=True)
class Run:
    """One training on about `samples` captions. `batch_size` counts images."""

    group_size: int
    batch_size: int
    rate: float
    samples: int
    seed: int

    @property
    def name(self) -> str:
        return (
            f"k{self.group_size}-b{self.batch_size}-r{self.rate:.3g}-n{self.samples}-s{self.seed}"
        )

    @property
    def steps(self) -> int:
        return max(1, round(self.samples / (self.batch_size * self.group_size)))

    @property
    def seen(self) -> int:
        return self.steps * self.batch_size * self.group_size


@cache
def flops_per_sample(group_size: int) -> float:
    """Return the forward and backward FLOPs of a caption in full-size pretraining, with its share of the image."""
    from maya_vlm.training.model.flops import (
        TrainableParts,
        forward_flops,
        training_flops,
        visible_pairs,
    )
    from tests.benchmarks.gpu_full_size import full_size_config

    flops = forward_flops(full_size_config())
    projector = TrainableParts(
        False, True, False, (0.0,) * flops.layers, (0,) * flops.layers, False
    )
    texts = [TEXT_TOKENS] * group_size
    return (
        training_flops(
            flops,
            projector,
            tokens=IMAGE_TOKENS + sum(texts),
            pairs=visible_pairs(IMAGE_TOKENS, texts),
            positions=sum(texts),
            images=1,
        )
        / group_size
    )


def samples_for(budget: float, group_size: int, captions: int) -> int:
    """Return the number of samples for `budget`; 1 is a pass over all captions with K = 1."""
    return round(budget * captions * flops_per_sample(1) / flops_per_sample(group_size))


# ------------------------------------------------------------------------------ run


def recipe_of(run: Run, data: Path | None = None) -> Any:
    """Return the `mini` recipe's pretrain stage with the run's values. `data` replaces the recipe's data."""
    from maya_vlm.training.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe("mini"))
    stage = recipe.stages[0]
    stage.batch_size, stage.group_size = run.batch_size, run.group_size
    if data is not None:
        stage.data[0].path = str(data)
    for rule in stage.train:
        if rule.rate != "frozen":
            rule.rate = run.rate
    warm_up = math.ceil(0.03 * run.steps)
    stage.args |= {
        "max_steps": run.steps,
        "warmup_steps": warm_up,
        "logging_steps": max(1, run.steps // 10),
        "save_steps": run.steps + 1,
    }
    recipe.stages, recipe.seed, recipe.processes = [stage], run.seed, 1
    return recipe


def hold_out(concepts: int, source: Any, folder: Path) -> None:
    """Write a dataset with the training texts of `source` in its languages to `folder`. The split
    `validation` has all texts of `concepts` random concepts, and `train` has the others."""
    import shutil

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if folder.is_dir():
        return
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(Path(source.path) / "images", part / "images")
    texts = {}
    for language in source.languages:
        files = sorted((Path(source.path) / "texts" / language).glob("train-*.parquet"))
        texts[language] = pa.concat_tables(map(pq.read_table, files)).sort_by("image")
    known = sorted({c for table in texts.values() for c in table["concept"].to_pylist()})
    chosen = np.random.default_rng(0).choice(known, concepts, replace=False)
    for language, table in texts.items():
        held = pc.is_in(table["concept"], pa.array(chosen.tolist()))
        place = part / "texts" / language
        place.mkdir(parents=True)
        pq.write_table(table.filter(pc.invert(held)), place / "train.parquet")
        pq.write_table(table.filter(held), place / "validation.parquet")
    files = [{"split": s, "path": [f"texts/*/{s}.parquet"]} for s in ("train", "validation")]
    card = {"configs": [{"config_name": source.config, "data_files": files}]}
    (part / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")
    os.replace(part, folder)


def run_once(run: Run, work: Path, data: Path) -> dict[str, Any]:
    """Train on `data`, evaluate on its held-out part, and write the result to `work`."""
    import contextlib
    import shutil

    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.recipe import write_recipe
    from maya_vlm.training.run.stage import LOG
    from maya_vlm.training.run.train import train

    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe_of(run, data), folder / "given.yaml")
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        model = train(str(folder / "given.yaml"), output_dir=str(folder / "run"))
        stage = json.loads((model / "pretrain" / LOG).read_text(encoding="utf-8"))
        seconds = next(r["train_runtime"] for r in stage["log"] if "train_runtime" in r)
        result = {
            **asdict(run),
            "steps": run.steps,
            "samples": run.seen,
            "flops": run.seen * flops_per_sample(run.group_size),
            "seconds": seconds,
            **held_out(model, recipe_of(run, data).stages[0].data[0]),
        }
    write_json(work / f"{run.name}.json", result)
    shutil.rmtree(folder)
    return result


def held_out(folder: Path, source: Any) -> dict[str, Any]:
    """Return the loss per token of the captions of all validation pictures, in total and per language.

    The model's own forward computes one conversation per row, without the training code. A picture is
    encoded once for all its captions.
    """
    import dataclasses

    import torch

    from maya_vlm.training.batches.groups import GroupData
    from modeling_maya import MayaForConditionalGeneration
    from processing_maya import MayaProcessor

    model = MayaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = MayaProcessor.from_pretrained(folder)
    data = GroupData([dataclasses.replace(source, split="validation", tasks={})])
    sums: dict[str, list[float]] = {}
    lengths = []
    for start in range(0, len(data), 32):
        rows: list[tuple[str, list[int], list[int]]] = []
        pictures: dict[Any, Any] = {}
        shown = []
        for index in range(start, min(start + 32, len(data))):
            item = data.conversation(index)
            tokens = processor.encode_conversation(item.messages, num_images=1, name=item.id)
            rows.append((item.language, tokens["input_ids"], tokens["assistant_mask"]))
            image = int(data.image[index])
            if image not in pictures:
                pictures[image] = data.load_image(item.source, item.images[0], item.id)
            shown.append(image)
        width = max(len(ids) for _, ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, (_, tokens, trained) in enumerate(rows):
            ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
            labels[i, : len(tokens)] = torch.where(
                torch.tensor(trained) == 1, ids[i, : len(tokens)], -100
            )
        pixels = processor.image_processor(list(pictures.values()), return_tensors="pt")
        first = int((labels != -100).any(0).nonzero()[0])
        with torch.no_grad():
            encoded = model.get_image_features(**pixels, return_dict=True)
            features = dict(zip(pictures, encoded.pooler_output, strict=True))
            encoded.pooler_output = [features[image] for image in shown]
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                mm_encoder_outputs={"image": encoded},
                logits_to_keep=width - first + 1,
            ).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, first:], reduction="none"
        )
        for i, (language, tokens, _) in enumerate(rows):
            total = sums.setdefault(language, [0.0, 0])
            total[0] += float(losses[i].sum())
            total[1] += int((labels[i, 1:] != -100).sum())
            lengths.append((tokens.count(processor.image_token_id), len(tokens)))
    loss = sum(s[0] for s in sums.values()) / sum(s[1] for s in sums.values())
    return {
        "loss": loss if math.isfinite(loss) else None,  # None: the training diverged
        "languages": {
            language: s[0] / s[1] if math.isfinite(s[0]) else None
            for language, s in sorted(sums.items())
        },
        "held_out": {
            "images": len(set(data.image.tolist())),
            "captions": len(data),
            "tokens": sum(s[1] for s in sums.values()),
            "image_tokens": lengths[0][0],
            "mean_length": statistics.mean(length for _, length in lengths),
        },
    }


# ------------------------------------------------------------------------------ runs


class TimeIsOver(Exception):
    """The time limit is reached."""


class Runner:
    """Execute runs in `jobs` processes until `deadline` (time.monotonic), and keep all results."""

    def __init__(self, work: Path, jobs: int, deadline: float, data: Path):
        from maya_vlm.training.common.signals import end_with_parent

        self.work, self.deadline, self.data = work, deadline, data
        self.done: dict[str, dict[str, Any]] = {}
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=end_with_parent)

    def __call__(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Return the results of `runs`. Raise TimeIsOver before runs that would begin too late."""
        missing = [r for r in runs if not self.path(r).is_file()]
        if missing and time.monotonic() > self.deadline:
            raise TimeIsOver
        do = partial(run_once, work=self.work, data=self.data)
        for run, result in zip(missing, self.pool.map(do, missing), strict=True):
            loss = math.nan if result["loss"] is None else result["loss"]
            print(f"{run.name}: loss {loss:.4f}, {result['seconds']:.0f} s", flush=True)
        found = [json.loads(self.path(r).read_text()) for r in runs]
        self.done |= zip([r.name for r in runs], found, strict=True)
        return found

    def path(self, run: Run) -> Path:
        return self.work / f"{run.name}.json"


def climb(
    measure: Callable[[Sequence[tuple[int, float]]], Sequence[float]], start: tuple[int, float]
) -> tuple[int, float]:
    """Descend to the first (batch size, rate) that no neighbour improves by WORTH. Neighbours have half or
    double of either value.

    Args:
        measure: returns the losses of several points.
    """
    known: dict[tuple[int, float], float] = {}
    best = start
    while True:
        batch, rate = best
        near = [best, (round(batch * LOG_STEP), rate), (batch, rate * LOG_STEP)]
        near += [(batch, rate / LOG_STEP)]
        if batch >= LOG_STEP:
            near.append((round(batch / LOG_STEP), rate))
        new = [point for point in near if point not in known]
        known |= zip(new, measure(new), strict=True)
        better = min(near, key=lambda point: known[point])
        if not known[better] < known[best] - WORTH:
            return best
        best = better


def study(
    runner: Runner, captions: int, budgets: Sequence[float], seeds: Sequence[int]
) -> dict[int, list[dict[str, Any]]]:
    """Return the points of the curves, {K: [{budget, batch_size, rate, runs}]}, at the budgets that all K
    finished."""
    curves: dict[int, list[dict[str, Any]]] = {k: [] for k in GROUP_SIZES}
    best = dict(START)

    def losses(k: int, budget: float, points: Sequence[tuple[int, float]]) -> list[float]:
        samples = samples_for(budget, k, captions)
        found = runner([Run(k, batch, rate, samples, TUNING_SEED) for batch, rate in points])
        return [math.inf if run["loss"] is None else run["loss"] for run in found]

    def point(k: int, budget: float) -> dict[str, Any]:
        batch, rate = best[k]
        samples = samples_for(budget, k, captions)
        runs = runner([Run(k, batch, rate, samples, seed) for seed in seeds])
        return {"budget": budget, "batch_size": batch, "rate": rate, "runs": runs}

    try:
        # In parallel, so that the runner's processes always have work.
        with ThreadPoolExecutor(len(GROUP_SIZES)) as threads:
            for budget in sorted(budgets):
                measures = {k: partial(losses, k, budget) for k in GROUP_SIZES}
                ends = threads.map(climb, measures.values(), best.values())
                best = dict(zip(GROUP_SIZES, ends, strict=True))
                if budget == max(budgets):
                    # The conclusion depends on this budget, and a climb may have stopped early: every K
                    # climbs again from the best point of all K.
                    first = min(GROUP_SIZES, key=lambda k: measures[k]([best[k]])[0])
                    ends = threads.map(partial(climb, start=best[first]), measures.values())
                    for (k, measure), end in zip(measures.items(), ends, strict=True):
                        here, there = measure([best[k], end])
                        if there < here - WORTH:
                            best[k] = end
                found = list(threads.map(partial(point, budget=budget), GROUP_SIZES))
                for k, entry in zip(GROUP_SIZES, found, strict=True):
                    curves[k].append(entry)
    except TimeIsOver:
        print("the time is over: the same command goes on from here", flush=True)
    return curves


# ------------------------------------------------------------------------------ conclusion


def reached(curve: Sequence[tuple[float, float]], loss: float) -> tuple[float, bool] | None:
    """Find where a curve of (x, loss) first reaches `loss`, with linear interpolation in log x.

    Returns:
        (x, whether x is only an upper bound because the first point is already there), or None if the
        curve never reaches it.
    """
    curve = sorted(curve)
    if curve[0][1] <= loss:
        return curve[0][0], True
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if y1 <= loss:
            return math.exp(math.log(x0) + (y0 - loss) / (y0 - y1) * math.log(x1 / x0)), False
    return None


def conclude(curves: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return for every K its curve with the spread over seeds, and the fraction of K = 1's compute that it
    needs to reach the mean loss of K = 1 at the largest budget."""
    found: dict[str, Any] = {}
    final = max(curves[1], key=lambda p: p["budget"], default=None)
    for k, points in curves.items():
        if not points or final is None:
            continue
        entry: dict[str, Any] = {"curve": [point_summary(p) for p in points]}
        goal = statistics.mean(r["loss"] for r in final["runs"])
        for axis in ("flops", "seconds", "samples"):
            base = statistics.mean(r[axis] for r in final["runs"])
            per_seed = []
            for i in range(min(len(p["runs"]) for p in points)):
                at = reached([(p["runs"][i][axis], p["runs"][i]["loss"]) for p in points], goal)
                per_seed.append(None if at is None else {"part": at[0] / base, "at_most": at[1]})
            mean = [(statistics.mean(r[axis] for r in p["runs"]), loss_of(p)) for p in points]
            at = reached(mean, goal)
            entry[f"{axis}_to_reach"] = {
                "loss": goal,
                "of_mean": None if at is None else {"part": at[0] / base, "at_most": at[1]},
                "per_seed": per_seed,
            }
        found[str(k)] = entry
    return found


def loss_of(point: dict[str, Any]) -> float:
    """Return the mean loss over seeds."""
    return statistics.mean(r["loss"] for r in point["runs"])


def point_summary(point: dict[str, Any]) -> dict[str, Any]:
    runs = point["runs"]
    losses = [r["loss"] for r in runs]
    return {
        **{name: point[name] for name in ("budget", "batch_size", "rate")},
        **{
            name: statistics.mean(r[name] for r in runs) for name in ("flops", "seconds", "samples")
        },
        "steps": runs[0]["steps"],
        "loss": {"mean": statistics.mean(losses), "least": min(losses), "most": max(losses)},
        "losses": {str(r["seed"]): r["loss"] for r in runs},
    }


def table(record: dict[str, Any]) -> str:
    """Return the curves and the conclusion as text."""
    lines = [f"{'K':>2}{'budget':>8}{'batch':>7}{'rate':>8}{'samples':>9}{'seconds':>9}  loss"]
    for k, entry in record["by_group_size"].items():
        for p in entry["curve"]:
            loss = p["loss"]
            lines.append(
                f"{k:>2}{p['budget']:8.3f}{p['batch_size']:7}{p['rate']:8.4f}{p['samples']:9.0f}"
                f"{p['seconds']:9.0f}  {loss['mean']:.4f} ({loss['least']:.4f}-{loss['most']:.4f})"
            )
    for k, entry in record["by_group_size"].items():
        parts = []
        for axis in ("flops", "seconds", "samples"):
            of = entry[f"{axis}_to_reach"]
            seeds = ", ".join(shown(s) for s in of["per_seed"])
            parts.append(f"{shown(of['of_mean'])} of the {axis} ({seeds})")
        goal = entry["flops_to_reach"]["loss"]
        lines.append(f"K={k} comes to loss {goal:.4f} with {'; '.join(parts)}")
    return "\n".join(lines)


def shown(part: dict[str, Any] | None) -> str:
    if part is None:
        return "not reached"
    return f"{'at most ' if part['at_most'] else ''}{part['part']:.2f}"


def render(record: dict[str, Any]) -> str:
    """Return the study as a section of docs/train.md."""
    found = record["by_group_size"]
    budgets = sorted({p["budget"] for p in found["1"]["curve"]})
    heads = [f"1/{round(1 / budget)} of a pass" for budget in budgets]
    heads = ["K", *heads, "compute for the last loss of K = 1", "captions for it"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " ---: |" * len(heads)]
    for k, entry in found.items():
        cells = [k]
        for point in entry["curve"]:
            loss = point["loss"]
            cells.append(f"{loss['mean']:.3f} ({loss['least']:.3f} to {loss['most']:.3f})")
        cells += [shown(entry[f"{axis}_to_reach"]["of_mean"]) for axis in ("flops", "samples")]
        lines.append("| " + " | ".join(cells) + " |")
    held, versions = record["held_out"], record["versions"]
    return "\n".join(
        [
            *lines,
            "",
            f"Held-out loss, nats a token on {held['images']} pictures of things that training has not "
            f"seen, mean of seeds {', '.join(map(str, record['seeds']))} (least to most); compute is that "
            "of the full-size model, a pass all captions once without sharing. Measured on "
            f"{record['machine']['cores']} cores of {record['machine']['processor']}, torch "
            f"{versions['torch']}; from `tests/benchmarks/results/{RESULT.name}`, written by "
            f"`python tests/benchmarks/{Path(__file__).name}`.",
            "",
            f"![Held-out loss by group size](../tests/benchmarks/results/{RESULT.stem}.png)",
        ]
    )


def plot(record: dict[str, Any], path: Path) -> None:
    """Plot the held-out loss over compute, the mini model's seconds, and samples; bars show the seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
    one = record["by_group_size"].get("1", {"curve": []})["curve"]
    full = max((p["flops"] for p in one), default=1.0)
    titles = {
        "flops": "compute at full size (1: K = 1, largest budget)",
        "samples": "captions seen",
        "seconds": "seconds of the mini model",
    }
    colours = {"1": "#444444", "2": "#0072b2", "4": "#e69f00", "8": "#d55e00"}
    for panel, (axis, title) in zip(panels, titles.items(), strict=True):
        for k, entry in record["by_group_size"].items():
            curve = entry["curve"]
            x = [p[axis] / (full if axis == "flops" else 1) for p in curve]
            mean = [p["loss"]["mean"] for p in curve]
            bars = [
                [m - p["loss"]["least"] for m, p in zip(mean, curve, strict=True)],
                [p["loss"]["most"] - m for m, p in zip(mean, curve, strict=True)],
            ]
            panel.errorbar(
                x, mean, yerr=bars, marker="o", ms=4, capsize=3, color=colours[k], label=f"K = {k}"
            )
        if one:
            goal = max(one, key=lambda p: p["flops"])["loss"]["mean"]
            panel.axhline(goal, color=colours["1"], lw=0.8, ls=":")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
        panel.set_xlabel(title)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("held-out loss, nats per token")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# ------------------------------------------------------------------------------ command


def report(record: dict[str, Any], output: Path) -> None:
    """Print the table, draw the plot next to `output`, and put the results of the default file into docs/train.md."""
    from tests.benchmarks.main_job import DOCS, put

    plot(record, output.with_suffix(".png"))
    print(table(record))
    if output == RESULT:
        put(DOCS / "train.md", RESULT.stem, render(record))


def fingerprint(held_out_concepts: int) -> str:
    """Return a hash of the recipe and its inputs, which separates the results of different recipes."""
    from maya_vlm.training.common.schema import digest
    from maya_vlm.training.run.manifest import make_manifest

    manifest = make_manifest(recipe_of(Run(1, *START[1], samples=1, seed=0)))
    return digest({**manifest, "held_out_concepts": held_out_concepts})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--minutes", type=float, default=240.0, help="begin no run after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--captions", type=int, help="in a pass (default: of the mini dataset)")
    parser.add_argument("--held-out-concepts", type=int, default=40)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "learning_by_group_size")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--plot", action="store_true", help="only show the results again")
    args = parser.parse_args(argv)
    args.output, args.work = args.output.resolve(), args.work.resolve()
    if args.plot:
        report(json.loads(args.output.read_text()), args.output)
        return 0
    os.chdir(ROOT)  # the resolved recipe's paths are relative to this folder

    from maya_vlm.training.batches.groups import GroupData
    from maya_vlm.training.common.files import write_json
    from tests.benchmarks.workload import environment

    began = time.monotonic()
    work = args.work / fingerprint(args.held_out_concepts)
    data = work / "data"
    one = Run(1, *START[1], samples=1, seed=0)
    hold_out(args.held_out_concepts, recipe_of(one).stages[0].data[0], data)
    captions = args.captions or len(GroupData(recipe_of(one, data).stages[0].data))
    runner = Runner(work, args.jobs, began + 60 * args.minutes, data)
    with runner.pool:
        curves = study(runner, captions, args.budgets, args.seeds)
    conclusion = conclude(curves)
    if not conclusion:
        print("no budget of K = 1 is finished: nothing to compare yet", file=sys.stderr)
        return 1
    record = {
        "what": __doc__.split("\n")[0],
        "recipe": "mini, stage pretrain",
        "captions_per_pass": captions,
        "seeds": args.seeds,
        "tuning_seed": TUNING_SEED,
        "full_size": {
            "image_tokens": IMAGE_TOKENS,
            "text_tokens": TEXT_TOKENS,
            "flops_per_sample": {k: flops_per_sample(k) for k in GROUP_SIZES},
        },
        "held_out": next(iter(runner.done.values()))["held_out"],
        "target": {"what": "flops to reach the loss of K = 1, a part of its own", "target": 0.5},
        "jobs_at_a_time": args.jobs,
        "by_group_size": conclusion,
        "runs": [runner.done[name] for name in sorted(runner.done)],
        **environment(),
    }
    write_json(args.output, record)
    report(record, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
