"""`maya data preambles PLAN`: find the preamble that translates best, per language, with significance.

The paper's study (arXiv 2412.07112) on a larger sample, with scores that fit the languages: captions are
sampled over bins of length and readability, translated once by each preamble, and scored against references
with BLEU and chrF++. A paired bootstrap tests whether the best preamble is significantly better. The same
command continues a stopped study, and repeats failed requests.
"""

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...common.files import write_json, write_parquet
from ...common.schema import Bounds, build, digest, read_mapping, resolve_paths, to_dict
from ...rows.parquet import Row, read_rows
from ..engine.unit_files import reopen_unit
from ..engine.units import run_unit
from ..sources.records import SOURCE_SCHEMA
from ..translation.plan import TranslatorPlan
from ..translation.prompts import variants
from ..translation.worker import TranslateWorker
from ..verification.scoring import METRICS, Comparison, compare
from .preamble_report import write_report
from .references import read_references, read_table
from .sampling import Sample, stratified_sample

FORMAT = "maya-preambles-1"
_BINS = 5  # number of bins of length and of readability, as in the paper
_DECISIVE = "chrf++"  # metric that decides the winner
_ALPHA = 0.05  # a winner needs p below this value
_OWN_REFERENCES = (
    "expected no such key, because a study no longer makes references: translate the captions with "
    "`maya data build`, let people check them, and name the file in `references`"
)
# Removed keys -> what to do instead.
_REMOVED = {
    "reference_translator": _OWN_REFERENCES,
    "accept_unreviewed": _OWN_REFERENCES,
    "length_bins": f"expected no such key, it is always {_BINS}: remove it",
    "readability_bins": f"expected no such key, it is always {_BINS} for English captions: remove it",
    "decide_by": f"expected no such key, {_DECISIVE} always decides and the report has BLEU: remove it",
    "alpha": f"expected no such key, it is always {_ALPHA} and the report has every p: remove it",
}


@dataclass
class PreambleStudyPlan:
    """The plan of one study.

    > Parameters for the comparison

    name, output_dir: name and folder of the study. The same plan continues a study in this folder.
    captions: a .csv, .jsonl, .json or .parquet file, or a folder of parquet files such as a build's
        `source`, with columns id and text.
    references: such a file with good translations: id and one column per language, or id, lang and text.
    languages: target languages, as BCP-47 codes.
    translator: the model. Its own preamble takes part only if `preambles` lists it.
    preambles: names of shipped preambles, and text files. Default: all shipped ones.
    source_language: language of the captions. Sampling uses readability for English only.

    > Parameters for sampling and scoring

    samples: number of captions. The paper used 30, which rarely suffices for significance; 300 usually do.
    resamples: resamples of the paired bootstrap.
    seed: seed of sampling and bootstrap.
    """

    name: str
    output_dir: str
    captions: str
    references: str
    languages: list[str]
    translator: TranslatorPlan
    preambles: list[str] = field(default_factory=lambda: list(variants()))
    source_language: str = "en"

    samples: int = 300
    resamples: int = 1000
    seed: int = 42

    def __post_init__(self) -> None:
        for key in ("languages", "preambles"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key}: expected at least one, each once, found {values}")
        shorts = [_short(preamble) for preamble in self.preambles]
        if len(set(shorts)) < len(shorts):
            raise ValueError(f"preambles: expected different names, found {shorts}")
        for key in ("samples", "resamples"):
            Bounds(least=1).check(getattr(self, key), "study", key)
        self.translator.check_languages(self.source_language, self.languages)
        for lang in self.languages:
            if self.translator.for_language(lang).prompt != "preamble":
                raise ValueError(f"translator: {lang}: expected a model that takes a preamble")


