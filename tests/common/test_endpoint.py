"""The endpoint client against a faulty server: what it retries, what it does not, and for how long."""

import asyncio
import email.utils
import json
import pickle
import socket
import time

import pytest

from maya_vlm.training.common import endpoint as module
from maya_vlm.training.common.endpoint import Answer, Endpoint, EndpointError, EndpointPlan
from tests.helpers.endpoint_server import EndpointServer, Faults, endpoint_process, stats
from tests.helpers.raw_server import completion, raw_server, reply

TRUTHS = {"fr": {f"cat {i}": f"chat {i}" for i in range(40)}}
ONE = "cat 0"


def messages(text: str) -> list[dict]:
    return [
        {"role": "system", "content": "Translate into French."},
        {"role": "user", "content": text},
    ]


def plan(url: str, **changes) -> EndpointPlan:
    return EndpointPlan(
        **{"base_url": url, "model": "aya", "backoff": 0.001, "timeout": 20.0, **changes}
    )


def ask(url_or_plan, *texts: str, **parameters) -> list[Answer]:
    settings = plan(url_or_plan) if isinstance(url_or_plan, str) else url_or_plan

    async def run() -> list[Answer]:
        async with Endpoint(settings) as endpoint:
            return await asyncio.gather(
                *(endpoint.complete(messages(t), **parameters) for t in texts)
            )

    return asyncio.run(run())


# ------------------------------------------------------------------------------ answers


def test_answer_and_its_request():
    with EndpointServer(TRUTHS, record=True) as server:
        (answer,) = ask(server.url, ONE, temperature=0.0, seed=3, logprobs=True)
    assert (answer.text, answer.finish_reason) == ("chat 0", "stop")
    assert (answer.attempts, answer.error, answer.model) == (1, None, "aya")
    assert [t["token"] for t in answer.logprobs] == ["chat", "0"]
    assert answer.usage == {"completion_tokens": 6}
    headers, body = server.seen[0]
    assert body == {
        "model": "aya",
        "messages": messages(ONE),
        "temperature": 0.0,
        "seed": 3,
        "logprobs": True,
    }
    assert "Authorization" not in headers


def test_a_servers_own_parameters_go_into_the_request():
    extra = {"sampler_2": {"a": [1, None, True, "x"]}}
    module.check_parameters({"temperature": 0.0, "extra_body": extra}, "parameters")
    with EndpointServer(TRUTHS, record=True) as server:
        ask(server.url, ONE, temperature=0.0, extra_body=extra)
    assert server.seen[0][1] == {
        "model": "aya",
        "messages": messages(ONE),
        "temperature": 0.0,
        **extra,
    }
    merged = module.merge_parameters({"seed": 1, "extra_body": extra}, {"extra_body": {"b": 2}})
    assert merged == {"seed": 1, "extra_body": {**extra, "b": 2}}


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (
            {"sampler_2": 1},
            "found 'sampler_2'; .*put a parameter that only this server knows below",
        ),
        ({"extra_body": [1]}, "p.extra_body: expected a mapping of parameters, found a list of 1"),
        ({"extra_body": {"temperature": 1}}, "'temperature' is a known parameter: move it out of"),
        (
            {"extra_body": {"messages": []}},
            "expected the name of a server's own .* found 'messages'",
        ),
        ({"extra_body": {1: 1}}, "expected the name of a server's own parameter, found 1"),
        ({"extra_body": {"x": float("inf")}}, "p.extra_body: expected a finite number, found inf"),
        ({"extra_body": {"x": {"y": b"z"}}}, "expected text, numbers, lists .* found 1 bytes"),
        ({"extra_body": {"x": {"api_key": "abcd"}}}, "'x' would be stored with the plan"),
    ],
)
def test_parameters_are_checked(parameters, told):
    with pytest.raises(ValueError, match=told):
        module.check_parameters(parameters, "p")


