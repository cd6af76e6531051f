"""`noise`: a stated share of texts is wrong on purpose, the rest and the images stay as they are."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.noise import answers_from, with_answers
from maya_vlm.training.recipe import DataRecipe, NoiseRecipe

LANGUAGES = ("en", "fr", "hi")
IMAGES = 200


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two captions of each image and language; a caption says of which image, language and task it is."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(IMAGES):
        name = f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / name)
        for language in LANGUAGES:
            for task in ("long", "short"):
                turns = [
                    {"role": "user", "content": f"ask {number} {language} {task}"},
                    {"role": "assistant", "content": f"{number} {language} {task}"},
                ]
                rows.append({"image": name, "lang": language, "task": task, "messages": turns})
    rows.append({"lang": "en", "task": "long", "messages": [*turns[:1], turns[1]]})
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def answers(data):
    """Return for every conversation with an image (its own image, language and task), (those of its answer)."""
    found = []
    for index in range(len(data)):
        one = data.conversation(index)
        question, answer = (turn["content"].split() for turn in one.messages)
        if one.images:
            own = question[1:]
            picture = data.load_image(one.source, one.images[0], one.id).getpixel((0, 0))
            assert own == [str(picture[0]), one.language, one.task]
            found.append((own, answer))
    return found


@pytest.mark.parametrize(("kind", "differs"), [("swapped", 0), ("wrong_language", 1)])
def test_the_stated_share_of_answers_is_wrong_in_one_way(path, kind, differs):
    data = GroupData([DataRecipe(path, noise=NoiseRecipe(**{kind: 0.3}))])
    pairs = answers(data)
    wrong = [(own, answer) for own, answer in pairs if own != answer]
    for own, answer in wrong:
        assert [number for number in range(3) if own[number] != answer[number]] == [differs]
    assert abs(len(wrong) / len(pairs) - 0.3) < 0.04
    (line,) = data.report
    assert f"noise: of {len(data):,} texts replaced: " in line
    assert f"{kind} {len(wrong):,}" in line


def test_all_texts_can_be_wrong_and_both_kinds_together(path):
    pairs = answers(GroupData([DataRecipe(path, noise=NoiseRecipe(0.5, 0.5))]))
    kinds = Counter(tuple(a != b for a, b in zip(*pair, strict=True)) for pair in pairs)
    assert set(kinds) == {(True, False, False), (False, True, False)}


def test_the_choice_depends_on_the_seed_only_and_a_larger_share_contains_a_smaller_one():
    def replaced(share, seed):
        images = np.repeat(np.arange(50), 2)
        chosen, _ = answers_from(NoiseRecipe(share), images, ["en"] * 100, ["a"] * 100, seed)
        return set(np.flatnonzero(chosen != np.arange(100)).tolist())

    assert replaced(0.2, 1) == replaced(0.2, 1) != replaced(0.2, 2)
    assert replaced(0.2, 1) < replaced(0.6, 1)


def test_a_text_without_another_one_to_take_its_place_stays_and_is_not_counted():
    images = np.array([0, 0, 1, -1])
    chosen, counts = answers_from(
        NoiseRecipe(wrong_language=1.0), images, ["en", "hi", "en", "hi"], ["a"] * 4, 0
    )
    assert chosen.tolist() == [1, 0, 2, 3]
    assert counts == {"swapped": 0, "wrong_language": 2}
    chosen, counts = answers_from(NoiseRecipe(1.0), images, list("abcd"), ["a"] * 4, 0)
    assert chosen.tolist() == [0, 1, 2, 3]
    assert counts == {"swapped": 0, "wrong_language": 0}


def test_answers_are_taken_in_turn():
    own = [{"role": role, "content": role[0]} for role in ("user", "assistant") * 3]
    others = [{"role": "user", "content": "?"}] + [
        {"role": "assistant", "content": text} for text in "xy"
    ]
    contents = [turn["content"] for turn in with_answers(own, others)]
    assert contents == ["u", "x", "u", "y", "u", "x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": NoiseRecipe(1.5)}, r"noise\.swapped: expected a share from 0 to 1, found 1\.5"),
        ({"noise": NoiseRecipe(0.6, 0.6)}, r"noise\.swapped \+ wrong_language: .* found 1\.2"),
        ({"noise": NoiseRecipe(0.1), "streaming": True}, "noise: expected data in memory"),
    ],
)
def test_shares_that_fit_no_dataset_are_refused(path, change, words):
    with pytest.raises(ValueError, match=words):
        GroupData([DataRecipe(path, **change)])