class StudyWorker(TranslateWorker):
    """One preamble in one language (a `Worker` of the engine): translate each caption once, without retries.

    `text` is the answer in brackets, or the whole answer without brackets. `flags` are the hard checks
    that it fails.
    """

    schema = pa.schema(
        [
            ("id", pa.string()),
            ("lang", pa.string()),
            ("text", pa.string()),
            ("status", pa.string()),  # ok, failed
            ("flags", pa.list_(pa.string())),
            ("finish_reason", pa.string()),
            ("error", pa.string()),
            ("model", pa.string()),
            ("attempts", pa.int32()),
        ]
    )

    def __init__(self, plan: PreambleStudyPlan, preamble: str, lang: str, trust_remote_code: bool):
        translator = replace(
            plan.translator.for_language(lang), preamble=preamble, second_preamble=None, retries=0
        )
        super().__init__(
            translator, lang, plan.source_language, trust_remote_code=trust_remote_code
        )
        self.name = f"study/{lang}/{_short(preamble)}"
        self.key = digest(["study", 1, self.key])
        self.prompt, self.parameters = self.request(0)

    async def process(self, rows: list[Row]) -> list[Row]:
        texts = [row["text"] for row in rows]
        answers = await self.translator.answers(texts, self.prompt, self.parameters)
        assert self.prompt is not None
        found = []
        for row, answer in zip(rows, answers, strict=True):
            text, flags = None, []
            if answer.text is not None:
                inside = self.prompt.unwrap(answer.text, row["text"])
                text = answer.text.strip() if inside is None else inside
                checked = self.checker.check(row["text"], text, self.lang, answer.finish_reason)
                flags = [flag.name for flag in checked if flag.hard]
                if inside is None:
                    flags.append("brackets")
            found.append(
                {
                    "id": row["id"],
                    "lang": self.lang,
                    "text": text,
                    "status": "failed" if text is None else "ok",
                    "flags": sorted(set(flags)),
                    "finish_reason": answer.finish_reason,
                    "error": answer.error,
                    "model": answer.model,
                    "attempts": answer.attempts,
                }
            )
        return found


def run_study(
    path: Path, overrides: Sequence[str] = (), trust_remote_code: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Run the study of a plan file, or continue it.

    Args:
        path: file of the plan.
        overrides: `a.b=value` settings that replace values of the plan.
        trust_remote_code: allow a model to run its own code.

    Returns:
        Path of the report; contents of `results.json` next to it.

    Raises:
        ValueError: the plan, captions or references are bad.
        OSError: the endpoint rejects all requests.
    """
    plan = load_study(path, overrides)
    folder = Path(plan.output_dir)
    references = read_references(Path(plan.references), plan.languages)
    captions, dropped = _captions(plan, references)
    names = list(captions)
    readable = _BINS if plan.source_language.split("-")[0] == "en" else 1
    sample = stratified_sample(list(captions.values()), plan.samples, _BINS, readable, plan.seed)
    chosen = {names[i]: captions[names[i]] for i in sample.chosen}
    source = folder / "sample.parquet"
    _write_sample(plan, chosen, source)
    languages = {}
    for lang in plan.languages:
        answers = {}
        for preamble in plan.preambles:
            target = folder / "answers" / lang / f"{_short(preamble)}.parquet"
            worker = StudyWorker(plan, preamble, lang, trust_remote_code)
            print(f"{lang}: {_short(preamble)}", flush=True)
            run_unit(worker, source, target)
            if reopen_unit(target, {"failed"}):
                run_unit(worker, source, target)
            answers[_short(preamble)] = (worker, list(read_rows(target)))
        languages[lang] = _scored(
            plan, lang, answers, {number: references[lang][number] for number in chosen}
        )
    record = {
        "format": FORMAT,
        "name": plan.name,
        "plan": {**to_dict(plan), "decide_by": _DECISIVE, "alpha": _ALPHA},
        "versions": _versions(),
        "references": {"kind": "given"},
        "sample": _described(plan, sample, chosen, dropped, list(captions.values())),
        "languages": languages,
    }
    record = json.loads(json.dumps(record))
    write_json(folder / "results.json", record)
    return write_report(record, folder), record


def load_study(path: Path, overrides: Sequence[str] = ()) -> PreambleStudyPlan:
    """Read and check a plan; raise ValueError (one line) that names file and key."""
    data = resolve_paths(read_mapping(path, overrides), path.resolve().parent)
    for key in _REMOVED.keys() & data.keys():
        raise ValueError(f"{path}: {key}: {_REMOVED[key]}")
    return build(PreambleStudyPlan, data, str(path))


def _short(preamble: str) -> str:
    """Return the name of a shipped preamble, or a file's name without folder and suffix."""
    return preamble if preamble in variants() else Path(preamble).stem


def _captions(
    plan: PreambleStudyPlan, references: dict[str, dict[str, str]]
) -> tuple[dict[str, str], dict[str, int]]:
    """Return {id: text} of captions to sample from, sorted by id; and {reason: number left out}."""
    found: dict[str, str] = {}
    dropped = Counter({"no text": 0, "no reference in every language": 0})
    for where, row in read_table(Path(plan.captions)):
        number, text = row.get("id"), row.get("text")
        if not isinstance(number, str):
            raise ValueError(f"{where}: id: expected text, found {number!r}")
        if number in found:
            raise ValueError(f"{where}: id: expected once, found {number!r} twice")
        if text is None or not str(text).strip():
            dropped["no text"] += 1
        elif any(number not in references[lang] for lang in plan.languages):
            dropped["no reference in every language"] += 1
        else:
            found[number] = str(text)
    return dict(sorted(found.items())), dict(dropped)


def _write_sample(plan: PreambleStudyPlan, chosen: dict[str, str], path: Path) -> None:
    empty = dict.fromkeys(SOURCE_SCHEMA.names)
    rows = [
        {**empty, "id": number, "lang": plan.source_language, "task": "caption", "text": text}
        for number, text in chosen.items()
    ]
    write_parquet(path, pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA))


