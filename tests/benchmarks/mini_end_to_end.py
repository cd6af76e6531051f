"""End-to-end rebuild of the mini dataset: translated from English into nine languages, reviewed and trained on.

    python tests/benchmarks/mini_end_to_end.py                # all concepts; writes results/
    python tests/benchmarks/mini_end_to_end.py --concepts 60 --languages fr hi --output /tmp/x.json

1. Run `maya data build` with the shipped plan and a local endpoint, which answers with the human translations and
   produces typical failures of servers and models (429, 503, resets, broken JSON, answers that are truncated,
   untranslated, in another language, refused, or prefaced).
2. Review: fill a sheet for each language from the human translations, read it back, and assemble the dataset again.
3. Compare every output row with the human row, and list all differences.
4. Check the dataset, publish it to a local Hub, and train a small Maya for some steps on it, by its folder and by
   its name: the losses must be equal.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maya_vlm.model_card.cards.dataset import write_dataset_card
from maya_vlm.training.data.build import build_dataset
from maya_vlm.training.data.reviews import read_review, write_reviews
from tests.helpers.endpoint_server import Faults, endpoint_process, stats
from tests.helpers.hub_server import HubServer
from tests.helpers.languages import MINI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA = ROOT / "training" / "data"
PLAN = DATA / "plans" / "mini.yaml"
NAME = "user/maya-mini-translated"
FAULTS = Faults(
    overloaded=0.01,
    unavailable=0.01,
    reset=0.005,
    broken_json=0.005,
    no_choices=0.005,
    length=0.01,
    untranslated=0.01,
    wrong_language=0.01,
    refusal=0.01,
    preface=0.01,
)
TRAIN = """
output_dir: {output}
model:
  vision_tower: {root}/training/bases/mini/vision_tower
  language_model: {root}/training/bases/mini/language_model
  chat_template: aya
stages:
  - name: pretrain
    batch_size: 4
    group_size: 4
    data: [{{path: "{path}", config: {config}, streaming: {streaming}}}]
    train:
      - {{pattern: multi_modal_projector, rate: 1.0e-2}}
      - {{pattern: '.*', rate: frozen}}
    args: {{max_steps: {steps}, logging_steps: 1, save_steps: 1000, report_to: none}}
"""


def cut(mini: Path, folder: Path, concepts: int) -> Path:
    """Write the mini dataset with only `concepts` concepts: every n-th, including toxic ones."""
    found = pq.read_table(mini / "texts" / "en" / "train-clean.parquet")["concept"].unique()
    toxic = pq.read_table(mini / "texts" / "en" / "train-flagged.parquet")["concept"].unique()
    few = max(1, concepts // 10)
    kept = found.to_pylist()[:: max(1, len(found) // concepts)][:concepts] + toxic.to_pylist()[:few]
    for file in [*mini.glob("texts/*/train-*.parquet"), *mini.glob("images/*.parquet")]:
        table = pq.ParquetFile(file).read()
        table = table.filter(pc.is_in(table["concept"], pa.array(kept)))
        path = folder / file.relative_to(mini)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return folder


def human(mini: Path, languages: list[str]) -> dict[str, dict[str, tuple[str, bool]]]:
    """Return language -> id -> (name, whether the curated list marks it as toxic)."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for lang in languages:
        rows = found.setdefault(lang, {})
        for kind in ("clean", "flagged"):
            path = mini / "texts" / lang / f"train-{kind}.parquet"
            table = pq.ParquetFile(path).read(["id", "text"])
            for row in table.to_pylist():
                rows[row["id"]] = (row["text"], kind == "flagged")
    return found


def truths(known: dict[str, dict[str, tuple[str, bool]]]) -> dict[str, dict[str, str]]:
    """Return the endpoint's answers: language -> English name -> name."""
    english = known["en"]
    return {
        lang: {english[id_][0]: name for id_, (name, _) in rows.items()}
        for lang, rows in known.items()
        if lang != "en"
    }


def fill(folder: Path, known: dict[str, dict[str, tuple[str, bool]]]) -> Counter[str]:
    """Fill every open sheet with the right decisions, and read it back."""
    decided: Counter[str] = Counter()
    for sheet in sorted((folder / "review").glob("translation-*.csv")):
        with sheet.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            truth = known[row["lang"]].get(row["id"], ("", False))[0]
            said = row["text"].removeprefix("'") if row["text"].startswith("'") else row["text"]
            row["decision"] = "accept" if said == truth else "reject"
            row["reviewer"], row["note"] = "human translation", ""
            decided[row["decision"]] += 1
        filled = sheet.with_name(f"filled-{sheet.name}")
        with filled.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        read_review(folder, filled)
    return decided


