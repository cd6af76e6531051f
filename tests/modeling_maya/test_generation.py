"""Answers of Maya: batching, caches, beams, streams, compiled decoding."""

import threading

import pytest
import torch
from transformers import StaticCache, TextIteratorStreamer

from tests.helpers.tiny import (
    DECODERS,
    IMAGE_TOKEN,
    PROJECTORS,
    TOWERS,
    tiny_inputs,
    tiny_model,
)

NEW = 6
# Greedy, of fixed length, and without the placeholder, which a random model may well answer.
GREEDY = {
    "do_sample": False,
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "suppress_tokens": [IMAGE_TOKEN],
}


def answers(model, inputs, **kwargs) -> torch.Tensor:
    """The new tokens (B, NEW) of a greedy answer that does not stop early."""
    generated = model.generate(**inputs, **{**GREEDY, **kwargs})
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return generated[:, start:]


def never(model) -> list[int]:
    """Tokens that GREEDY rules out."""
    return [model.config.text_config.eos_token_id, IMAGE_TOKEN]


def greedy_by_hand(model, inputs) -> torch.Tensor:
    """The same without any cache or `generate`: one full forward for every token."""
    inputs, new = dict(inputs), []
    for _ in range(NEW):
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]
        logits[:, never(model)] = -torch.inf
        new.append(logits.argmax(-1, keepdim=True))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new[-1]], dim=1)
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(new[-1])], dim=1)
    return torch.cat(new, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_generation_is_the_forward_repeated(decoder, tower):
    model = tiny_model(decoder, tower)
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    expected = greedy_by_hand(model, inputs)
    assert len(set(map(tuple, expected.tolist()))) == 3  # the rows answer differently
    torch.testing.assert_close(answers(model, inputs), expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_left_padded_batch_answers_like_its_rows_alone(decoder):
    model = tiny_model(decoder)
    batch = tiny_inputs(model.config, images=[1, 2, 0])
    together, images = answers(model, batch), iter(batch["pixel_values"])
    for row, count in enumerate([1, 2, 0]):
        real = batch["attention_mask"][row].bool()
        single = {
            "input_ids": batch["input_ids"][row, real][None],
            "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
        }
        if count:
            single["pixel_values"] = torch.stack([next(images) for _ in range(count)])
        torch.testing.assert_close(answers(model, single)[0], together[row])


def test_the_tower_runs_once_an_answer():
    model = tiny_model()
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    answers(model, tiny_inputs(model.config, images=[1, 2]))
    assert len(calls) == 1


def test_the_image_matters():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 1])
    swapped = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert not torch.equal(answers(model, inputs), answers(model, swapped))


def test_without_cache_and_without_images():
    model = tiny_model()
    with_images = tiny_inputs(model.config, images=[1, 0])
    torch.testing.assert_close(
        answers(model, with_images, use_cache=False), answers(model, with_images)
    )
    text = tiny_inputs(model.config, images=[0, 0])
    torch.testing.assert_close(answers(model, text, use_cache=False), answers(model, text))


def test_from_embeddings():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2])
    expected = answers(model, inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(answers(model, {**inputs, "inputs_embeds": embeddings}), expected)


def test_several_samples_a_row_belong_to_their_row():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    # At a vanishing temperature every sample is the greedy answer of its own row.
    samples = answers(model, inputs, do_sample=True, temperature=1e-4, num_return_sequences=2)
    torch.testing.assert_close(samples, answers(model, inputs).repeat_interleave(2, dim=0))


def test_beams_belong_to_their_row():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    together = answers(model, inputs, num_beams=3, num_return_sequences=2)
    assert not torch.equal(together[0], together[1])
    row = {k: v[:1] for k, v in inputs.items()}
    alone = answers(model, row, num_beams=3, num_return_sequences=2)
    torch.testing.assert_close(alone, together[:2])


class Words:
    """As much of a tokenizer as a streamer needs."""

    def decode(self, ids, **kwargs) -> str:
        return "".join(f"{int(i)} " for i in ids)


def test_streaming():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1])
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len([piece for piece in pieces if piece]) == NEW
    assert [int(word) for word in "".join(pieces).split()] == answers(model, inputs)[0].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
def test_static_cache(decoder):
    model = tiny_model(decoder)
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    static = answers(model, inputs, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(static, answers(model, inputs))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mlp", "gated_cross_attention"])
def test_decoding_compiles_to_one_graph(kind):
    """Dynamo refuses what it cannot trace whole. The backend runs the traced graph as it is, so this
    checks the graph, not what a code generator makes of it; and it counts, as a step must not be
    compiled again."""
    torch._dynamo.reset()
    compilations = []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    model = tiny_model(**PROJECTORS[kind])
    inputs = tiny_inputs(model.config, images=[1, 2])
    expected = answers(model, inputs)
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(model.config.get_text_config(), max_cache_len=length + NEW)
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(**inputs, position_ids=positions, past_key_values=cache).logits[:, -1]
    compiled = torch.compile(model.forward, fullgraph=True, backend=counting)
    new = []
    for _ in range(NEW):
        logits[:, never(model)] = -torch.inf
        new.append(logits.argmax(-1, keepdim=True))
        mask = torch.cat([mask, torch.ones_like(new[-1])], dim=1)
        # A mask of full length keeps shapes, and so the graph, the same at every step.
        full = torch.nn.functional.pad(mask, (0, length + NEW - mask.shape[1]))
        positions = mask.sum(-1, keepdim=True) - 1
        logits = compiled(
            input_ids=new[-1],
            attention_mask=full,
            position_ids=positions,
            past_key_values=cache,
        ).logits[:, -1]
    torch.testing.assert_close(torch.cat(new, dim=1), expected)
    assert len(compilations) == 1
