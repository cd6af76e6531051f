"""`maya evaluate --rejudge ANSWERS`: score existing answers without a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from .answers import matched, read_answers
from .judges.plan import JudgePlan
from .protocol import BASELINES, MODEL, Scored, Selection
from .records import Records
from .report.page import write_report
from .results import Results, read_results
from .run import check_writable
from .tasks import task as find_task
from .tasks.judged import give_judge


def rejudge(
    answers: Path,
    task_name: str,
    output: Path,
    data: str | None = None,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    judge: JudgePlan | None = None,
    model: str | None = None,
    seed: int = 0,
) -> Results:
    """Score answers, print the table, write `results.json` and the answers with their scores.

    Args:
        answers: a file for `read_answers`; all of its runs are scored.
        task_name: `NAME` or `NAME:PROTOCOL`.
        output: the output folder; results of the model's other tasks stay there.
        data, split, languages: as for `evaluate`.
        judge: the judge model, for a task that needs one.
        model: the required name of the answers' model; None: any.
        seed: seed of the bootstrap.

    Raises:
        ValueError, OSError: in one line: an id is missing, unknown or occurs twice, the answers are of another
            model, or an error of `evaluate`.
    """
    began = time.perf_counter()
    task = find_task(task_name)
    given = read_answers(answers)
    name = given.model["name"]
    if model is not None and name not in (model, Path(model).name):
        raise ValueError(f"{answers}: expected answers of {model}, found answers of {name}")
    # ---- Check the output folder.
    check_writable(output)
    if (output / "results.json").is_file():
        before = read_results(output / "results.json")["model"]
        if before != given.model:
            raise ValueError(
                f"{output}: expected results of {name}, found results of {before['name']} with other "
                "weights or revision: name another --output"
            )
    # ---- Match the answers with the dataset's questions.
    part = task.load(Selection(data, split, languages, None, seed))
    runs = {}
    for run in (MODEL, *BASELINES):
        if run == MODEL or any(one.run == run for one in given.given):
            runs[run] = matched(given, run, part.requests, every=run == MODEL)
    # ---- Score the answers.
    give_judge([task], {task.key: part}, judge, output)
    by_id = {request.id: request for request in part.requests}
    scored = {}
    for run, own in runs.items():
        requests = [by_id[name] for name in own]
        scores = task.scores(requests, list(own.values()))
        scored[run] = [Scored(*one) for one in zip(requests, own.values(), scores, strict=True)]
    # ---- Write the results.
    settings = {
        "decoding": "answers made before",
        "baselines": [run for run in runs if run != MODEL],
        "baseline_items": None,
        "answers": answers.name,
        "answers_sha256": given.sha256,
    }
    records = Records(output, given.model, [task.key], str(output), seed, counted=given.counted)
    records.add(task, part, scored, settings, {}, began)
    write_report([output])
    print(f"\nwritten to {output}: results.json, report.html and the answers")
    return records.results