def compare(
    dataset: Path, known: dict[str, dict[str, tuple[str, bool]]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return counts by language of the outcomes of all human rows, and the rows that differ.

    The outcome is equal to the human row, untranslated (the English name), foreign (the name in another of
    the languages), other, rejected or failed.

    Raises:
        AssertionError: a row is lost, doubled or invented, or its flag differs from the curated list.
    """
    counts, differences = {}, []
    for lang, rows in known.items():
        seen: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for path in sorted(dataset.glob(f"data/{lang}/*.parquet")):
            for row in pq.ParquetFile(path).read().to_pylist():
                seen[row["id"]] += 1
                truth, _ = rows.get(row["id"], (None, False))
                toxic = known["en"][row["id"]][1]
                assert path.name.startswith("flagged" if toxic else "clean"), (path, row["id"])
                if row["caption"] == truth:
                    count["equal"] += 1
                else:
                    others = {known[o].get(row["id"], ("",))[0] for o in known if o != "en"}
                    english = row["caption"] == known["en"][row["id"]][0]
                    foreign = row["caption"] in others
                    what = "untranslated" if english else "foreign" if foreign else "other"
                    count[what] += 1
                    differences.append(
                        {"id": row["id"], "lang": lang, "what": what, "text": row["caption"]}
                        | {"truth": truth, "flags": row["flags"]}
                    )
        for path in sorted(dataset.glob(f"rejected/{lang}-*.parquet")):
            for row in pq.ParquetFile(path).read().to_pylist():
                seen[row["id"]] += 1
                count[row["status"]] += 1
                differences.append(
                    {"id": row["id"], "lang": lang, "what": row["status"]}
                    | {"truth": rows.get(row["id"], (None, False))[0], "reasons": row["reasons"]}
                )
        assert set(seen) == set(known["en"]), f"{lang}: rows lost or invented"
        assert set(seen.values()) == {1}, f"{lang}: rows doubled"
        counts[lang] = {
            "rows": len(seen),
            "without_human_name": len(set(seen) - set(rows)),
            **count,
        }
    return counts, differences


def train(
    path: str, config: str, steps: int, streaming: bool, work: Path, env: dict
) -> list[float]:
    """Return the losses of some steps of `maya train` on a dataset, in a separate process."""
    output = work / re.sub(r"\W+", "-", f"{path}-{config}-{streaming}")
    recipe = work / f"{output.name}.yaml"
    text = TRAIN.format(
        output=output,
        root=ROOT,
        path=path,
        config=config,
        streaming=str(streaming).lower(),
        steps=steps,
    )
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "maya_vlm.training.cli", "train", str(recipe)]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    logged = json.loads(next(output.rglob("training_log.json")).read_text(encoding="utf-8"))
    return [round(loss, 6) for loss in find_losses(logged)]


def find_losses(value: Any) -> list[float]:
    if isinstance(value, dict):
        own = [value["loss"]] if isinstance(value.get("loss"), float) else []
        return own + [loss for each in value.values() for loss in find_losses(each)]
    return [loss for each in value for loss in find_losses(each)] if isinstance(value, list) else []


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    mini = cut(DATA / "mini", work / "mini", args.concepts) if args.concepts else DATA / "mini"
    known = human(mini, ["en", *args.languages])
    build = work / "build"
    began = time.perf_counter()
    with endpoint_process(truths(known), faults=FAULTS, seed=args.seed) as url:
        changes = [
            f"output_dir={build}",
            f"source.path={mini}",
            f"languages={json.dumps(args.languages)}",
            f"toxicity.unjudged={json.dumps(args.languages)}",
            f"translator.endpoint.base_url={url}",
            "translator.endpoint.backoff=0.05",
            "verification.review_rows=20",
        ]
        build_dataset(PLAN, changes, progress=args.progress, allow_code=True)
        asked = stats(url)
        before, _ = compare(build / "dataset", known)
        sheets = write_reviews(build, blur=False)
        decided = fill(build, known)
        build_dataset(PLAN, changes, progress=False, steps=["assemble"], allow_code=True)
        assert stats(url)["requests"] == asked["requests"], "reviews made requests"
    seconds = time.perf_counter() - began
    dataset = build / "dataset"
    write_dataset_card(dataset)
    counts, differences = compare(dataset, known)
    manifest = json.loads((dataset / "manifest.json").read_text(encoding="utf-8"))
    result = {
        "settings": {
            "concepts": args.concepts or "all",
            "languages": args.languages,
            "seed": args.seed,
            "faults": {name: share for name, share in FAULTS.shares().items() if share},
        },
        "seconds": round(seconds, 1),
        "requests": asked["requests"],
        "faults_met": asked["faults"],
        "counts": manifest["counts"]["all"],
        "configs": {name: about["rows"] for name, about in manifest["configs"].items()},
        "before_review": before,
        "review": {"sheets": len(sheets), "rows": sum(s.rows for s in sheets), **decided},
        "after_review": counts,
        "differences": differences,
    }
    if args.steps:
        result["training"] = publish_and_train(dataset, args.steps, work)
    return result


def publish_and_train(dataset: Path, steps: int, work: Path) -> dict[str, Any]:
    with HubServer() as hub:
        env = {**os.environ, **hub.environment(work / "hf"), "PYTHONPATH": str(ROOT)}
        env |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "maya_vlm.training.cli", "publish", str(dataset), NAME]
        command += ["--kind", "dataset"]
        done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        (tag,) = hub.repositories["dataset", NAME].tags
        losses = {
            "folder, all": train(str(dataset), "all", steps, False, work, env),
            "name, all": train(NAME, "all", steps, False, work, env),
            "folder, toxicity_free, streamed": train(
                str(dataset), "toxicity_free", steps, True, work, env
            ),
            "name, toxicity_free, streamed": train(NAME, "toxicity_free", steps, True, work, env),
        }
        files = len(hub.files("dataset", NAME))
    assert len(losses["folder, all"]) == steps
    assert losses["folder, all"] == losses["name, all"]
    streamed = losses["folder, toxicity_free, streamed"]
    assert len(streamed) == steps
    assert streamed == losses["name, toxicity_free, streamed"]
    return {"steps": steps, "files": files, "tag": tag, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", type=int, help="only about so many of the mini dataset's")
    parser.add_argument("--languages", nargs="+", default=list(MINI[1:]))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="of training; 0 for none")
    parser.add_argument(
        "--work", type=Path, help="keep everything here (default: a temporary folder)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "mini_end_to_end.json")
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        result = run(args, work)
    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.common.provenance import provenance

    result |= {
        **provenance("pyarrow"),
    }
    write_json(args.output, result)
    print(json.dumps({k: v for k, v in result.items() if k != "differences"}, indent=1))


if __name__ == "__main__":
    main()
