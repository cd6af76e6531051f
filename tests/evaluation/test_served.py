"""`maya evaluate --endpoint`: a model behind a real HTTP server is asked like a model in this process."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from maya_vlm.training import cli
from maya_vlm.training.common.endpoint import EndpointError, EndpointPlan
from maya_vlm.training.evaluation.protocol import Picture, Request
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.served import Served
from maya_vlm.training.inference.generation import Answer, Question, answer
from maya_vlm.training.inference.load import load
from tests.evaluation.answers import Colours
from tests.helpers.tiny_maya import save_tiny_maya

pytest.importorskip("datasets")

OPTIONS = {"limit": 3, "baseline_items": 2, "languages": ["en", "hi"], "sheet": False}


class Server:
    """The requests and replies of a served model; `refuse` returns a request's error status, or None to answer it."""

    def __init__(self, say):
        self.say, self.refuse = say, lambda body: None
        self.bodies = []
        self.in_flight = self.most = 0
        self.lock = threading.Lock()


@contextmanager
def serving(say):
    """Start an OpenAI-compatible server in a thread; yield its address and its record of requests."""
    state = Server(say)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.in_flight += 1
                state.most = max(state.most, state.in_flight)
            status = state.refuse(body)
            if status is None:
                with state.lock:
                    state.bodies.append(body)
                    said = state.say(body)
                choice = {
                    "message": {"role": "assistant", "content": said.text},
                    "finish_reason": "stop" if said.ended else "length",
                }
                usage = {} if said.tokens is None else {"completion_tokens": said.tokens}
                content = {"choices": [choice], "usage": usage, "model": body["model"]}
            else:
                content = {"error": {"message": "refused"}}
            data = json.dumps(content).encode()
            self.send_response(status or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with state.lock:
                state.in_flight -= 1
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def picture_of(part):
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def maya(folder):
    """Return a function that answers a request's body as the tiny Maya does."""
    network, processor = load(str(folder))

    def say(body):
        assert body["temperature"] == 0
        (turn,) = body["messages"]
        images, content = [], []
        for part in turn["content"]:
            if part["type"] == "image_url":
                content.append(len(images))
                images.append(picture_of(part))
            else:
                content.append(part["text"])
        return answer(network, processor, images, [Question(tuple(content), body["max_tokens"])])[0]

    return say


def test_a_served_maya_has_the_scores_of_one_of_this_process(folder, maya, tmp_path, capsys):
    here = evaluate(str(folder), output=tmp_path / "here", **OPTIONS)
    with serving(maya) as (url, server):
        plan = EndpointPlan(url, "tiny-maya", concurrency=4)
        there = evaluate("tiny-maya", output=tmp_path / "there", endpoint=plan, **OPTIONS)
        assert there["rows"] == here["rows"]
        asked = len(server.bodies)
        assert 1 < server.most <= 4
        assert {body["model"] for body in server.bodies} == {"tiny-maya"}
        # A second evaluation asks nothing again.
        evaluate("tiny-maya", output=tmp_path / "there", endpoint=plan, **OPTIONS)
        assert len(server.bodies) == asked
    info = read_results(tmp_path / "there" / "results.json")["model"]
    assert info.pop("name") == "tiny-maya"
    assert set(info.values()) == {None}
    text = (tmp_path / "there" / "results.json").read_text()
    assert "127.0.0.1" not in text
    assert there["tasks"]["mini"]["settings"]["concurrency"] == 4


def test_the_command(maya, tmp_path, capsys):
    with serving(maya) as (url, server):
        command = f"evaluate tiny --endpoint {url} --limit 2 --languages en,fr --no-baselines"
        assert cli.main([*command.split(), "--output", str(tmp_path), "--concurrency", "2"]) == 0
        assert server.most <= 2
    assert read_results(tmp_path / "results.json")["tasks"]["mini"]["languages"] == ["en", "fr"]


def test_what_a_request_holds_is_sent():
    """A request holds turns, pictures in order, token limit and stop texts; each answer goes to its request."""
    about = {"language": "en", "max_new_tokens": 7, "item": "a"}
    requests = [
        Request(
            id="a",
            content=(Picture("red"), "and", Picture("blue"), "same?"),
            system="You are brief.",
            stop=("\n", "###"),
            **about,
        ),
        Request(id="b", content=("What?",), **about),
    ]
    with serving(lambda body: Answer(f" {len(body['messages'])} ", None, False)) as (url, server):
        found = {}
        Served(EndpointPlan(url, "m")).ask(requests, Colours(), found.__setitem__)
    assert found == {0: Answer("2", None, False), 1: Answer("1", None, False)}
    first, second = sorted(server.bodies, key=lambda body: -len(body["messages"]))
    assert first["stop"] == ["\n", "###"]
    assert first["max_tokens"] == 7
    assert first["messages"][0] == {"role": "system", "content": "You are brief."}
    parts = first["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text", "image_url", "text"]
    assert [picture_of(parts[place]).getpixel((0, 0)) for place in (0, 2)] == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert "stop" not in second
    assert second["messages"] == [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]


def test_requests_without_an_answer_leave_partial_results(maya, tmp_path, capsys):
    """Unanswered requests do not count as wrong: they are counted separately, and the same command asks them again."""
    with serving(maya) as (url, server):
        refused = []

        def refuse(body):
            text = body["messages"][0]["content"][-1]["text"]
            if len(server.bodies) > 5 and not refused:
                refused.append(text)
            return 400 if text in refused else None

        server.refuse = refuse
        plan = EndpointPlan(url, "tiny", concurrency=1)
        with pytest.raises(OSError, match=r"of 24 requests got no answer, the first '.*HTTP 400"):
            evaluate("tiny", output=tmp_path, endpoint=plan, baselines=(), **OPTIONS)
        info = read_results(tmp_path / "results.json")["tasks"]["mini"]
        partial = info["settings"]["partial"]
        assert partial["of"] > partial["answered"] == len(server.bodies)
        assert "partial" in info["title"]
        server.refuse = lambda body: None
        again = evaluate("tiny", output=tmp_path, endpoint=plan, baselines=(), **OPTIONS)
        assert len(server.bodies) == partial["of"]
        assert "partial" not in again["tasks"]["mini"]["settings"]


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    plan = EndpointPlan("http://127.0.0.1:9/v1", "m", max_attempts=1)
    with pytest.raises(EndpointError, match="no connection in 1 attempts") as error:
        evaluate("m", output=tmp_path, endpoint=plan, **OPTIONS)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results.json").exists()


def test_a_server_that_knows_no_such_model_is_one_line(tmp_path):
    with serving(None) as (url, server):
        server.refuse = lambda body: 404
        with pytest.raises(EndpointError, match="does not know the model"):
            evaluate("m", output=tmp_path, endpoint=EndpointPlan(url, "m"), **OPTIONS)
