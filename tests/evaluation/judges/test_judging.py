"""Judging with a real HTTP server that misbehaves, and after a SIGKILL."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from filelock import FileLock
from PIL import Image

from maya_vlm.training.common.endpoint import EndpointError, EndpointPlan
from maya_vlm.training.evaluation.judges.journal import Journal
from maya_vlm.training.evaluation.judges.judge import EndpointJudge
from maya_vlm.training.evaluation.judges.judging import UNREADABLE, Judging
from maya_vlm.training.evaluation.judges.rubric import Case, read_object
from maya_vlm.training.evaluation.judges.rubrics import (
    MMVET,
    REVIEW,
    REVIEW_STRICT,
    parse_tenths,
)
from tests.helpers.endpoint_server import EndpointServer, Faults

from .judge_server import pair_of, plan, reply, server

ROOT = Path(__file__).resolve().parents[3]
SESSION = """
import sys
from pathlib import Path
from maya_vlm.training.evaluation.judges.plan import JudgePlan
from tests.evaluation.judges.test_judging import cases
judging = JudgePlan(sys.argv[1], "judge-1", concurrency=4).open(Path(sys.argv[2]))
judging(cases(60), "test")
"""


def case(number: int, rubric=REVIEW) -> Case:
    shown = {"context": "A cat.", "question": "What?", "first": "It is a cat."}
    return Case(rubric, {**shown, "second": f"A cat, number {number}."})


def cases(number: int, rubric=REVIEW) -> list[Case]:
    return [case(place, rubric) for place in range(number)]


def judging(address: str, folder: Path, **changes) -> Judging:
    options = {"backoff": 0.001, "timeout": 0.5, "concurrency": 8, **changes}
    return Judging(
        EndpointJudge(EndpointPlan(address, "judge-1", **options)), folder / "j.jsonl", 0.01
    )


def expected(each: Case) -> tuple[float, float]:
    return pair_of(each.text)


# ------------------------------------------------------------------------------ the journal


def test_after_a_sigkill_no_call_that_was_answered_is_paid_again(tmp_path):
    with server(latency=0.03) as judge:
        process = subprocess.Popen(
            [sys.executable, "-c", SESSION, judge.url, str(tmp_path)], cwd=ROOT
        )
        deadline = time.monotonic() + 60
        while judge.requests < 20 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        path = tmp_path / "judgements.jsonl"
        # Simulate a kill in the middle of a line.
        path.write_bytes(path.read_bytes() + b'0123abcd {"key": "00')
        kept = set(Journal(path).records)
        assert 10 <= len(kept) < 60
        before = Counter(judge.counts)
        found = plan(judge).open(tmp_path)(cases(60), "test")
        assert [one.value for one in found] == [expected(each) for each in cases(60)]
        for each in cases(60):
            calls = judge.counts["", each.text]
            if each.key("judge-1", None) in kept:
                assert calls == before["", each.text] == 1
            else:
                assert calls - before["", each.text] == 1
        # Only the calls under way at the kill were repeated.
        assert judge.requests <= 60 + 4


def test_a_damaged_line_is_left_out_and_told(tmp_path, capsys):
    with server() as judge:
        judging(judge.url, tmp_path)(cases(5), "test")
        path = tmp_path / "j.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b'"reply":"', b'"reply":"9')
        path.write_bytes(b"".join(lines))
        found = judging(judge.url, tmp_path)(cases(5), "test")
        assert judge.requests == 6
    assert [one.value for one in found] == [expected(each) for each in cases(5)]
    assert "j.jsonl: 1 damaged lines are skipped and judged again" in capsys.readouterr().out


class Colour:
    def __init__(self, shade):
        self.shade = shade

    def load(self, key):
        return Image.new("RGB", (4, 4), (self.shade, 0, 0))


def test_the_key_is_everything_that_can_change_a_judgement_and_nothing_else():
    first = Case(REVIEW, case(0).fields, ("a",), Colour(0))
    key = first.key("judge", "1")
    assert (
        replace(first, pictures=("b",)).key("judge", "1") == key
    )  # a picture's name is not part of its content
    others = [
        first.key("other", "1"),
        first.key("judge", "2"),
        replace(first, source=Colour(1)).key("judge", "1"),
        replace(first, pictures=()).key("judge", "1"),
        replace(first, sample=1).key("judge", "1"),
        replace(first, attempt=1).key("judge", "1"),
        replace(first, rubric=replace(REVIEW, version=2)).key("judge", "1"),
        replace(first, rubric=replace(REVIEW, system="x")).key("judge", "1"),
        replace(first, rubric=replace(REVIEW, temperature=0.0)).key("judge", "1"),
        replace(first, rubric=replace(REVIEW, max_tokens=7)).key("judge", "1"),
        replace(first, rubric=replace(REVIEW, schema={})).key("judge", "1"),
        *(
            replace(first, fields={**first.fields, name: "x"}).key("judge", "1")
            for name in first.fields
        ),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_another_process_with_the_same_file_is_refused(tmp_path):
    with server() as judge, FileLock(tmp_path / "j.jsonl.lock", thread_local=False):
        with pytest.raises(OSError, match="another process judges with this file"):
            judging(judge.url, tmp_path)(cases(1), "test")


# ------------------------------------------------------------------------------ bad servers


def test_a_server_that_stalls_drops_and_is_overloaded_is_asked_again(tmp_path):
    faults = Faults(
        *(0.1, 0.1),
        hang=0.05,
        reset=0.1,
        broken_json=0.1,
        no_choices=0.1,
        retry_after="0.01",
    )
    with server(faults) as judge:
        made = judging(judge.url, tmp_path, max_attempts=20, concurrency=16)
        found = made(cases(40), "test")
        assert set(judge.met) >= {"overloaded", "hang", "reset", "broken_json", "no_choices"}
        assert [one.value for one in found] == [expected(each) for each in cases(40)]
        before = judge.requests
        judging(judge.url, tmp_path)(cases(40), "test")
        assert judge.requests == before


def test_a_failed_call_is_left_out_and_asked_again_by_the_same_command(tmp_path):
    with server(always={case(3).text: "bad_request"}) as judge:
        found = judging(judge.url, tmp_path)(cases(6), "test")
    assert [one.value is None for one in found] == [place == 3 for place in range(6)]
    assert found[3].listed == "failed: HTTP 400: this text is refused"
    with server() as judge:
        found = judging(judge.url, tmp_path)(cases(6), "test")
        assert judge.requests == 1
    assert found[3].value == expected(case(3))


def test_a_judge_that_answers_prose_ends_in_one_line_and_is_not_paid_again(tmp_path):
    prose = "Both assistants did well.\nI like them."
    with server(fallback=lambda text, lang: prose) as judge:
        for _ in range(2):
            with pytest.raises(
                ValueError,
                match=r"^judge judge-1: expected readable judgements, found none in \d+, ",
            ) as error:
                judging(judge.url, tmp_path)(cases(100), "test")
            assert "expected two scores of 1 to 10 in the first line" in str(error.value)
            assert "\n" not in str(error.value)
        # The calls under way at the failure finished; the second run makes no call.
        assert UNREADABLE <= judge.requests < UNREADABLE + 8


def test_a_server_that_refuses_every_request_ends_in_one_line(tmp_path):
    said = {case(place).text: "bad_request" for place in range(3)}
    with server(always=said) as judge:
        with pytest.raises(ValueError, match="found none in 3, the last: HTTP 400"):
            judging(judge.url, tmp_path)(cases(3), "test")


def test_some_prose_fails_alone(tmp_path):
    def sometimes(text, lang):
        return "I cannot." if "number 7." in text else reply(text)

    with server(fallback=sometimes) as judge:
        found = judging(judge.url, tmp_path)(cases(30), "test")
    assert [place for place, one in enumerate(found) if one.value is None] == [7]


def test_a_judge_that_is_not_there_is_told_before_and_in_between(tmp_path):
    with pytest.raises(
        OSError, match=r"^--judge http://127.0.0.1:9/v1: expected a server, found none"
    ):
        judging("http://127.0.0.1:9/v1", tmp_path)
    with server() as judge:
        made = judging(judge.url, tmp_path, max_attempts=2)
        made(cases(5), "test")
    with pytest.raises(OSError, match="no connection in 2 attempts") as error:
        made(cases(10), "test")
    assert "\n" not in str(error.value)
    with server(api_key="secret") as judge:
        with pytest.raises(EndpointError, match="refuses the API key"):
            judging(judge.url, tmp_path)(cases(10), "test")
    with server() as judge:
        assert len(judging(judge.url, tmp_path)(cases(10), "test")) == 10
        assert judge.requests == 5


def test_an_unreadable_grade_is_asked_for_again_and_warmer(tmp_path):
    fields = {"question": "What?", "reference": "a cat", "answer": "a dog"}
    said = iter(["The", "score", "0.3"])
    with server(fallback=lambda text, lang: next(said), record=True) as judge:
        (found,) = judging(judge.url, tmp_path)([Case(MMVET, fields)], "test")
    assert found.value == 0.3
    assert [body["temperature"] for _, body in judge.seen] == [0, 0.5, 1.0]
    assert judge.seen[0][1]["max_tokens"] == 3
    assert judge.seen[0][1]["messages"][-1]["content"].endswith("\nWhat? | a cat | a dog | ")


def test_grades_that_stay_unreadable_are_counted_whatever_their_number(tmp_path):
    shown = [
        Case(MMVET, {"question": "What?", "reference": "a", "answer": f"{place} x"})
        for place in range(UNREADABLE + 5)
    ]

    def first_alone(text, lang):
        return "0.5" if "| 0 x |" in text else "Well"

    with server(fallback=first_alone) as judge:
        found = judging(judge.url, tmp_path, concurrency=1)(shown, "test")
    assert judge.requests == 1 + 5 * (len(shown) - 1)
    assert [one.value for one in found] == [0.5] + [None] * (len(shown) - 1)


class NoSchemas(EndpointServer):
    """A server without support for JSON schemas."""

    async def _answer(self, request):
        if "response_format" in await request.json():
            said = {"error": {"message": "response_format is not supported"}}
            return web.json_response(said, status=400)
        return await super()._answer(request)


def test_a_server_without_json_schemas_is_asked_without(tmp_path):
    with NoSchemas(fallback=reply) as judge:
        found = judging(judge.url, tmp_path, concurrency=1)(cases(5, REVIEW_STRICT), "test")
        assert judge.requests == 6  # the server refused one of them
    assert [one.value for one in found] == [expected(each) for each in cases(5)]
    records = Journal(tmp_path / "j.jsonl").records.values()
    assert not any(record["structured"] for record in records)


class NewerName(EndpointServer):
    """A server that refuses `max_tokens`."""

    async def _answer(self, request):
        body = await request.json()
        assert ("max_tokens" in body) != ("max_completion_tokens" in body)
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": said}}, status=400)
        return await super()._answer(request)


@pytest.mark.parametrize("rubric", [REVIEW, REVIEW_STRICT])
def test_a_server_that_names_the_limit_otherwise_is_given_it(rubric, tmp_path):
    with NewerName(fallback=reply) as judge:
        found = judging(judge.url, tmp_path, concurrency=1)(cases(4, rubric), "test")
        assert judge.requests == 5
    assert [one.value for one in found] == [expected(each) for each in cases(4)]


def test_a_thought_before_the_reply_is_no_part_of_it(tmp_path):
    thinks = {"0": "<think>\n3 4?\n</think>\n\n8 9\nGood.", "1": "<think>8 9"}

    def thought(text, lang):
        return next((said for number, said in thinks.items() if f"number {number}." in text), "1 2")

    with server(fallback=thought) as judge:
        found = judging(judge.url, tmp_path)(cases(3), "test")
    assert [one.value for one in found] == [(8, 9), None, (1, 2)]


def test_pictures_are_shown_to_the_judge(tmp_path):
    shown = replace(case(0), pictures=("a",), source=Colour(5))
    with server(record=True) as judge:
        (found,) = judging(judge.url, tmp_path)([shown], "test")
    assert found.value == expected(shown)
    picture, text = judge.seen[0][1]["messages"][1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": shown.text}


# ------------------------------------------------------------------------------ replies


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Sure! {"a": 1}', None),
        ('{"a": 1} {"a": 2}', None),
        ('{"a": 1, "a": 2}', None),
        ('{"a": NaN}', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_an_object_is_read_or_it_is_not(text, found):
    assert read_object(text) == found


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({}, (7, 8)),
        ({"assistant_1": 11}, None),
        ({"assistant_1": "7"}, None),
        ({"assistant_1": True}, None),
        ({"assistant_2": None}, None),
    ],
)
def test_scores_of_a_structured_review_are_checked(changes, value):
    said = {"explanation": "x", "assistant_1": 7, "assistant_2": 8} | changes
    assert REVIEW_STRICT.read(json.dumps(said)) == value


@pytest.mark.parametrize(
    ("text", "score"),
    [("7", 7), ("7.5/10", 7.5), (" **10** ", 10), ("11", None), ("Score 7", None), ("-1", None)],
)
def test_a_score_of_ten_is_one_number(text, score):
    assert parse_tenths(text) == score
