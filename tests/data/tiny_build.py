"""A small build without models: pictures with captions, a rule as translator, a word list as judge."""

import json

import pyarrow.parquet as pq

from maya_vlm.training.common.endpoint import EndpointPlan
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.data.engine.units import run_units
from maya_vlm.training.data.plan import Plan, toxicity_step
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.sources.step import build_sources
from maya_vlm.training.data.toxicity.decisions import decide_build
from maya_vlm.training.data.toxicity.plan import JudgePlan, ToxicityPlan
from maya_vlm.training.data.translation import worker as translation
from maya_vlm.training.data.translation.plan import TranslatorPlan
from tests.data.toxicity.judges import picture
from tests.helpers.steps import run_step


class TinyTranslator:
    """Translate to `<lang>: <text>`; reject texts with "bad", fail at texts with "down"."""

    schema = translation.TRANSLATED
    batch_rows, concurrency = 5, 1

    def __init__(self, lang, key="1"):
        self.name, self.key, self.lang = f"translate/{lang}", key, lang

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def process(self, rows):
        return [self.answer(row) for row in rows]

    def answer(self, row):
        turns = row["turns"]
        said = row["text"] if turns is None else " ".join(t["content"] for t in turns)
        status = "rejected" if f"bad {self.lang}" in said else "failed" if "down" in said else "ok"
        made = dict.fromkeys(self.schema.names)
        made |= {name: row[name] for name in ("id", "image", "image_sha256", "task")}
        made |= {"lang": self.lang, "source_lang": row["lang"], "status": status, "flags": []}
        made |= {"model": "tiny", "model_revision": "r1", "prompt_id": "p", "parameters": "{}"}
        made |= {"attempts": 1, "run_id": "x"}
        made["source_text"] = row["text"] if turns is None else translation.source_of_turns(turns)
        if status != "ok":
            return made | {"reasons": "copy: the source" if status == "rejected" else "HTTP 400"}
        if turns is None:
            return made | {"text": f"{self.lang}: {row['text']}"}
        return made | {
            "turns": [{**turn, "content": f"{self.lang}: {turn['content']}"} for turn in turns]
        }


def rows_of(count):
    words = {3: "scum", 5: "bad fr", 7: "down", 11: "hmm"}
    return [
        {
            "id": f"{n:09d}",
            "image": f"{n % 8}/{n:09d}.png",
            "text": f"picture {n} {words.get(n, '')}",
        }
        for n in range(count)
    ]


def write_source(folder, rows):
    """Write a LLaVA JSON with pictures; every fifth picture is a copy of the previous one."""
    folder.mkdir(parents=True)
    for n, row in enumerate(rows):
        path = folder / "pictures" / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(0, n - 1 if n % 5 == 4 else n))
    data = [
        {
            "id": row["id"],
            "image": row["image"],
            "conversations": row.get("conversations")
            or [
                {"from": "human", "value": "What is this?\n<image>"},
                {"from": "gpt", "value": row["text"]},
            ],
        }
        for row in reversed(rows)
    ]
    (folder / "rows.json").write_text(json.dumps(data))


def make_plan(folder, languages=("fr", "hi"), task="caption", judged=True, **settings):
    judges = [
        JudgePlan(
            name="words",
            kind="function",
            stage="text",
            languages=["en", *languages],
            function="tests.data.toxicity.judges:words",
        )
    ]
    settings.setdefault("layout", LayoutPlan(shard_rows=9))
    return Plan(
        name="tiny",
        output_dir=str(folder / "build"),
        source=SourcePlan(
            "llava",
            str(folder / "in" / "rows.json"),
            images=str(folder / "in" / "pictures"),
            language="en",
            task=task,
        ),
        languages=list(languages),
        unit_rows=10,
        translator=TranslatorPlan(
            endpoint=EndpointPlan("http://127.0.0.1:1/v1", "tiny"), preamble="bare"
        ),
        toxicity=ToxicityPlan(judges) if judged else None,
        **settings,
    )


def translate(plan, key="1"):
    build_sources(plan.source, plan.folder / "source", plan.unit_rows, progress=False)
    units = sorted((plan.folder / "source").glob("*.parquet"))
    for lang in plan.languages:
        pairs = [(u, plan.folder / "translate" / lang / u.name) for u in units]
        run_units(TinyTranslator(lang, key), pairs)
    if plan.toxicity is not None:
        step = toxicity_step(plan)
        run_step(step)
        decide_build(step)


def read(root, pattern):
    return [
        row
        for path in sorted(root.glob(pattern))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
