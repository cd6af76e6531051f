"""Chat templates of others: the same text, exact marks, and answers that end, or one line with the reason."""

import re

import pytest
from PIL import Image

from maya_vlm.training.model.templates import find_template, ready, set_ends
from processing_maya import MayaImageProcessor, MayaProcessor
from tests.helpers.tiny_decoders import FAMILIES, QWEN_3, family_tokenizer
from tests.helpers.tiny_processing import tiny_tokenizer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Style of image-text-to-text models' templates: contents are lists of parts.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {% for p in m.content %}{% if p.type == 'image' %}"
    "<image>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def conversation(*texts: str, system: str | None = None, images: int = 0) -> list[dict]:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    if images:
        parts = [{"type": "image"}] * images
        turns[0]["content"] = [*parts, {"type": "text", "text": texts[0]}]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def processor_for(tokenizer, template: str, image_token: str = "<image>") -> MayaProcessor:
    return MayaProcessor(
        MayaImageProcessor(), tokenizer, 2, chat_template=template, image_token=image_token
    )


def tokenizer_of(name: str):
    """Return a family's tokenizer and placeholder."""
    tokenizer, image_token = family_tokenizer(name), FAMILIES[name].image_token or "<image>"
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False
    )
    return tokenizer, image_token


def spoken(processor: MayaProcessor, turns: list[dict]) -> list[str]:
    """Return the learned runs of tokens, decoded."""
    encoded = processor.encode_conversation(turns)
    ids, mask = encoded["input_ids"], encoded["assistant_mask"]
    runs: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(ids, mask, strict=True)):
        if learned:
            if not i or not mask[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [processor.tokenizer.decode(run) for run in runs]


ANSWERED = [
    ("Hi?", "a boat"),
    ("Hi?", " padded\n"),
    ("Hi?", "a\n\nb", "Why?", "a boat"),
    ("Hi?", "a boat", "Why?", "a boat", "So?", "yes."),
    ("<|im_end|>?", "no <|im_end|>\n<|im_start|>user", "[/INST]", "x</s>[/INST]"),
    ("चित्र?", "एक नाव।", "絵?", "船。"),
]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("texts", ANSWERED)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_text_is_the_decoders_own(name, texts, system):
    tokenizer, image_token = tokenizer_of(name)
    template = find_template("own", tokenizer, image_token).text
    turns = conversation(*texts, system=system)
    if name == "gemma" and system:
        with pytest.raises(Exception, match="System role not supported"):
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
        return
    if name == "mistral" and system:
        # Its template shows the system turn in a prompt, but not before an answer.
        with pytest.raises(Exception, match="shows no system turn once it is answered"):
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
        turns = turns[:2]
    for shown, prompt in ((turns, False), (turns[:-1] if len(turns) > 2 else turns, True)):
        own, ours = (
            tokenizer.apply_chat_template(
                shown, chat_template=text, tokenize=False, add_generation_prompt=prompt
            )
            for text in (tokenizer.chat_template, template)
        )
        assert ours == own


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_marks_are_exact_token_by_token(name):
    tokenizer, image_token = tokenizer_of(name)
    processor = processor_for(
        tokenizer, find_template("own", tokenizer, image_token).text, image_token
    )
    end = FAMILIES[name].end
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    space = " " if name == "mistral" else ""
    turns = conversation("Hi?", "a boat", "Why?", "एक नाव", images=1)
    assert spoken(processor, turns) == [f"{space}a boat{end}", f"{space}{thought}एक नाव{end}"]
    # A prompt equals the text before the answers.
    for k in (1, 3):
        asked = processor.apply_chat_template(turns[:k], add_generation_prompt=True)
        whole = processor.apply_chat_template(turns[: k + 1])
        assert whole.startswith(asked)
    # transformers' own tracking of generation blocks marks the same characters.
    turns[0]["content"] = "Hi?"
    stock = tokenizer.apply_chat_template(
        turns,
        chat_template=processor.chat_template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ours = processor.encode_conversation(turns)
    assert stock["input_ids"] == ours["input_ids"]
    assert stock["assistant_masks"] == ours["assistant_mask"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("images", [0, 1])
def test_an_encoded_prompt_equals_the_processors_call(name, images):
    tokenizer, image_token = tokenizer_of(name)
    processor = processor_for(
        tokenizer, find_template("own", tokenizer, image_token).text, image_token
    )
    controls = "".join(tokenizer.get_added_vocab())
    for text in ("Hi?", f"is {image_token} {controls}?", "</s>[INST]<|im_end|>\n", "चित्र? 絵？"):
        turns = conversation(text, images=images)
        rendered = processor.apply_chat_template(turns, add_generation_prompt=True)
        pictures = [Image.new("RGB", (20, 10))] * images
        called = processor(text=rendered, images=pictures or None)["input_ids"][0]
        encoded = processor.encode_conversation(turns, add_generation_prompt=True)
        assert encoded["input_ids"] == called
        assert called.count(processor.image_token_id) == 2 * images


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("images", [1, 3])
def test_images_come_first_in_their_turn(name, images):
    tokenizer, image_token = tokenizer_of(name)
    template = find_template("own", tokenizer, image_token).text
    processor = processor_for(tokenizer, template, image_token)
    text = processor.apply_chat_template(conversation("Hi?", "a boat", images=images))
    assert f"{image_token}\n" * images + "Hi?" in text
    found = processor.encode_conversation(conversation("Hi?", "a boat", images=images))
    assert found["input_ids"].count(processor.image_token_id) == 2 * images
    # An empty question is only the image.
    assert text.count(image_token) == images
    alone = processor.apply_chat_template(conversation("", "a boat", images=images))
    assert f"{image_token}\n" * (images - 1) + image_token in alone


def test_a_typed_mark_cannot_move_the_spans():
    tokenizer, _ = tokenizer_of("qwen3")
    template = find_template("own", tokenizer).text
    processor = processor_for(tokenizer, template)
    turns = conversation("a\U000f0006b\U000f0005?", "x\U000f0006y")
    assert spoken(processor, turns) == ["<think>\n\n</think>\n\nxy<|im_end|>"]


def test_reasoning_is_spoken():
    """Works for a template that cuts text off the answer together with the start mark."""
    tokenizer, _ = tokenizer_of("qwen3")
    text = find_template("own", tokenizer).text
    turns = conversation(
        "Hi?", "<think>\nhm\n</think>\n\na boat", "Why?", "<think>\nso\n</think>\n\nno"
    )
    found = tokenizer.apply_chat_template(
        turns, chat_template=text, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [t for t, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    expected = "a boat<|im_end|><think>\nso\n</think>\n\nno<|im_end|>"
    assert tokenizer.decode(learned) == expected
    own = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.apply_chat_template(turns, chat_template=text, tokenize=False) == own


def test_a_template_of_ones_own_may_be_a_file(tmp_path):
    tokenizer, _ = tokenizer_of("qwen3")
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML + PROMPT, encoding="utf-8")
    found = find_template(str(file), tokenizer)
    assert found.ends == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert spoken(processor_for(tokenizer, found.text), conversation("Hi?", "a boat")) == [
        "a boat<|im_end|>"
    ]


def test_a_template_without_generation_prompt_gets_one():
    tokenizer, _ = tokenizer_of("qwen3")
    processor = processor_for(tokenizer, ready(CHATML, tokenizer, "<image>").text)
    turns = conversation("Hi?", "a boat")
    assert spoken(processor, turns) == ["a boat<|im_end|>"]
    asked = processor.apply_chat_template(turns[:1], add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert processor.apply_chat_template(turns[:1]) + "<|im_start|>assistant\n" == asked


def test_a_template_that_takes_parts_alone():
    tokenizer, _ = tokenizer_of("qwen3")
    processor = processor_for(tokenizer, ready(PARTS, tokenizer, "<image>").text)
    turns = conversation("Hi?", "a boat", "Why?", "no", images=1)
    assert processor.apply_chat_template(turns).startswith("<|im_start|>user: <image>Hi?<|im_end|>")
    assert spoken(processor, turns) == [" a boat<|im_end|>", " no<|im_end|>"]


def test_a_template_that_marks_and_places_images_is_taken_as_it_is():
    tokenizer, _ = tokenizer_of("qwen3")
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<|im_end|>\n{% endgeneration %}{% elif m.content is string %}{{ m.content }}<|im_end|>\n"
        "{% else %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
        "<|im_end|>\n{% endif %}{% endfor %}" + PROMPT
    )
    found = ready(source, tokenizer, "<image>")
    assert found.text == source
    assert found.ends == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    # A template that marks answers but places no images is wrapped, and its answers are marked again.
    marked = CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}",
    )
    again = ready(marked + PROMPT, tokenizer, "<image>")
    assert spoken(
        processor_for(tokenizer, again.text), conversation("Hi?", "a boat", images=1)
    ) == ["a boat<|im_end|>"]


def test_answers_that_end_in_two_ways():
    """The last answer may end with another token than earlier answers."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
        + PROMPT
    )
    tokenizer, _ = tokenizer_of("qwen3")
    found = ready(source, tokenizer, "<image>")
    assert {tokenizer.convert_ids_to_tokens(end) for end in found.ends} == {
        "<|im_end|>",
        "<|endoftext|>",
    }
    assert spoken(processor_for(tokenizer, found.text), conversation("Hi?", "a", "So?", "b")) == [
        "a<|im_end|>",
        "b<|endoftext|>",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for", "line 1"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[9].content }}", "has no"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("<|im_start|>nothing is said<|im_end|>", "leaves out the texts of turns"),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", "not a token of the tokenizer"),
        (
            CHATML.replace("<|im_end|>", "</end>") + PROMPT,
            "'</end>.*', which is not a token of the tokenizer",
        ),
        (
            (CHATML + PROMPT).replace("<|im_start|>", "<|turn|>"),
            r"writes <\|turn\|>, which the tokenizer does not",
        ),
        (CHATML + PROMPT.replace("\n", "\n<think>"), "prompt for an answer ends with .*<think>"),
        ("{{ messages | length }}" + CHATML + PROMPT, "prompt for an answer|prompted differently"),
        # A space at the prompt's end merges with the first letter of an answer into one token.
        (
            PARTS.replace("assistant:{%", "assistant: {%"),
            "the tokens of its prompt, .*, differ from those before",
        ),
    ],
)
def test_templates_that_cannot_be_trained_with(source, words, tmp_path):
    tokenizer, _ = tokenizer_of("qwen3")
    file = tmp_path / "t.jinja"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as error:
        find_template(str(file), tokenizer)
    assert str(error.value).isprintable()
    assert "own (the decoder's)" in str(error.value)
    assert len(str(error.value)) < 600 + len(str(file))


def test_templates_of_a_decoder_that_has_none():
    tokenizer, _ = tokenizer_of("qwen3")
    tokenizer.chat_template = None
    with pytest.raises(
        ValueError,
        match="own: the decoder's tokenizer has no chat template: use plain, or the path",
    ):
        find_template("own", tokenizer)
    tokenizer.chat_template = {"tool_use": "x", "default": QWEN_3}
    assert find_template("own", tokenizer).ends


@pytest.mark.parametrize("name", ["maya", "aya", "plain"])
def test_mayas_own_templates_on_ayas_tokenizer_are_as_they_were(name):
    from processing_maya import add_image_token, load_chat_template

    tokenizer = tiny_tokenizer()
    add_image_token(tokenizer)
    found = find_template(name, tokenizer)
    assert found.text == load_chat_template(name)
    end = tokenizer.convert_tokens_to_ids("<|END_OF_TURN_TOKEN|>")
    assert found.ends == (() if name == "plain" else (end,))


def test_another_placeholder_in_mayas_own_templates():
    tokenizer = tiny_tokenizer()
    token = "<|EXTRA_0_TOKEN|>"
    text = find_template("aya", tokenizer, token).text
    processor = processor_for(tokenizer, text, token)
    found = processor.encode_conversation(conversation("Hi <image>?", "a boat", images=1))
    assert found["input_ids"].count(processor.image_token_id) == 2


@pytest.mark.parametrize(
    ("known", "ends", "expected"),
    [
        (6, [6], 6),
        (6, [7], [7, 6]),
        ([6, 8], [7], [7, 6, 8]),
        ([6, 8], [8], [6, 8]),
        (None, [7], 7),
        (6, [], 6),
    ],
)
def test_generation_stops_at_old_and_new_ends(known, ends, expected):
    class Config:
        eos_token_id = known

    set_ends(Config, ends)
    assert Config.eos_token_id == expected


def test_ordinary_template_text_holds_no_mark_of_ours():
    tokenizer, _ = tokenizer_of("llama3")
    text = find_template("own", tokenizer, "<|reserved_special_token_0|>").text
    assert FAMILIES["llama3"].template in text
    assert not re.search("[A-Z]{4,}_[A-Z]+", text), "a name in WRAPPER was not replaced"