def test_logprobs_only_where_asked_for():
    with EndpointServer(TRUTHS) as server:
        assert ask(server.url, ONE)[0].logprobs is None


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
        ("https://h/api/v1/chat/completions", "https://h/api/v1/chat/completions"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai/chat/completions"),
        ("https://h/vllm", "https://h/vllm/v1/chat/completions"),
    ],
)
def test_addresses(base, url):
    assert plan(base).url == url


def test_with_and_without_v1_reach_the_server():
    with EndpointServer(TRUTHS) as server:
        for base in (server.url, server.url.removesuffix("/v1"), server.url + "/"):
            assert ask(base, ONE)[0].text == "chat 0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url: expected http"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url: expected no user, password or query"),
        ({"concurrency": 0}, "concurrency: expected at least 1, found 0"),
        ({"timeout": 0.0}, "timeout: expected seconds above 0"),
        ({"backoff": -1.0}, "backoff: expected seconds"),
    ],
)
def test_plan_is_checked(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        plan("http://h", **changes)
    assert "secret" not in str(raised.value)


# ------------------------------------------------------------------------------ retries


@pytest.mark.parametrize(
    "fault", ["overloaded", "unavailable", "reset", "broken_json", "no_choices", "hang", "chunked"]
)
def test_what_may_pass_is_tried_again(fault):
    with EndpointServer(TRUTHS, faults=Faults(**{fault: 0.5}), seed=1) as server:
        answers = ask(plan(server.url, timeout=0.5 if fault == "hang" else 20.0), *TRUTHS["fr"])
    assert [a.text for a in answers] == list(TRUTHS["fr"].values())
    assert server.met[fault] > 0
    attempts = sum(a.attempts for a in answers)
    # On a busy machine an attempt may end before the server has read its request.
    assert attempts >= server.requests if fault == "hang" else attempts == server.requests
    assert (server.requests > len(answers)) == (fault != "chunked")


def test_every_fault_at_once():
    shares = ("overloaded", "unavailable", "hang", "reset", "broken_json", "no_choices", "chunked")
    faults = Faults(**dict.fromkeys(shares, 0.06))
    with EndpointServer(TRUTHS, faults=faults) as server:
        answers = ask(plan(server.url, timeout=0.5, max_attempts=20), *TRUTHS["fr"])
        assert set(server.met) == set(shares)
    assert [a.text for a in answers] == list(TRUTHS["fr"].values())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("overloaded", "HTTP 429: the server is overloaded"),
        ("unavailable", "HTTP 503: the server is unavailable"),
        ("reset", "ClientPayloadError"),
        ("broken_json", "an answer without choices"),
        ("no_choices", "an answer without choices"),
        ("hang", "no answer within 0.2 s"),
    ],
)
def test_failing_for_good_is_an_answer_with_an_error(fault, said):
    with EndpointServer(TRUTHS, always={ONE: fault}) as server:
        settings = plan(server.url, timeout=0.2 if fault == "hang" else 20.0, max_attempts=3)
        failed, good = ask(settings, ONE, "cat 1")
    assert failed.text is None
    assert said in failed.error
    assert "\n" not in failed.error
    assert failed.attempts == server.counts[("fr", ONE)] == 3
    assert good.text == "chat 1"


def test_a_bad_request_fails_its_row_at_once():
    with EndpointServer(TRUTHS, always={ONE: "bad_request"}) as server:
        failed, good = ask(server.url, ONE, "cat 1")
    assert failed == Answer(None, None, 1, "HTTP 400: this text is refused", "aya")
    assert good.text == "chat 1"
    assert server.requests == 2


def test_truncation_is_told_not_retried():
    with EndpointServer(TRUTHS, always={ONE: "length"}) as server:
        (answer,) = ask(server.url, ONE)
    assert (answer.text, answer.finish_reason, answer.attempts) == ("cha", "length", 1)


def test_a_message_without_text_is_told():
    with EndpointServer(TRUTHS, always={ONE: "no_text"}) as server:
        (answer,) = ask(server.url, ONE)
    assert answer.text is None
    assert answer.error == "an answer without text (finish_reason 'stop')"


