"""Translate a sample of translations back, and compare the result with the source by chrF++.

The translator is another or the same model, behind an OpenAI-compatible endpoint; the score is sentence chrF++
(sacrebleu, word order 2). It finds what no cheap check finds: a fluent text about something else.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.endpoint import Endpoint, EndpointPlan, check_parameters
from ...common.schema import Bounds, digest
from ...common.thoughts import without_thought
from ...rows.parquet import Row, check_columns, read_rows
from ..checks.identify import language_name

VERSION = 1
# Columns of a sampled text, the input of the translator.
SAMPLE = pa.schema(
    [(name, pa.string()) for name in ("id", "lang", "text", "source_text", "source_lang")]
)
BACK_TRANSLATED = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("status", pa.string()),  # ok, failed
        ("back", pa.string()),
        ("chrf", pa.float64()),  # 0 to 100
        ("finish_reason", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("attempts", pa.int32()),
    ]
)


@dataclass
class BackTranslationPlan:
    """Section `verification.back_translation` of a plan.

    endpoint: the translator.
    rows: rows to sample per language, selected by id among rows without a hard flag.
    prompt: system message; {lang} and {source_lang} are replaced by the languages' English names. The
        text is the user message.
    parameters: parameters of the request.
    flag_below: rows with lower chrF++ are counted in the report and enter the review sheet.
    """

    endpoint: EndpointPlan
    rows: int = 300
    prompt: str = (
        "Translate the text of the user from {lang} into {source_lang}. "
        "Give the translation only, without comments."
    )
    parameters: dict[str, Any] = field(
        default_factory=lambda: {"temperature": 0.0, "max_tokens": 1024}
    )
    flag_below: float = 30.0

    def __post_init__(self) -> None:
        Bounds(least=1).check(self.rows, "verification.back_translation", "rows")
        check_parameters(self.parameters, "verification.back_translation.parameters")


def drawn(seed: int, row_id: str, lang: str) -> float:
    """Return a number in [0, 1) for a row: equal in every run, and independent of the row's content."""
    data = hashlib.sha256(f"{seed}\0{row_id}\0{lang}".encode()).digest()
    return int.from_bytes(data[:7], "big") / 2**56


class BackTranslationWorker:
    """The step `back_translation/<lang>` (a `Worker` of the engine) on rows of `SAMPLE`."""

    schema = BACK_TRANSLATED
    batch_rows = 1

    def __init__(self, plan: BackTranslationPlan, lang: str):
        from .scoring import sentence_chrf  # loads sacrebleu

        self.plan, self.name = plan, f"back_translation/{lang}"
        self.concurrency = plan.endpoint.concurrency
        self._chrf = sentence_chrf
        self._endpoint = Endpoint(plan.endpoint)
        self.key = digest(
            {
                "version": VERSION,
                "model": [plan.endpoint.model, plan.endpoint.model_revision],
                "prompt": plan.prompt,
                "parameters": plan.parameters,
            }
        )

    async def __aenter__(self) -> "BackTranslationWorker":
        await self._endpoint.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._endpoint.__aexit__(*error)

    async def process(self, rows: list[Row]) -> list[Row]:
        return [await self._one(row) for row in rows]

    async def _one(self, row: Row) -> Row:
        system = self.plan.prompt
        for name in ("lang", "source_lang"):
            system = system.replace("{" + name + "}", language_name(row[name]))
        answer = await self._endpoint.complete(
            [{"role": "system", "content": system}, {"role": "user", "content": row["text"]}],
            **self.plan.parameters,
        )
        error, back, chrf = answer.error, None, None
        if answer.text is not None:
            back = without_thought(answer.text, row["text"])
            error = "a thought without an answer" if back is None else None
        if back is not None:
            back = back.strip()
            chrf = round(self._chrf(back, row["source_text"]), 3)
        return {
            "id": row["id"],
            "lang": row["lang"],
            "status": "failed" if back is None else "ok",
            "back": back,
            "chrf": chrf,
            "finish_reason": answer.finish_reason,
            "error": error,
            "model": answer.model,
            "model_revision": self.plan.endpoint.model_revision,
            "attempts": answer.attempts,
        }


def back_translations(path: Path) -> Iterator[Row]:
    """Yield `id` and `chrf` of a unit's rows; raise ValueError if it has other columns."""
    check_columns(path, {"id": pa.string(), "chrf": pa.float64()})
    yield from read_rows(path, ["id", "chrf"])


def plain_text(turns: Sequence[Row]) -> str:
    """Return a conversation as one text, for metrics of single texts."""
    return "\n".join(turn["content"] for turn in turns)


def plain_source(row: Row) -> str:
    """Return the source of a translated row as one text."""
    if row["turns"] is None:
        return row["source_text"]
    return plain_text(json.loads(row["source_text"]))