def _scored(
    plan: PreambleStudyPlan,
    lang: str,
    answers: dict[str, tuple[StudyWorker, list[Row]]],
    references: dict[str, str],
) -> dict[str, Any]:
    """Return all results of one language; the scores use captions that every preamble answered."""
    texts = {
        name: {row["id"]: row["text"] for row in rows if row["status"] == "ok"}
        for name, (_, rows) in answers.items()
    }
    common = [i for i in references if all(i in own for own in texts.values())]
    if not common:
        raise ValueError(
            f"{lang}: expected captions with an answer by every preamble, found none: see {plan.output_dir}"
        )
    systems = {name: [own[i] for i in common] for name, own in texts.items()}
    wanted = [references[i] for i in common]
    scores: dict[str, Comparison] = {
        name: compare(name, lang, systems, wanted, plan.resamples, _ALPHA, plan.seed)
        for name in METRICS
    }
    preambles = {}
    for name, (worker, rows) in answers.items():
        prompt = worker.prompt
        assert prompt is not None
        flags = Counter(flag for row in rows for flag in row["flags"])
        preambles[name] = {
            "prompt_id": prompt.id,
            "preamble": prompt.system,
            "parameters": worker.parameters,
            "models": sorted({row["model"] for row in rows}),
            "failed": sum(row["status"] == "failed" for row in rows),
            "rejected": sum(bool(row["flags"]) for row in rows),
            "flags": dict(sorted(flags.items())),
            "requests": sum(row["attempts"] for row in rows),
        }
    decided = scores[_DECISIVE]
    return {
        "scored": len(common),
        "without_reference": len(answers[decided.best][1]) - len(references),
        "unanswered_by_some": len(references) - len(common),
        "winner": decided.winner,
        "best": decided.best,
        "metrics": {name: asdict(comparison) for name, comparison in scores.items()},
        "preambles": preambles,
    }


def _described(
    plan: PreambleStudyPlan,
    sample: Sample,
    chosen: dict[str, str],
    dropped: dict[str, int],
    texts: list[str],
) -> dict[str, Any]:
    drawn = [[len(texts[i]), round(float(sample.complexity[i]), 4)] for i in sample.chosen]
    return {
        "captions": len(texts),
        "left_out": {**dropped, "repeated words": sample.repetitive},
        "drawn": len(chosen),
        "seed": plan.seed,
        "sha256": digest(chosen),
        "strata": [list(stratum) for stratum in sample.strata],
        "length_and_complexity": drawn,
        "mean_length": {
            "all": round(float(np.mean([len(text) for text in texts])), 2),
            "drawn": round(float(np.mean([length for length, _ in drawn])), 2),
        },
    }


def _versions() -> dict[str, str]:
    names = ("sacrebleu", "numpy", "mecab-python3", "ipadic")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