# ------------------------------------------------------------------------------ waiting times


def waits(monkeypatch, **changes) -> list[float]:
    """Return the seconds that the client would have slept between attempts at one request."""
    slept = []

    class Clockless:  # replaces asyncio in the client, but not in the server
        async def sleep(self, seconds):
            slept.append(seconds)

        def __getattr__(self, name):
            return getattr(asyncio, name)

    faults = Faults(overloaded=1.0, retry_after=changes.pop("retry_after", None))
    with EndpointServer(TRUTHS, faults=faults) as server:
        monkeypatch.setattr(module, "asyncio", Clockless())
        ask(plan(server.url, **changes), ONE)
        assert server.requests == changes["max_attempts"]
    return slept


def test_back_off_doubles_with_jitter_up_to_the_longest(monkeypatch):
    slept = waits(monkeypatch, backoff=1.0, max_backoff=6.0, max_attempts=7)
    longest = [1.0, 2.0, 4.0, 6.0, 6.0, 6.0]
    assert len(slept) == len(longest)
    assert all(most / 2 <= s <= most for s, most in zip(slept, longest, strict=True))
    assert len(set(slept)) == len(slept)


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("7", 7.0, 7.5),
        ("2.5", 2.5, 3.0),
        ("7200", 30.0, 30.5),
        ("date", 14.0, 20.5),
        ("past", 0.5, 1.0),
        ("soon", 0.5, 1.0),
        ("nan", 0.5, 1.0),
        ("-3", 0.5, 1.0),
    ],
)
def test_retry_after_is_respected_and_capped(monkeypatch, retry_after, least, most):
    # HTTP dates have whole seconds.
    date = {"date": time.time() + 20, "past": time.time() - 500}.get(retry_after)
    value = retry_after if date is None else email.utils.formatdate(date, usegmt=True)
    (slept,) = waits(monkeypatch, retry_after=value, backoff=1.0, max_backoff=30.0, max_attempts=2)
    assert least <= slept <= most


def test_concurrency_is_bounded_and_used():
    with EndpointServer(TRUTHS, latency=0.05) as server:
        answers = ask(plan(server.url, concurrency=7), *TRUTHS["fr"])
    assert len(answers) == 40
    assert server.peak == 7


def test_waiting_keeps_its_place():
    """An overloaded server gets fewer requests: a request waiting for a retry keeps its place."""
    with EndpointServer(TRUTHS, always={ONE: "overloaded"}, latency=0.01) as server:
        settings = plan(server.url, concurrency=1, max_attempts=3, backoff=0.05)
        failed, _ = ask(settings, ONE, "cat 1")
        order = [text for _, text in server.counts]
    assert failed.attempts == 3
    assert order == [ONE, "cat 1"]


# ------------------------------------------------------------------------------ errors that stop a run


def test_the_key_is_sent_also_to_localhost_and_never_shown(monkeypatch):
    monkeypatch.setenv("MAYA_TEST_KEY", "sk-very-secret")
    with EndpointServer(TRUTHS, api_key="sk-very-secret") as server:
        settings = plan(server.url, api_key_env="MAYA_TEST_KEY")
        assert ask(settings, ONE)[0].text == "chat 0"
        assert "very-secret" not in repr(settings)
        monkeypatch.setenv("MAYA_TEST_KEY", "sk-wrong-secret")
        with pytest.raises(EndpointError, match="refuses the API key") as raised:
            ask(settings, ONE)
    said = str(raised.value)
    assert "MAYA_TEST_KEY" in said
    assert "HTTP 401: Incorrect API key provided: Bearer [key]" in said
    assert "wrong-secret" not in said


def test_a_named_key_must_be_there(monkeypatch):
    monkeypatch.delenv("MAYA_TEST_KEY", raising=False)
    with pytest.raises(
        ValueError, match="api_key_env: expected the environment variable MAYA_TEST_KEY"
    ):
        ask(plan("http://127.0.0.1:1", api_key_env="MAYA_TEST_KEY"), ONE)


