"""Inputs equal to the original's, bit for bit.

The golden set was recorded with the original implementation. It is not part of this repository:
it is looked for beside it (`../shared/golden`) or where the variable MAYA_GOLDEN says.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from processing_maya import (
    MayaImageProcessor,
    MayaProcessor,
    add_image_token,
    load_chat_template,
    messages_from_conversations,
)

GOLDEN = Path(os.environ.get("MAYA_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "cases.json").is_file(), reason=f"no golden set in {GOLDEN}; set MAYA_GOLDEN"
)

IMAGE_INDEX, IGNORE = -200, -100


@functools.cache
def golden():
    return json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))


@functools.cache
def arrays():
    return np.load(GOLDEN / "cases.npz")


def cases(quirk):
    if not (GOLDEN / "cases.json").is_file():
        return []
    return [
        pytest.param(case, id=case["id"])
        for case in golden()["cases"]
        if case["kind"] == "single" and case["quirk"] is quirk
    ]


@functools.cache
def processor(conv):
    """`conv` is the original's name: its `aya` is our `maya` template."""
    vision = json.loads((GOLDEN / "vision_tower" / "preprocessor_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")
    add_image_token(tokenizer, num_embeddings=golden()["meta"]["vocab_rows"])
    return MayaProcessor(
        image_processor=MayaImageProcessor(
            size=vision["size"],
            image_mean=vision["image_mean"],
            image_std=vision["image_std"],
            resample=vision["resample"],
        ),
        tokenizer=tokenizer,
        image_seq_length=golden()["meta"]["image_tokens"],
        chat_template=load_chat_template({"aya": "maya"}.get(conv, conv), original_prompt=True),
    )


def expected_ids_and_labels(case, image_token_id, length):
    ids, labels = [], []
    for token, label in zip(case["input_ids"], case["labels"], strict=True):
        repeat = length if token == IMAGE_INDEX else 1
        ids += [image_token_id if token == IMAGE_INDEX else token] * repeat
        labels += [label] * repeat
    return ids, labels


def messages_of(case):
    num_images = int("image" in case["sample"])
    return messages_from_conversations(
        case["sample"]["conversations"], num_images, name=case["id"]
    ), num_images


def labels_of(ids, mask):
    return [token if learned else IGNORE for token, learned in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("case", cases(quirk=False))
def test_prompt_ids_and_labels(case):
    maya = processor(case["conv"])
    messages, num_images = messages_of(case)
    bos = maya.tokenizer.bos_token
    assert maya.apply_chat_template(messages) == bos + case["prompt"]

    encoded = maya.encode_conversation(messages, num_images)
    ids, labels = expected_ids_and_labels(case, maya.image_token_id, maya.image_seq_length)
    assert encoded["input_ids"] == ids
    assert labels_of(encoded["input_ids"], encoded["assistant_mask"]) == labels
    assert len(ids) == case["expanded_length"]


@pytest.mark.parametrize("case", cases(quirk=False))
def test_everything_in_one_call(case):
    """Through `apply_chat_template` with the picture in the message, and in two steps."""
    maya = processor(case["conv"])
    messages, num_images = messages_of(case)
    kwargs = {}
    pixel_values = None
    if num_images:
        image = Image.open(GOLDEN / case["image"]["file"])
        assert image.mode == case["image"]["mode"]
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image":
                    part["image"] = image
        kwargs["images_kwargs"] = {"image_aspect": case["image_aspect_ratio"] or "square"}
        pixel_values = arrays()[f"{case['pixel_values_in']}/pixel_values"]
    ids, labels = expected_ids_and_labels(case, maya.image_token_id, maya.image_seq_length)
    out = maya.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        return_assistant_tokens_mask=True,
        processor_kwargs=kwargs,
    )
    assert out["input_ids"][0].tolist() == ids
    assert labels_of(out["input_ids"][0].tolist(), out["assistant_masks"][0]) == labels
    assert out["attention_mask"].all()
    two_steps = maya(
        text=maya.apply_chat_template(messages),
        images=[image] if num_images else None,
        return_tensors="np",
        **kwargs,
    )
    assert two_steps["input_ids"][0].tolist() == ids
    if num_images:
        for found in (out["pixel_values"], two_steps["pixel_values"]):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, pixel_values.reshape(found.shape))


@pytest.mark.parametrize("case", cases(quirk=False))
def test_generation_prompts(case):
    for entry in case["generate"]:
        maya = processor(entry["conv"])
        assert entry["messages"][-1] is None
        conversations = [
            {"from": ("human", "gpt")[index % 2], "value": value}
            for index, value in enumerate(entry["messages"][:-1])
        ]
        num_images = sum("<image>" in turn["value"] for turn in conversations)
        messages = messages_from_conversations(conversations, num_images)
        prompt = maya.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == maya.tokenizer.bos_token + entry["prompt"]
        ids = maya.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids == [
            maya.image_token_id if token == IMAGE_INDEX else token for token in entry["input_ids"]
        ]
        text = maya.decode(entry["output_ids"], skip_special_tokens=True)
        assert text.strip() == entry["text"].strip()


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_pad_as_the_original(side):
    """Padded ids and attention masks, after the images are inserted."""
    singles = {case["id"]: case for case in golden()["cases"] if case["kind"] == "single"}
    checked = 0
    for batch in golden()["cases"]:
        if batch["kind"] != "batch" or batch["padding_side"] != side:
            continue
        members = [singles[member] for member in batch["members"]]
        maya = processor(members[0]["conv"])
        expected_mask = arrays()[f"{batch['id']}/expanded_attention_mask"].astype(int)
        conversations = [messages_of(case)[0] for case in members]
        texts = [maya.apply_chat_template(messages) for messages in conversations]
        pictures = [Image.open(GOLDEN / case["image"]["file"]) for case in members if case["image"]]
        out = maya(
            text=texts, images=pictures, padding=True, padding_side=side, return_tensors="np"
        )
        np.testing.assert_array_equal(out["attention_mask"], expected_mask)
        for row, case in enumerate(members):
            ids, _ = expected_ids_and_labels(case, maya.image_token_id, maya.image_seq_length)
            assert out["input_ids"][row][expected_mask[row].astype(bool)].tolist() == ids
        checked += 1
    assert checked


QUIRKS = {
    "mismatch_empty_answer_en": "turn 2: the assistant's answer is empty",
    "partial_mismatch_second_round_fr": "turn 4: the assistant's answer is empty",
    "image_marker_in_answer_en": "<image> marker in an assistant turn",
    "marker_but_no_image_key_en": "0 images but 1 <image> markers in 1 turns",
}


@pytest.mark.parametrize("case", cases(quirk=True))
def test_quirks_are_learned_or_refused_by_name(case):
    """What the original trained on silently, without labels or with the image in the wrong place."""
    if case["id"] in QUIRKS:
        with pytest.raises(ValueError, match=QUIRKS[case["id"]]) as error:
            messages_of(case)
        assert str(error.value).startswith(case["id"])
        return
    # An answer with a role string in it: the ids are the original's, and now it is learned.
    maya = processor(case["conv"])
    messages, num_images = messages_of(case)
    encoded = maya.encode_conversation(messages, num_images)
    ids, labels = expected_ids_and_labels(case, maya.image_token_id, maya.image_seq_length)
    assert encoded["input_ids"] == ids
    assert all(label == IGNORE for label in labels)
    learned = [token for token, flag in zip(ids, encoded["assistant_mask"], strict=True) if flag]
    answer = case["sample"]["conversations"][-1]["value"]
    assert maya.decode(learned) == f" {answer}<|END_OF_TURN_TOKEN|>"
