"""`maya serve` with OpenAI's client: answers, streams, and refusals with client error codes."""

import base64
import io
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from maya_vlm.training.inference import serve
from maya_vlm.training.inference.generation import Question, answer
from maya_vlm.training.inference.load import load
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

LENGTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def client(folder) -> Iterator[openai.OpenAI]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "maya_vlm.training.cli", "serve", str(folder)]
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        address = f"http://localhost:{port}/v1"
        try:
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as found:
                for _ in range(600):
                    try:
                        found.models.list()
                        break
                    except openai.APIConnectionError:
                        assert server.poll() is None, server.stdout.read().decode()
                        time.sleep(0.2)
                yield found
        finally:
            server.kill()


def data_uri(picture) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def asked(text="what is it", *pictures):
    """Return a user turn about pictures."""
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def ask(client, *messages, **options) -> str:
    reply = client.chat.completions.create(
        model="tiny", messages=list(messages), max_tokens=LENGTH, temperature=0, **options
    )
    return reply.choices[0].message.content


def test_the_model_is_listed_under_its_name(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_answers_are_those_of_this_package(client, folder):
    network, processor = load(str(folder))
    pictures = [tiny_picture(0), tiny_picture(1)]
    questions = [Question((0, "what is it"), LENGTH), Question((1, "what is it"), LENGTH)]
    wanted = answer(network, processor, pictures, questions)
    with ThreadPoolExecutor(4) as pool:
        waiting = [
            pool.submit(ask, client, asked("what is it", data_uri(picture)))
            for picture in pictures * 3
        ]
        assert [one.result().strip() for one in waiting] == [one.text for one in wanted] * 3


def test_a_stream_is_the_answer_in_pieces(client):
    # A random model writes incomplete characters, which a stream leaves out.
    turns = (asked("what is it", data_uri(tiny_picture(seed))) for seed in range(100))
    turn = next(turn for turn in turns if ask(client, turn) and "\ufffd" not in ask(client, turn))
    stream = client.chat.completions.create(
        model="tiny", messages=[turn], max_tokens=LENGTH, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == ask(client, turn)


def test_conversations_that_clients_send(client):
    picture = data_uri(tiny_picture(0))
    system = {"role": "system", "content": "be short"}
    text = {"role": "user", "content": "what is it"}
    reply = {"role": "assistant", "content": "a cat"}
    assert ask(client, text) == ask(client, asked())
    ask(client, asked("which differs", picture, data_uri(tiny_picture(1))))
    ask(client, asked("what is it", picture), reply, text)
    developer = {"role": "developer", "content": "be short"}
    assert ask(client, developer, text) == ask(client, system, text)
    joined = {"role": "system", "content": "be short\n\nbe kind"}
    two = (system, {"role": "system", "content": "be kind"})
    assert ask(client, *two, text) == ask(client, joined, text)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages: expected a list with a turn or more"),
        ([{"role": "tool", "content": "4", "tool_call_id": "a"}], "role: expected one of system"),
        (
            [asked(), {"role": "assistant", "content": "yes"}, {"role": "system", "content": "no"}],
            "at most one system turn, at the start",
        ),
        ([asked(), {"role": "assistant", "content": ""}, asked()], "turn|message"),
        ([{"role": "user", "content": 7}], "content: expected text or a list of parts"),
        (
            [{"role": "user", "content": [{"type": "input_audio"}]}],
            r"content\[0\]: expected a part",
        ),
        ([asked("what", "data:image/png;base64,AAAA")], "not a picture|cannot"),
        ([asked("what", "/etc/hostname")], "file"),
        ([asked("what", "http://127.0.0.1:9/a.png")], "private|127.0.0.1"),
    ],
)
def test_what_the_model_cannot_take_is_the_clients_error(client, messages, match):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=4, stream=stream
            )
        told = error.value.body["message"]
        assert re.search(match, told), told
        assert "\n" not in told
    # The server keeps running.
    assert client.models.list().data


def test_another_model_is_the_clients_error(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="other", messages=[asked()])
    assert "pinned to 'tiny'" in str(error.value.response.text)


def test_a_port_where_nothing_can_listen_is_told_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 99_999):
            with pytest.raises(ValueError, match=rf"--port {port}: cannot listen there .*another"):
                serve.serve("no model", host="127.0.0.1", port=port)


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    import transformers.utils.import_utils as packages

    monkeypatch.setattr(packages, "is_serve_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'maya-vlm\[serve\]'"):
        serve.serve("anything")
