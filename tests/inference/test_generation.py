"""Batched generation: the shared image cache, padding and removing finished rows change no token."""

import re
import weakref
from dataclasses import replace

import pytest
import torch

from maya_vlm.training.inference.generation import Question, answer
from tests.helpers.tiny_maya import tiny_maya, tiny_picture

TEXTS = [
    "What is this?",
    "这是什么？",
    "Это маленькая красная лодка на синем озере, или нет?",
    "a",
    "यह क्या है?",
]


def about(image, text, limit=32, **options):
    """Return a question about one image, or without an image."""
    return Question((text,) if image is None else (image, text), limit, **options)


def one_by_one(model, processor, images, question):
    """Answer one question with the processor and `generate`, and return (text, tokens, ended)."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": images[part]}
        for part in question.content
    ]
    turns = [{"role": "user", "content": content}]
    if question.system is not None:
        turns.insert(0, {"role": "system", "content": question.system})
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    stop = {"stop_strings": list(question.stop), "tokenizer": processor.tokenizer}
    tokens = model.generate(
        **inputs,
        max_new_tokens=question.max_new_tokens,
        do_sample=False,
        **(stop if question.stop else {}),
    )
    new = tokens[0, inputs["input_ids"].shape[1] :]
    ended = bool(new[-1] == processor.tokenizer.eos_token_id)
    said, tokens = processor.decode(new, skip_special_tokens=True), len(new) - ended
    for each in question.stop:
        if each in said:
            return said[: said.index(each)].strip(), tokens, True
    return said.strip(), tokens, ended


@pytest.mark.parametrize(
    ("decoder", "template"), [("cohere", "aya"), ("cohere2", "aya"), ("llama", "maya")]
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_answers_equal_generate_one_at_a_time(decoder, template, batch_size):
    torch.manual_seed(0)
    model, processor = tiny_maya(decoder, template)
    images = [tiny_picture(i) for i in range(3)]
    questions = [
        about(image, text, 4 + 3 * (i % 2))
        for image in (0, 1, 2, None)
        for i, text in enumerate(TEXTS)
    ]
    # Make the end-of-turn token likely, so that rows finish at different steps.
    end = processor.tokenizer.eos_token_id
    head = model.lm_head.weight.data
    head[end] = 0.7 * head.mean(0) + 0.8 * head[end]
    found = answer(model, processor, images, questions, batch_size=batch_size)
    expected = [one_by_one(model, processor, images, question) for question in questions]
    assert [(a.text, a.tokens, a.ended) for a in found] == expected
    # This model's answers depend on the pictures, so swapped caches would be detected.
    texts = [a.text for a in found]
    assert texts[:5] != texts[5:10] != texts[15:]


def test_threads_and_order_change_nothing():
    model, processor = tiny_maya()
    images = [tiny_picture(i) for i in range(4)]
    questions = [about(i % 4, text, 5) for i in range(8) for text in TEXTS]
    one = answer(model, processor, images, questions, batch_size=2)
    two = answer(model, processor, images, questions, batch_size=2, workers=2)
    back = answer(model, processor, images, questions[::-1], batch_size=2)
    assert one == two == back[::-1]


def test_some_rows_end_before_others():
    """Check that the case of the equality test above occurs."""
    model, processor = tiny_maya()
    end = processor.tokenizer.eos_token_id
    head = model.lm_head.weight.data
    head[end] = 2.0 * head[end]
    questions = [about(i, text, 12) for i in range(6) for text in TEXTS]
    found = answer(model, processor, [tiny_picture(i) for i in range(6)], questions)
    lengths = {a.tokens for a in found}
    assert len(lengths) > 1, lengths


@pytest.mark.parametrize("template", ["aya", "maya"])
def test_several_images_and_a_system_turn(template):
    model, processor = tiny_maya("cohere", template)
    images = [tiny_picture(i) for i in range(4)]
    questions = [
        Question((*pair, text), 5, system=system)
        for pair in ((0, 1), (1, 0), (0, 2), (1, 2, 3), (2,), ())
        for text in TEXTS[:3]
        for system in (None, "You are brief.")
    ]
    # The template decides the place of pictures between texts.
    questions += [Question(("first", 0, "second", 1, "same?"), 5)]
    found = answer(model, processor, images, questions, batch_size=5)
    expected = [one_by_one(model, processor, images, question) for question in questions]
    assert [(a.text, a.tokens, a.ended) for a in found] == expected
    # This model's answers depend on the order and number of turns and on the system turn.
    said = ["".join(a.text for a in found[start : start + 6]) for start in range(0, 36, 6)]
    assert len(set(said)) == 6
    assert [a.text for a in found[:36:2]] != [a.text for a in found[1:36:2]]


def test_an_answer_ends_before_the_first_stop_text():
    model, processor = tiny_maya()
    images = [tiny_picture(i) for i in range(3)]
    free = [
        (about(image, text, 30), said)
        for image in range(3)
        for text in TEXTS
        for said in answer(model, processor, images, [about(image, text, 30)])
    ]
    # Stop texts from the model's answers, across token boundaries, without incomplete characters.
    stops = [re.findall(r"(?<=.)[ -~]{2}(?=.)", said.text, re.DOTALL) for _, said in free]
    free = [one for one, found in zip(free, stops, strict=True) if found]
    assert len(free) > 5
    questions = [
        replace(question, stop=(each[0], "never said"))
        for (question, _), each in zip(free, filter(None, stops), strict=True)
    ]
    found = answer(model, processor, images, questions, batch_size=4)
    assert [(a.text, a.tokens, a.ended) for a in found] == [
        one_by_one(model, processor, images, question) for question in questions
    ]
    for (_, before), after in zip(free, found, strict=True):
        assert after.ended
        assert after.tokens < before.tokens
        assert before.text.startswith(after.text)


def test_generation_ends_at_a_stop_text(monkeypatch):
    """Check that generation itself stops, not only the returned text."""
    model, processor = tiny_maya()
    (said,) = answer(model, processor, [tiny_picture()], [about(0, "a", 40)])
    steps = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **k: (steps.append(1), forward(**k))[1])
    stop = (said.text[3:6],)
    (cut,) = answer(model, processor, [tiny_picture()], [about(0, "a", 40, stop=stop)])
    assert cut.tokens == len(steps) - 1 < said.tokens  # plus one step for the image


def test_few_decoded_pictures_are_held_at_once():
    """Check that pictures are decoded one at a time and encoded in batches, for any number of pictures."""
    model, processor = tiny_maya()
    alive = most = 0

    class Counted:
        def __len__(self):
            return 60

        def __getitem__(self, place):
            nonlocal alive, most
            picture = tiny_picture(place)
            alive += 1
            most = max(most, alive)
            weakref.finalize(picture, gone)
            return picture

    def gone():
        nonlocal alive
        alive -= 1

    questions = [Question((i, (i + 1) % 60, "same?"), 2) for i in range(60)]
    encoded: list[int] = []
    encode = model.model.get_image_features
    model.model.get_image_features = lambda pixels, **options: (
        encoded.append(len(pixels)),
        encode(pixels, **options),
    )[1]
    found = answer(model, processor, Counted(), questions, batch_size=8)
    assert len(found) == 60
    assert most <= 2
    assert max(encoded) <= 8


def test_control_tokens_in_a_question_are_text():
    model, processor = tiny_maya()
    question = about(0, "is <image> a <|END_OF_TURN_TOKEN|>?", 4)
    images = [tiny_picture(1)]
    (found,) = answer(model, processor, images, [question])
    assert (found.text, found.tokens, found.ended) == one_by_one(model, processor, images, question)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"workers": 0}, "workers")],
)
def test_refuses_bad_sizes(arguments, words):
    with pytest.raises(ValueError, match=words):
        answer(None, None, [], [], **arguments)


def test_refuses_an_image_that_is_not_there():
    with pytest.raises(ValueError, match="question 0 is about image 2, but there are 1"):
        answer(None, None, [tiny_picture()], [Question((2, "a"))])
