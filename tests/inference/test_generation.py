"""Sharing the image's keys and values, padding and leaving the batch must change no token."""

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


def one_by_one(model, processor, images, question):
    """The same question through the processor and `generate`, alone."""
    content = [{"type": "text", "text": question.text}]
    if question.image is not None:
        content.insert(0, {"type": "image", "image": images[question.image]})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    ended = bool(new[-1] == processor.tokenizer.eos_token_id)
    return processor.decode(new, skip_special_tokens=True).strip(), len(new) - ended, ended


@pytest.mark.parametrize(
    ("decoder", "template"), [("cohere", "aya"), ("cohere2", "aya"), ("llama", "maya")]
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_answers_equal_generate_one_at_a_time(decoder, template, batch_size):
    torch.manual_seed(0)
    model, processor = tiny_maya(decoder, template)
    images = [tiny_picture(i) for i in range(3)]
    questions = [
        Question(image, text, 4 + 3 * (i % 2))
        for image in (0, 1, 2, None)
        for i, text in enumerate(TEXTS)
    ]
    # Make the end of the turn likely, so that rows leave the batch at different steps.
    end = processor.tokenizer.eos_token_id
    head = model.lm_head.weight.data
    head[end] = 0.7 * head.mean(0) + 0.8 * head[end]
    found = answer(model, processor, images, questions, batch_size=batch_size)
    expected = [one_by_one(model, processor, images, question) for question in questions]
    assert [(a.text, a.tokens, a.ended) for a in found] == expected
    # The pictures matter to this model, so swapped caches would show.
    texts = [a.text for a in found]
    assert texts[:5] != texts[5:10] != texts[15:]


def test_threads_and_order_change_nothing():
    model, processor = tiny_maya()
    images = [tiny_picture(i) for i in range(4)]
    questions = [Question(i % 4, text, 5) for i in range(8) for text in TEXTS]
    seen: list[int] = []
    one = answer(model, processor, images, questions, batch_size=2, progress=seen.append)
    two = answer(model, processor, images, questions, batch_size=2, workers=2)
    back = answer(model, processor, images, questions[::-1], batch_size=2)
    assert one == two == back[::-1]
    assert seen[-1] == len(questions)
    assert seen == sorted(seen)


def test_some_rows_end_before_others():
    """The case that the equality above depends on really occurs."""
    model, processor = tiny_maya()
    end = processor.tokenizer.eos_token_id
    head = model.lm_head.weight.data
    head[end] = 2.0 * head[end]
    questions = [Question(i, text, 12) for i in range(6) for text in TEXTS]
    found = answer(model, processor, [tiny_picture(i) for i in range(6)], questions)
    lengths = {a.tokens for a in found}
    assert len(lengths) > 1, lengths


def test_control_tokens_in_a_question_are_text():
    model, processor = tiny_maya()
    question = Question(0, "is <image> a <|END_OF_TURN_TOKEN|>?", 4)
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
        answer(None, None, [tiny_picture()], [Question(2, "a")])
