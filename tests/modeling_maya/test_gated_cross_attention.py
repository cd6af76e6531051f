"""Gated cross-attention: which image a token reads, what a block adds, caches, several forwards before a backward."""

import copy

import pytest
import torch
from transformers import StaticCache

from maya_vlm.training.inference.generation import Question
from maya_vlm.training.inference.generation import answers as answers_of
from modeling_maya import CACHE
from modeling_maya.projector_maya import last_image
from tests.helpers.tiny import (
    DECODERS,
    IMAGE_TOKEN,
    PROJECTORS,
    enable_checkpointing,
    tiny_config,
    tiny_images,
    tiny_inputs,
    tiny_model,
)
from tests.helpers.tiny_maya import tiny_maya, tiny_picture
from tests.modeling_maya.test_generation import answers, greedy_by_hand

KIND = PROJECTORS["gated_cross_attention"]


def gated(decoder="cohere", **fields):
    return tiny_model(decoder, **{**KIND, **fields})


# ------------------------------------------------------------------------------ which image


def tree(row: list[tuple[int, bool]]) -> list[int]:
    """Return the last visible image of each (position, is an image) by walking to each token's parent."""
    parents: list[int | None] = []
    latest: dict[int, int] = {}
    images, found = -1, []
    numbers: dict[int, int] = {}
    for place, (position, is_image) in enumerate(row):
        # A position hides those behind it that came before.
        latest = {at: token for at, token in latest.items() if at < position}
        parents.append(latest.get(position - 1))
        latest[position] = place
        if is_image:
            images += 1
            numbers[place] = images
        walk: int | None = place
        while walk is not None and walk not in numbers:
            walk = parents[walk]
        found.append(-1 if walk is None else numbers[walk])
    return found


ROWS = {
    "one conversation": [(0, 0), (1, 1), (2, 0), (3, 0)],
    "two images": [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)],
    "no image": [(0, 0), (1, 0)],
    "packed": [(0, 0), (1, 1), (2, 0), (0, 0), (1, 0), (2, 0), (0, 1), (1, 0)],
    "shared prefix": [(0, 1), (1, 0), (2, 0), (3, 0), (2, 0), (3, 0), (4, 0), (2, 0)],
    "an image in one branch": [(0, 1), (1, 0), (2, 1), (3, 0), (2, 0), (3, 0), (2, 0), (3, 1)],
    "only branches have one": [(0, 0), (1, 0), (2, 1), (3, 0), (2, 0), (3, 1), (4, 0)],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_token_reads_the_last_image_that_it_sees(name):
    row = ROWS[name]
    is_image = torch.tensor([[bool(image) for _, image in row]])
    positions = torch.tensor([[position for position, _ in row]])
    assert last_image(is_image, positions)[0].tolist() == tree(row)


def test_rows_have_their_own_images():
    length = max(map(len, ROWS.values()))
    rows = []
    for row in ROWS.values():
        last = row[-1][0]
        rows.append([*row, *((last + 1 + more, 0) for more in range(length - len(row)))])
    is_image = torch.tensor([[bool(image) for _, image in row] for row in rows])
    positions = torch.tensor([[position for position, _ in row] for row in rows])
    assert last_image(is_image, positions).tolist() == [tree(row) for row in rows]


# ------------------------------------------------------------------------------ what a block adds


def test_a_block_adds_what_the_formula_says():
    model = gated()
    inputs = tiny_inputs(model.config, images=[2, 1, 0])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    blocks = model.model.multi_modal_projector.blocks
    assert len(blocks) == model.config.text_config.num_hidden_layers
    for block in blocks:
        block.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.no_grad():
        model(**inputs)
        features = model.get_image_features(inputs["pixel_values"]).pooler_output
        features = [feature.view(9, 32) for feature in features]
        ids = inputs["input_ids"]
        for block, (hidden, result) in zip(blocks, seen, strict=True):
            image = -1
            for row in range(len(ids)):
                own = None
                for place, token in enumerate(ids[row].tolist()):
                    if token == IMAGE_TOKEN:
                        image += 1
                        own = features[image]
                    expected = hidden[row, place]
                    if own is not None:
                        expected = added(block, expected, own)
                    torch.testing.assert_close(result[row, place], expected)