def test_an_unknown_model_or_address_stops_the_run():
    with EndpointServer(TRUTHS, model="other") as server:
        with pytest.raises(EndpointError, match=r"does not know the model.*'aya'.*404"):
            ask(server.url, *TRUTHS["fr"])
        with pytest.raises(EndpointError, match="HTTP 404"):
            ask(server.url + "/elsewhere", ONE)


def test_nobody_there_stops_the_run():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(EndpointError, match=r"no connection in 3 attempts.*start the server"):
            ask(plan(url, max_attempts=3), ONE)


def test_an_endpoint_that_fails_everyone_stops_the_run():
    faults = Faults(unavailable=1.0)
    with EndpointServer(TRUTHS, faults=faults) as server:
        settings = plan(server.url, max_attempts=2, stop_after=10)
        assert all(a.error for a in ask(settings, *list(TRUTHS["fr"])[:9]))
        with pytest.raises(EndpointError, match=r"10 requests in a row failed.*HTTP 503"):
            ask(settings, *TRUTHS["fr"])


def test_the_error_travels_between_processes():
    error = EndpointError("http://h refuses the API key")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_server_that_comes_late_is_waited_for():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]

    async def run() -> Answer:
        async with Endpoint(plan(f"http://127.0.0.1:{port}", backoff=0.05)) as endpoint:
            task = asyncio.create_task(endpoint.complete(messages(ONE)))
            await asyncio.sleep(0.05)
            server = EndpointServer(TRUTHS, port=port)
            serving = asyncio.create_task(server.serve())
            answer = await task
            server._stop()
            await serving
            return answer

    answer = asyncio.run(run())
    assert answer.text == "chat 0"
    assert answer.attempts > 1


# ------------------------------------------------------------------------------ the server itself


def test_a_process_of_its_own():
    with endpoint_process(TRUTHS, latency=0.01, slots=4, model="aya") as url:
        assert [a.text for a in ask(url, *TRUTHS["fr"])] == list(TRUTHS["fr"].values())
        found = stats(url)
    assert found["requests"] == 40
    assert sorted(found["keys"]) == sorted(["fr", text, 1] for text in TRUTHS["fr"])
    assert found["work"] >= 40 * 0.01


def test_faults_do_not_hang_on_the_order_of_arrival():
    def met(texts):
        with EndpointServer(TRUTHS, faults=Faults(unavailable=0.3), seed=5) as server:
            ask(server.url, *texts)
            return server.counts

    texts = list(TRUTHS["fr"])
    assert met(texts) == met(texts[::-1])


# ------------------------------------------------------------------------------ answers are data


ODD = [None, 0, 1.5, True, [], {}, [[]], {"a": {}}, "\x1b[2J", "x" * 10_000]


def is_one_line(text: str) -> bool:
    return text.isprintable() and 0 < len(text) <= 500


def check(answer: Answer) -> None:
    """Check that a row can hold an answer: a text or an error, nothing that moves a terminal's cursor."""
    assert (answer.text is None) == (answer.error is not None)
    for told in (answer.error, answer.finish_reason, answer.model):
        assert told is None or is_one_line(told)
    json.dumps([answer.text, answer.logprobs], allow_nan=False).encode()


@pytest.mark.parametrize(
    ("field", "fails"),
    [
        ("model", ()),
        ("usage", ()),
        ("id", ()),
        ("choice__finish_reason", (0, 1.5, True, [], {}, [[]], {"a": {}})),
        ("choice__logprobs", (0, 1.5, True, [[]], "\x1b[2J", "x" * 10_000)),
        ("message__content", tuple(value for value in ODD if not isinstance(value, str))),
    ],
)
def test_fields_of_any_type(field, fails):
    odd = [
        value for value in ODD if not (field == "choice__logprobs" and value in ([], {}, {"a": {}}))
    ]
    for value in odd:
        with raw_server(reply(completion(**{field: value}))) as url:
            (answer,) = ask(url, ONE, logprobs=True)
        check(answer)
        assert (answer.error is not None) == (value in fails), value
        assert answer.attempts == 1


