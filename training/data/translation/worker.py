"""Translate source rows into one language: one text per request; check each answer, retry or reject.

A caption is one request. In a conversation every turn is translated separately; `<image>`, code and
texts without letters stay unchanged. An answer with a hard flag (checks/) is requested again with
another seed and temperature or a second preamble. If it keeps a hard flag, the row is `rejected` with the
reasons; if a request fails for good, the row is `failed`. Such rows have no text, so no text is ever left
in the source language.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ...common.endpoint import Answer, Endpoint, merge_parameters
from ...common.schema import digest
from ...common.telling import one_line
from ...common.thoughts import foreign_marks
from ...rows.parquet import Row
from ..checks.plan import CheckPlan, Flag
from ..checks.rules import RowChecker
from ..sources.records import SOURCE_SCHEMA
from .plan import TranslatorPlan
from .prompts import Prompt, examples
from .text_pieces import Piece, lost_code, split

# Increase when the same plan sends other requests or keeps other answers.
VERSION = 1
# Columns of a translated row. A rejected or failed row has neither text nor turns.
TRANSLATED = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("image", pa.string()),
        ("image_sha256", pa.string()),
        ("task", pa.string()),
        ("text", pa.string()),
        SOURCE_SCHEMA.field("turns"),
        ("source_text", pa.string()),  # for a conversation: JSON of its turns
        ("source_lang", pa.string()),
        ("status", pa.string()),  # ok, rejected, failed
        ("flags", pa.list_(pa.string())),  # checks that fired on the last answer
        ("reasons", pa.string()),  # why the row was rejected or failed, one line
        ("finish_reason", pa.string()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("prompt_id", pa.string()),
        ("parameters", pa.string()),  # JSON
        ("attempts", pa.int32()),  # number of requests for the row
        ("run_id", pa.string()),
    ]
)


@dataclass
class _Try:
    """One piece of a row's text in progress, with its latest answer."""

    source: str
    text: str | None = None
    flags: list[Flag] = field(default_factory=list)
    error: str | None = None
    answer: Answer | None = None
    tries: int = 0
    attempts: int = 0

    @property
    def hard(self) -> list[Flag]:
        return [flag for flag in self.flags if flag.hard]


