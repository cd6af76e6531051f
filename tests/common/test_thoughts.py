"""Thoughts and template tokens in answers of models."""

import pytest

from maya_vlm.training.common.thoughts import foreign_marks, without_thought
from maya_vlm.training.data.translation.prompts import read_prompt, translategemma_prompt

THOUGHT = "The answer goes between 〘 and 〙, so 〘...〙."


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("un chat", "un chat"),
        ("<think>hm</think>un chat", "un chat"),
        ("\n <THINK>\na </think> b</think>\nun chat", "\nun chat"),
        ("hm, the template has begun it</think>\n\nun chat", "\n\nun chat"),
        ("<thinking>hm</thinking>un chat", "un chat"),
        ("<|START_THINKING|>hm<|END_THINKING|>un chat", "un chat"),
        ("[THINK]hm[/THINK]un chat", "un chat"),
        ("◁think▷hm◁/think▷un chat", "un chat"),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>un chat", "un chat"),
        ("<think>and so on and so", None),
        ("<think>", None),
        ("un chat <think> noir", "un chat <think> noir"),
        ("", ""),
    ],
)
def test_a_leading_thought_is_cut_off(answer, left):
    assert without_thought(answer) == left


def test_marks_of_the_source_are_its_own():
    assert without_thought("ferme par </think> ici", "close with </think> here").startswith("ferme")


@pytest.mark.parametrize("thought", ["plain", THOUGHT, "〙〘", "〘a〙 or 〘b〙"])
def test_brackets_in_a_thought_are_not_the_answers(thought):
    prompt = read_prompt("rules", "en", "fr", ("〘", "〙"))
    assert prompt.unwrap(f"<think>{thought}</think>\n〘un chat〙", "a cat") == "un chat"
    assert prompt.unwrap(f"{thought}</think>〘un chat〙.", "a cat") == "un chat"
    assert prompt.unwrap(f"<think>{thought}", "a cat") is None
    bare = translategemma_prompt("en", "fr")
    assert bare.unwrap(f"<think>{thought}</think> un chat ") == "un chat"
    assert bare.unwrap(f"<think>{thought}") is None


@pytest.mark.parametrize(
    "mark",
    ["</im_end/>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<START_OF_TURN>", "</s>", "<s>",
     "<eos>", "<pad>", "[/INST]", "<<SYS>>", "<｜end▁of▁sentence｜>", "<|eot", "<think>", "</think>"],
)  # fmt: skip
def test_tokens_of_templates(mark):
    found = foreign_marks(f"un chat noir{mark}", "a black cat")
    assert (found is None) == (mark == "<|eot")
    assert foreign_marks(f"le signe {mark}", f"the mark {mark}") is None


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\x07", "\x9b", "\x7f"])
def test_control_characters(letter):
    assert foreign_marks(f"un{letter}chat", "a cat") == f"U+{ord(letter):04X}"
    assert foreign_marks(f"un{letter}chat", f"a{letter}cat") is None


def test_ordinary_texts_have_none():
    for text in (
        "un chat",
        "1 < 2 et 3 > 2",
        "a\tb\nc",
        "<b>gras</b>",
        "[note]",
        "f(x) = <x>",
        "a|b",
    ):
        assert foreign_marks(text, "") is None