@pytest.mark.parametrize("value", [*ODD[1:], [{"token": "x"}], [{"token": 3, "logprob": -1.0}],
    [{"token": "x", "logprob": -(10**400)}], [{"token": "x", "logprob": True}],
    [{"token": "x", "logprob": -1.0, "top_logprobs": [None]}],
    [{"token": "x", "logprob": -1.0, "top_logprobs": {"a": 1}}]])  # fmt: skip
def test_log_probabilities_of_any_shape(value):
    with raw_server(reply(completion(choice__logprobs={"content": value}))) as url:
        (answer,) = ask(url, ONE, logprobs=True)
        (not_asked,) = ask(url, ONE)
    check(answer)
    assert (answer.error is None) == (value == [])
    assert not_asked.text == "chat"


@pytest.mark.parametrize(
    "field", ["model", "usage", "choices", "choice__finish_reason", "message__content"]
)
@pytest.mark.parametrize("value", ["half \ud83d", {"a": "\ud83d"}], ids=["text", "inside"])
def test_half_of_a_surrogate_pair_fails_the_row(field, value):
    with raw_server(reply(completion(**{field: value}))) as url:
        (answer,) = ask(url, ONE)
    check(answer)
    assert "half of a surrogate pair" in answer.error
    assert answer.attempts == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"choices":' * 100_000, "nested deeper than 64 levels"),
        (completion().replace(b'"chat"', b'"\xff"'), "expected UTF-8 text"),
        (completion().replace(b"1}", b"NaN}"), "expected a number, found NaN"),
        (completion().replace(b"1}", b"9" * 10_000 + b"}"), "digits"),
        (b" " * (module.MAX_BODY + 1), "more than 16,777,216 bytes"),
        (completion(message__content="x" * 300_000), "an answer of 300,000 characters"),
    ],
)
def test_bodies_that_no_row_could_hold_are_not_asked_for_again(body, said):
    with raw_server(reply(body)) as url:
        (answer,) = ask(plan(url, max_attempts=2), ONE)
    check(answer)
    assert said in answer.error
    assert answer.attempts == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 \x00\xff\xfe\x1b[2J\r\n\r\n",
        bytes(range(256)),
        reply(b"{}", b"500 \x1b[2J\x1b]0;owned\x07"),
        reply(b"", b"500 " + b"A" * 60_000),
        reply(b"\x1b[2J" * 100, b"500 x"),
        reply(json.dumps({"error": {"message": "\ud800\x1b[2J"}}).encode(), b"500 x"),
        reply(b'{"error":' * 100_000, b"500 x"),
        reply(b"", b"503 x", b"Retry-After: \x1b\xff nan"),
        reply(b"", b"503 x", b"Retry-After: Thu, 99 Foo 0001 99:99:99 +9999"),
        reply(completion(), b"200 OK", b"X: " + b"A" * 100_000),
        reply(b"no", b"200 OK", b"Content-Encoding: gzip"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"",
    ],
)
def test_nonsense_in_http_is_asked_again_and_told_in_one_line(sent):
    with raw_server(sent) as url:
        (answer,) = ask(plan(url, max_attempts=2), ONE)
    check(answer)
    assert answer.text is None
    assert answer.attempts == 2


@pytest.mark.parametrize(
    "header", [b"Set-Cookie: \x01\x1b[2J;=;a=b; \xff", b"Content-Type: image/png"]
)
def test_headers_say_nothing_about_the_answer(header, capfd):
    with raw_server(reply(completion(), b"200 OK", header)) as url:
        assert ask(url, ONE)[0].text == "chat"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("status", [b"401 \x1b[2J", b"404 x", b"302 x\r\nLocation: \x1b[2J"])
def test_what_ends_a_run_is_one_line_too(status):
    with (
        raw_server(reply(b"\x1b[2J" * 1000, status)) as url,
        pytest.raises(EndpointError) as raised,
    ):
        ask(url, ONE)
    assert is_one_line(str(raised.value))
