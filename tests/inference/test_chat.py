"""`maya chat`: prompts, streamed answers and refused inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from maya_vlm.training.inference.chat import ANSWER_IN, QUESTIONS, chat, question_in

from ..helpers.tiny_maya import save_tiny_maya, tiny_maya, tiny_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def picture(tmp_path):
    tiny_picture(2).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_streams_what_generate_says(folder, picture, capsys):
    said = chat(str(folder), picture, "यह क्या है?", max_new_tokens=10)
    model, processor = tiny_maya()
    content = [{"type": "image", "image": tiny_picture(2)}, {"type": "text", "text": "यह क्या है?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == expected.strip() != ""
    assert capsys.readouterr().out.strip() == said


def test_without_a_question_it_asks_for_the_name():
    assert question_in(None, None) == "What is this?"
    assert question_in(None, "hi") == "यह क्या है?"


def test_known_questions_are_asked_in_the_language_of_the_answer():
    assert question_in("What is this?", "hi") == "यह क्या है?"
    assert question_in("what is this?", "en") == "What is this?"
    assert question_in("यह क्या है?", "ur") == "یہ کیا ہے؟"
    assert question_in("Is this: rocket?", "fr") == "Est-ce : rocket ?"
    assert question_in("Что это?", None) == "Что это?"


def test_other_questions_ask_for_the_language():
    assert question_in("How many legs has it?", "fr") == (
        "How many legs has it? Réponds en français."
    )


def test_any_language_can_be_asked_for():
    assert question_in(None, "de") == "What is this? Answer in German."
    assert question_in("How many legs?", "pt-BR") == "How many legs? Answer in Portuguese (pt-BR)."
    assert question_in("Why?", "tlh") == "Why? Answer in the language with the code tlh."


def test_further_questions_continue_the_conversation(folder, picture, capsys):
    first = chat(str(folder), picture, "What is this?", max_new_tokens=6)
    said = chat(
        str(folder), picture, "What is this?", max_new_tokens=6, further=["", "Which colour?\n"]
    )
    model, processor = tiny_maya()
    turns = [
        {"role": "user", "content": [{"type": "image", "image": tiny_picture(2)}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Which colour?"},
    ]
    turns[0]["content"].append({"type": "text", "text": "What is this?"})
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == expected.strip()
    assert capsys.readouterr().out.split() == f"{first} {first} {said}".split()


def test_every_language_of_the_questions_can_be_asked_for():
    import json

    assert set(json.loads(QUESTIONS.read_text(encoding="utf-8"))) == set(ANSWER_IN)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"language": "english"},
            ValueError,
            "expected a language's BCP-47 code, such as en or pt-BR, found 'english'",
        ),
        ({"language": "h\ni"}, ValueError, "expected a language's BCP-47 code"),
        ({"question": "what \udcff"}, ValueError, r"half of a surrogate pair \(U\+DCFF\)"),
        ({"question": "  "}, ValueError, "question is empty"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"image": "nowhere.png"}, FileNotFoundError, "nowhere"),
        ({"model": "/no/such/model"}, FileNotFoundError, "no model at"),
    ],
)
def test_refuses_bad_input_in_one_line(folder, picture, arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        chat(**{"model": str(folder), "image": picture, **arguments})
    assert "\n" not in str(caught.value)


def test_a_picture_that_the_processor_does_not_take_is_named(folder, tmp_path):
    path = tmp_path / "long.png"
    Image.new("RGB", (20000, 1)).save(path)
    with pytest.raises(ValueError, match=r"long\.png: Cannot pad a picture of 20000x1 pixels"):
        chat(str(folder), str(path), "What?")


def test_refuses_a_broken_picture(folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(ValueError, match=r"broken\.png"):
        chat(str(folder), str(broken))


def test_a_command_prints_its_answer_and_no_librarys_words(folder, picture):
    maya = Path(sys.executable).with_name("maya")
    command = [str(maya), "chat", picture, "What is this?", "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip()


def test_a_picture_of_a_local_server_needs_leave(folder, picture, monkeypatch, capsys):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    place = Path(picture)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=place.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{place.name}"
        with pytest.raises(ValueError, match=r"private or local address .*--allow-private"):
            chat(str(folder), address, max_new_tokens=2)
        said = chat(str(folder), address, max_new_tokens=2, allow_private=True)
        server.shutdown()
    assert said == chat(str(folder), picture, max_new_tokens=2)
    capsys.readouterr()
