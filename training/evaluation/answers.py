"""Read and write answers: our answers files, and published answers as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.files import sha256_file, write_parquet
from ..common.reading import parse_json, read_text
from ..common.shapes import check_shape
from ..common.telling import found as described
from ..common.telling import one_line, shown
from ..inference.generation import Answer
from .measures import languages_found, toxicities
from .protocol import MODEL, Request, Scored
from .results import ModelInfo, check_model, known_by_name
from .scoring.toxicity import Toxicity

# Metadata key of the parquet file; its value is the model's info as JSON.
_MODEL = b"maya_model"
_COLUMNS: dict[str, Any] = {"run": str, "id": str, "language": str, "prompt": str, "answer": str}
_COLUMNS |= {"tokens": (int, None), "ended": (bool, None)}
# Optional text fields of a JSON line.
_TEXTS = dict.fromkeys(("language", "question", "model", "model_id"), (str, None))


@dataclass(frozen=True)
class Given:
    """One answer in a file.

    Args:
        where: the line or row, for messages.
        ids: candidates for the request's id, the likeliest first.
        run: "model", or the name of the answer's baseline.
        language: None if the file does not say.
        question: the prompt; None if the file does not say.
    """

    where: str
    ids: tuple[str, ...]
    run: str
    language: str | None
    question: str | None
    answer: Answer


@dataclass(frozen=True)
class Answers:
    """The answers of one model.

    Args:
        counted: whether the file says which answers were cut.
    """

    path: Path
    model: ModelInfo
    given: Sequence[Given]
    counted: bool

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes."""
        return sha256_file(self.path)


def write_answers(
    path: Path,
    runs: Mapping[str, Sequence[Scored]],
    model: ModelInfo,
    counted: bool = True,
    toxicity: Toxicity | None = None,
) -> None:
    """Write every question and answer, one row each, and the model.

    Args:
        counted: whether it is known which answers the model ended itself.
        toxicity: a classifier of toxic answers.
    """
    rows: list[dict[str, Any]] = [
        {
            "run": run,
            "id": one.request.id,
            "subset": one.request.subset,
            "language": one.request.language,
            "item": one.request.item,
            "pictures": list(one.request.pictures),
            "prompt": one.request.text,
            "expected": json.dumps(one.request.expected, ensure_ascii=False),
            "answer": one.answer.text,
            "parsed": one.score.parsed,
            "unparsable": one.score.unparsable,
            **one.score.values,
            **({"judgements": list(one.score.judgements)} if one.score.judgements else {}),
            "tokens": one.answer.tokens,
            "ended": one.answer.ended if counted else None,
            "answer_language": one.request.answer_language,
            "language_found": language,
            "toxicity": toxic,
        }
        for run, scored in runs.items()
        for one, language, toxic in zip(
            scored, languages_found(scored), toxicities(scored, toxicity), strict=True
        )
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    write_parquet(path, table.replace_schema_metadata({_MODEL: json.dumps(model)}))


def read_answers(path: Path) -> Answers:
    """Read the answers in a file: parquet from `write_answers`, or JSON Lines.

    A JSON line has `answer` or `text`, and `id`, or `question_id` with or without `language`; it may have
    `question`, and `model` or `model_id`.

    Raises:
        FileNotFoundError, ValueError: in one line: the file does not exist, a line or row lacks a required
            field, or the answers are of several models.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of answers, found none")
    return _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)


def _read_parquet(path: Path) -> Answers:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            one_line(f"{path}: expected a parquet file, found one that cannot be read: {error}")
        ) from None
    missing = [name for name in _COLUMNS if name not in table.column_names]
    model = (table.schema.metadata or {}).get(_MODEL)
    if missing or model is None:
        raise ValueError(
            f"{path}: expected an answers file of `maya evaluate`, found no "
            f"{', '.join(missing) or 'model in its metadata'}"
        )
    about = parse_json(model, str(path))
    check_model(about, f"{path}: the model in its metadata")
    given = []
    for number, row in enumerate(table.select(list(_COLUMNS)).to_pylist()):
        check_shape(row, _COLUMNS, f"{path}: row {number}")
        answer = Answer(row["answer"], row["tokens"], row["ended"] is not False)
        own = (row["id"],)
        given.append(
            Given(f"row {number}", own, row["run"], row["language"], row["prompt"], answer)
        )
    return Answers(path, about, given, table.column("ended").null_count == 0)


def _read_lines(path: Path) -> Answers:
    given: list[Given] = []
    models: dict[Any, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        row = parse_json(line, f"{path}: {where}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}: {where}: expected a mapping, found {described(row)}")
        check_shape(dict.fromkeys(_TEXTS) | row, _TEXTS, f"{path}: {where}")
        text = row.get("answer", row.get("text"))
        own, language = row.get("id", row.get("question_id")), row.get("language")
        if not isinstance(text, str) or not isinstance(own, (str, int)):
            raise ValueError(
                f"{path}: {where}: expected question_id and answer, found {described(row)}"
            )
        ids = (str(own),) if language is None or "id" in row else (f"{language}/{own}", str(own))
        models.setdefault(row.get("model", row.get("model_id")), where)
        given.append(
            Given(where, ids, MODEL, language, row.get("question"), Answer(text, None, True))
        )
    if not given:
        raise ValueError(f"{path}: expected answers, found none")
    if len(models) > 1:
        (first, _), (second, where) = list(models.items())[:2]
        raise ValueError(
            f"{path}: {where}: expected answers of one model, found {shown(second)} beside {shown(first)}"
        )
    (name,) = models
    return Answers(path, known_by_name(str(name) if name is not None else path.stem), given, False)


def matched(
    answers: Answers,
    run: str,
    requests: Sequence[Request],
    *,
    every: bool = True,
    more: bool = False,
) -> dict[str, Answer]:
    """Return request -> answer of one run, in the order of the requests.

    Args:
        every: whether each request must have an answer.
        more: whether the file may have answers to other requests, whose number is printed. Answers in
            languages without requests are always allowed, and are counted in that number.

    Raises:
        ValueError: in one line: an id is missing, unknown or occurs twice, or an answer is to another question.
    """
    known = {request.id: request for request in requests}
    languages = {request.language for request in requests}
    found: dict[str, Given] = {}
    others = 0
    for one in answers.given:
        if one.run != run:
            continue
        if one.language is not None and one.language not in languages:
            others += 1
            continue
        own = next((name for name in one.ids if name in known), None)
        where = f"{answers.path}: {one.where}: id {one.ids[0]!r}"
        if own is None and more:
            others += 1
            continue
        if own is None:
            raise ValueError(
                f"{where}: expected the id of a question, such as {next(iter(known))!r}: give the answers "
                "to this task's questions"
            )
        if own in found:
            raise ValueError(
                f"{where}: expected once, found also in {found[own].where}: remove one of them"
            )
        if one.question is not None and one.question != known[own].text:
            raise ValueError(
                one_line(
                    f"{where}: expected an answer to {shown(known[own].text)}, found one to "
                    f"{shown(one.question)}: give answers to these questions"
                )
            )
        found[own] = one
    missing = [name for name in known if name not in found]
    if every and missing:
        raise ValueError(
            f"{answers.path}: expected {len(known):,} answers, found none to {len(missing):,} questions, "
            f"the first {missing[0]!r}: add them, or choose complete languages with --languages"
        )
    if others:
        print(f"{answers.path}: {others:,} answers to other questions are skipped")
    return {name: found[name].answer for name in known if name in found}