def added(block, hidden, features):
    """One token: heads one by one, softmax written out."""
    size = len(hidden) // block.heads
    query = block.q_proj(block.norm1(hidden)).view(block.heads, size)
    keys = block.k_proj(features).view(-1, block.heads, size)
    values = block.v_proj(features).view(-1, block.heads, size)
    read = []
    for head in range(block.heads):
        weights = (keys[:, head] @ query[head] / size**0.5).exp()
        read.append((weights[:, None] * values[:, head]).sum(0) / weights.sum())
    hidden = hidden + torch.tanh(block.attention_gate) * block.out_proj(torch.cat(read))
    mlp = block.fc2(block.activation(block.fc1(block.norm2(hidden))))
    return hidden + torch.tanh(block.mlp_gate) * mlp


@pytest.mark.parametrize(("interval", "count"), [(1, 3), (2, 2), (3, 1), (8, 1)])
def test_blocks_come_before_every_so_many_layers(interval, count):
    model = gated(cross_attention_interval=interval, text={"num_hidden_layers": 3})
    assert len(model.model.multi_modal_projector.blocks) == count
    inputs = tiny_inputs(model.config, images=[1])
    order: list[str] = []
    for number, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_hook(lambda *_, number=number: order.append(f"layer {number}"))
    for number, block in enumerate(model.model.multi_modal_projector.blocks):
        block.register_forward_hook(lambda *_, number=number: order.append(f"block {number}"))
    model(**inputs)
    expected = []
    for number in range(3):
        expected += [f"block {number // interval}"] if number % interval == 0 else []
        expected.append(f"layer {number}")
    assert order == expected


def test_closed_gates_leave_the_decoder_as_it_is():
    model = gated()
    inputs = tiny_inputs(model.config, images=[1, 2])
    with torch.no_grad():
        for block in model.model.multi_modal_projector.blocks:
            block.attention_gate.zero_()
            block.mlp_gate.zero_()
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        embedded[inputs["input_ids"] == IMAGE_TOKEN] = (
            model.model.multi_modal_projector.placeholder.weight[0]
        )
        plain = model.model.language_model(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        found = model.model(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    assert torch.equal(found[kept], plain[kept])


def test_without_an_image_the_decoder_answers_alone():
    model = gated()
    ids = tiny_inputs(model.config, images=[0])["input_ids"]
    with torch.no_grad():
        plain = model.model.language_model(ids).last_hidden_state
        assert torch.equal(model.model(ids).last_hidden_state, plain)
        # In training every part takes part in every step, and changes nothing.
        assert torch.equal(model.train().model(ids).last_hidden_state, plain)
    model(ids, labels=ids).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if "multi_modal_projector" in n}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


# ------------------------------------------------------------------------------ answers


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_generation_is_the_forward_repeated(decoder):
    model = gated(decoder)
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    expected = greedy_by_hand(model, inputs)
    torch.testing.assert_close(answers(model, inputs), expected)
    # The answers depend on the images.
    other = {**inputs, "pixel_values": tiny_images(3, seed=5)}
    assert (answers(model, other) != expected).any()


@torch.no_grad()
def test_a_left_padded_batch_answers_like_its_rows_alone():
    model = gated()
    inputs = tiny_inputs(model.config, images=[1, 0, 3])
    together = answers(model, inputs)
    first = 0
    for row, count in enumerate((1, 0, 3)):
        real = inputs["attention_mask"][row].bool()
        alone = {
            "input_ids": inputs["input_ids"][row][real][None],
            "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
        }
        if count:
            alone["pixel_values"] = inputs["pixel_values"][first : first + count]
        first += count
        torch.testing.assert_close(answers(model, alone)[0], together[row])


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
        "static",
    ],
)
def test_other_ways_to_decode(options):
    model = gated()
    inputs = tiny_inputs(model.config, images=[2])
    if options == "static":
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        found = answers(model, inputs, **{CACHE: cache}, disable_compile=True)
        torch.testing.assert_close(found, greedy_by_hand(model, inputs))
    elif "num_beams" in options:
        found = answers(model, inputs, **options)
        torch.testing.assert_close(found, answers(model, inputs, **options, use_cache=False))
    else:
        found = answers(model, inputs, **options)
        torch.testing.assert_close(found, greedy_by_hand(model, inputs))


