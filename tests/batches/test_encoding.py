"""The fast encoder gives exactly the processor's tokens, or leaves the conversation to it."""

import numpy as np
import pytest

from maya_vlm.training.batches.encoding import ConversationEncoder
from maya_vlm.training.batches.source import Conversation
from processing_maya import load_chat_template
from tests.helpers.tiny_processing import TEXTS, tiny_processor


def conversation(messages, images=1):
    return Conversation("r", "en", "chat", messages, tuple(range(images)), 0)


def shapes(text: str, answer: str) -> list[list[dict]]:
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    user, assistant = {"role": "user", "content": text}, {"role": "assistant", "content": answer}
    return [
        [user, assistant],
        [user, assistant, user, assistant],
        [{"role": "user", "content": parts}, assistant],
        [{"role": "system", "content": answer}, {"role": "user", "content": parts}, assistant],
    ]


@pytest.mark.parametrize("template", ["aya", "maya", "plain"])
def test_same_as_the_processor(template):
    processor = tiny_processor()
    encoder = ConversationEncoder(processor)
    source = load_chat_template(template)
    texts = [*TEXTS.values(), " padded ", "a <image> b", "x\ny", "<|END_OF_TURN_TOKEN|>", "7", "?"]
    compared = 0
    for i, text in enumerate(texts):
        for messages in shapes(text, texts[i - 1].split("?")[0] + "."):
            try:
                expected = processor.encode_conversation(messages, 1, source)
            except ValueError:
                with pytest.raises(ValueError):
                    encoder.encode(conversation(messages), source, "r")
                continue
            ids, trained = encoder.encode(conversation(messages), source, "r")
            assert ids.tolist() == expected["input_ids"]
            assert trained.tolist() == [bool(v) for v in expected["assistant_mask"]]
            compared += 1
    assert compared >= 20


def test_the_aya_template_takes_the_fast_way(monkeypatch):
    processor = tiny_processor()
    encoder = ConversationEncoder(processor)
    source = load_chat_template("aya")
    messages = shapes("What is shown?", "a boat")[0]
    encoder.encode(conversation(messages), source, "r")
    monkeypatch.setattr(processor, "encode_conversation", None)
    ids, trained = encoder.encode(conversation(shapes("Who?", "a cat")[0]), source, "r")
    assert ids.dtype == np.int32
    assert trained.any()
    # A control token in a text is not for the fast way.
    with pytest.raises(TypeError):
        encoder.encode(conversation(shapes("Who <image>?", "a cat")[0]), source, "r")