class Translator(Protocol):
    """A source of answers: an endpoint, or a model in this process."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: Any) -> Any: ...

    async def answers(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]: ...


class EndpointTranslator(Endpoint):
    """An endpoint as a translator: one request per text, all at once."""

    async def answers(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]:
        assert prompt is not None
        found = await asyncio.gather(
            *(self.complete(prompt.messages(text), **parameters) for text in texts),
            return_exceptions=True,
        )
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in found if isinstance(answer, Answer)]


def make_translator(
    plan: TranslatorPlan, source: str, target: str, trust_remote_code: bool = False
) -> Translator:
    """Return the translator of a plan for one direction; it is not opened yet."""
    if plan.endpoint is not None:
        return EndpointTranslator(plan.endpoint)
    assert plan.local is not None
    from .local_models import LocalModel  # loads torch

    return LocalModel(plan.local, source, target, trust_remote_code)


class TranslateWorker:
    """The step `translate/<lang>` (a `Worker` of the engine).

    Args:
        plan: the translator.
        lang: target language.
        source_language: language of the sources.
        languages: all target languages of the project, for identification; default: `lang` alone.
        checks: the checks; default: `CheckPlan()`.
        run_id: hash that is stored with every row.
        trust_remote_code: allow a model to run its own code.

    Raises:
        ValueError: the model, the preambles or the checks do not know a language.
    """

    batch_rows: int
    concurrency: int
    schema = TRANSLATED

    def __init__(
        self,
        plan: TranslatorPlan,
        lang: str,
        source_language: str = "en",
        languages: Sequence[str] | None = None,
        checks: CheckPlan | None = None,
        run_id: str = "",
        trust_remote_code: bool = False,
    ) -> None:
        plan.check_languages(source_language, [lang])
        self.plan = plan = plan.for_language(lang)
        self.lang, self.source_language, self.run_id = lang, source_language, run_id
        self.name = f"translate/{lang}"
        self.checker = RowChecker(source_language, list(languages or [lang]), checks or CheckPlan())
        self.prompts = plan.prompts(source_language, lang)
        self.translator = make_translator(plan, source_language, lang, trust_remote_code)
        if plan.endpoint is not None:
            # Take more rows than the endpoint allows requests: the next requests wait for a place while
            # answers are checked and the next unit is opened.
            self.batch_rows, self.concurrency = 1, 2 * plan.endpoint.concurrency
        else:
            assert plan.local is not None
            self.batch_rows, self.concurrency = plan.local.batch_size, 1
        local = None
        if plan.local is not None:
            local = asdict(replace(plan.local, batch_size=1, device=None))
        self.key = digest(
            {
                "version": VERSION,
                "source": source_language,
                "target": lang,
                "model": [plan.model, plan.model_revision, local],
                "prompts": [prompt and prompt.id for prompt in self.prompts],
                "tries": [self.request(number)[1] for number in range(plan.retries + 1)],
                "checks": self.checker.key,
            }
        )

    async def __aenter__(self) -> "TranslateWorker":
        # Before the first request: loading the models would delay answers.
        await asyncio.to_thread(self._read_identification)
        await self.translator.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.translator.__aexit__(*error)

    def _read_identification(self) -> None:
        """Load the models of language identification, which load with their first text."""
        for text in examples(self.lang, self.plan.preamble_parts):
            self.checker.identifier.identify(text, "und")

    def request(self, number: int) -> tuple[Prompt | None, dict[str, Any]]:
        """Return prompt and parameters of a text's try; 0 is the first."""
        plan = self.plan
        parameters = merge_parameters(plan.parameters, plan.retry_parameters if number else {})
        if plan.seed is not None:
            parameters["seed"] = plan.seed + number
        return self.prompts[min(number, 1)], parameters

    async def process(self, rows: list[Row]) -> list[Row]:
        """Return translated rows, in order; raise ValueError for a row in another language."""
        texts = [[split(content) for content in _contents(row)] for row in rows]
        tries = [
            [_Try(piece.text) for pieces in row for piece in pieces if piece.language]
            for row in texts
        ]
        for row in rows:
            if row["lang"] != self.source_language:
                raise ValueError(
                    f"{self.name}: row {row['id']!r}: lang: expected {self.source_language!r}, the "
                    f"plan's source language, found {row['lang']!r}"
                )
        await self._translate([each for row in tries for each in row])
        return [self._row(*each) for each in zip(rows, texts, tries, strict=True)]

    async def _translate(self, tries: list[_Try]) -> None:
        """Translate all pieces, and retry those with hard flags."""
        for number in range(self.plan.retries + 1):
            if not tries:
                return
            prompt, parameters = self.request(number)
            answers = await self.translator.answers(
                [each.source for each in tries], prompt, parameters
            )
            # Let waiting requests start before the answers are checked.
            for _ in range(3):
                await asyncio.sleep(0)
            for each, answer in zip(tries, answers, strict=True):
                self._take(each, answer, prompt)
            tries = [each for each in tries if each.error is None and each.hard]

    def _take(self, each: _Try, answer: Answer, prompt: Prompt | None) -> None:
        each.tries += 1
        each.attempts += answer.attempts
        each.answer, each.error, each.text = answer, answer.error, None
        if answer.text is None:
            each.flags = []
            return
        text = prompt.unwrap(answer.text, each.source) if prompt else answer.text.strip()
        if text is None:
            assert prompt is not None
            if prompt.brackets is None:
                each.flags = [Flag("empty", True, "a thought without an answer")]
            else:
                detail = f"expected one pair of {''.join(prompt.brackets)} around the answer"
                each.flags = [Flag("brackets", True, detail)]
            if answer.finish_reason == "length":
                each.flags.insert(0, Flag("finish_reason", True, "length"))
            return
        each.text = text
        each.flags = self.checker.check(each.source, text, self.lang, answer.finish_reason)
        mark = foreign_marks(text, each.source)
        if mark and "markup" not in self.checker.plan.off:
            each.flags = [flag for flag in each.flags if flag.name != "markup"]
            each.flags.append(Flag("markup", True, mark))
        if lost := lost_code(each.source, text):
            each.flags.append(Flag("code", True, f"{', '.join(lost)} missing"))

    def _row(self, row: Row, texts: list[list[Piece]], tries: list[_Try]) -> Row:
        errors = [each.error for each in tries if each.error is not None]
        rejected = [flag for each in tries for flag in each.hard]
        status = "failed" if errors else "rejected" if rejected else "ok"
        reasons = errors or [f"{flag.name}: {flag.detail}" for flag in rejected]
        # A conversation stores the parameters of the piece with the most tries.
        told = max(tries, key=lambda each: each.tries, default=None)
        answer = told.answer if told else None
        prompt, parameters = self.request(told.tries - 1 if told else 0)
        found: dict[str, Any] = {"text": None, "turns": None}
        if status == "ok":
            waiting = iter(tries)
            contents = [_joined(pieces, waiting) for pieces in texts]
            if row["turns"] is None:
                found["text"] = contents[0]
            else:
                roles = [turn["role"] for turn in row["turns"]]
                found["turns"] = [
                    {"role": role, "content": content}
                    for role, content in zip(roles, contents, strict=True)
                ]
        stops = [each.answer.finish_reason for each in tries if each.answer]
        return {
            "id": row["id"],
            "lang": self.lang,
            "image": row["image"],
            "image_sha256": row["image_sha256"],
            "task": row["task"],
            **found,
            "source_text": row["text"] if row["turns"] is None else source_of_turns(row["turns"]),
            "source_lang": row["lang"],
            "status": status,
            "flags": sorted({flag.name for each in tries for flag in each.flags}),
            "reasons": one_line("; ".join(dict.fromkeys(reasons))) or None,
            "finish_reason": next((s for s in stops if s != "stop"), stops[0] if stops else None),
            "model": answer.model if answer else self.plan.model,
            "model_revision": self.plan.model_revision,
            "prompt_id": prompt.id if prompt else "",
            "parameters": json.dumps(parameters, sort_keys=True),
            "attempts": sum(each.attempts for each in tries),
            "run_id": self.run_id,
        }


def check_translated(folder: Path, languages: Sequence[str]) -> None:
    """Raise ValueError if a build has no source units, or a unit has no translation."""
    names = {path.name for path in (folder / "source").glob("*.parquet")}
    if not names:
        raise ValueError(f"{folder}: expected source units, found none: run the step source first")
    for lang in languages:
        found = {path.name for path in (folder / "translate" / lang).glob("*.parquet")}
        if missing := len(names - found):
            raise ValueError(
                f"{folder}: expected {len(names)} units translated into {lang}, found {missing} missing: run "
                "the step translate first"
            )


def source_of_turns(turns: Sequence[Row]) -> str:
    """Return a conversation as its `source_text`."""
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return json.dumps(plain, ensure_ascii=False)


def _contents(row: Row) -> list[str]:
    return [row["text"]] if row["turns"] is None else [t["content"] for t in row["turns"]]


def _joined(pieces: list[Piece], waiting: Iterator[_Try]) -> str:
    parts = [next(waiting).text if piece.language else piece.text for piece in pieces]
    return "".join(part or "" for part in parts)