@torch.no_grad()
def test_a_conversation_goes_on_from_its_cache_with_another_image():
    model = gated()
    inputs = tiny_inputs(model.config, images=[2, 2])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    whole = model(input_ids=ids, pixel_values=pixels).logits
    cut = 4  # after the first image and before the second
    assert (ids[:, :cut] == IMAGE_TOKEN).sum(-1).tolist() == [1, 1]
    first = model(input_ids=ids[:, :cut], pixel_values=pixels[::2], use_cache=True)
    second = model(input_ids=ids[:, cut:-2], pixel_values=pixels[1::2], **{CACHE: first[CACHE]})
    rest = model(input_ids=ids[:, -2:], **{CACHE: second[CACHE]})
    found = torch.cat([first.logits, second.logits, rest.logits], 1)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_a_cache_can_be_chosen_and_copied():
    model = gated()
    inputs = tiny_inputs(model.config, images=[1, 1, 0])
    output = model(**inputs, use_cache=True)
    step = torch.full((3, 1), 40)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(step)], 1)
    expected = model(
        input_ids=step, attention_mask=mask, **{CACHE: copy.deepcopy(output[CACHE])}
    ).logits
    chosen = torch.tensor([2, 0, 0])
    output[CACHE].batch_select_indices(chosen)
    found = model(input_ids=step, attention_mask=mask[chosen], **{CACHE: output[CACHE]}).logits
    torch.testing.assert_close(found, expected[chosen])


def test_one_picture_with_several_questions_is_read_once():
    model, processor = tiny_maya(**KIND)
    pictures = [tiny_picture(number) for number in range(2)]
    asked = [
        Question([number, text], 6) for number in range(2) for text in ("a", "what is it", "name")
    ]
    read: list[int] = []
    model.model.vision_tower.register_forward_hook(
        lambda _, __, output: read.append(len(output.last_hidden_state))
    )
    found = dict(answers_of(model, processor, pictures, asked, batch_size=4))
    assert sum(read) == 2
    for place, question in enumerate(asked):
        ((_, alone),) = answers_of(model, processor, pictures, [question], batch_size=1)
        assert found[place].text == alone.text


# ------------------------------------------------------------------------------ training


def test_two_forwards_before_a_backward_do_not_mix():
    """As in preference training, whose reference answers come from a second forward of the same model."""
    model = gated().train()
    one, two = (tiny_inputs(model.config, images=[1], seed=seed) for seed in (0, 1))

    def gradients(between):
        model.zero_grad()
        loss = model(**one, labels=one["input_ids"]).loss
        if between:
            with torch.no_grad():
                model(**two)
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(between=False)
    enable_checkpointing(model, use_reentrant=False)
    for name, gradient in gradients(between=True).items():
        torch.testing.assert_close(gradient, plain[name])
    assert any("blocks" in name and gradient.any() for name, gradient in plain.items())


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_serving_engines_are_refused(engine):
    model = gated()
    model.model.language_model.config._attn_implementation_internal = engine
    with pytest.raises(ValueError, match=f"expected 'mlp', .* in {engine}, whose cache holds no"):
        model(**tiny_inputs(model.config, images=[1]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_seq_length": 9}, "image_seq_length: expected 1 with .*found 9"),
        ({"cross_attention_interval": 0}, "cross_attention_interval: expected at least 1, found 0"),
        (
            {"tower": "dinov2", "image_seq_length": 1},
            "expected another kind for vision_config .dinov2",
        ),
        ({"text": {"num_attention_heads": 5}}, "32 with 5 heads"),
    ],
)
def test_what_no_block_can_be_built_from_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**{**KIND, **fields})
