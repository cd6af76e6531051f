"""One pass of Maya: features, projector, logits, loss, gradients, attention."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from modeling_maya import (
    MayaForConditionalGeneration,
    MayaModel,
    MayaProjector,
    drop_unused_vision_weights,
)
from tests.helpers.tiny import (
    DECODERS,
    IMAGE_TOKEN,
    TOWERS,
    enable_checkpointing,
    enlarge,
    tiny_config,
    tiny_images,
    tiny_inputs,
    tiny_model,
)

KNOWN_TOWERS = ["siglip", "siglip2", "clip"]


def masked_labels(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tokens themselves as labels, none on padding and image positions."""
    labels = inputs["input_ids"].clone()
    labels[(labels == IMAGE_TOKEN) | (inputs["attention_mask"] == 0)] = -100
    return labels


# Every decoder with every tower


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_forward_backward_for_any_parts(decoder, tower):
    model = tiny_model(decoder, tower).train()
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    output = model(**inputs, labels=masked_labels(inputs))
    assert output.logits.shape == (*inputs["input_ids"].shape, 96)
    assert output.image_hidden_states.shape == (3 * model.config.image_seq_length, 32)
    output.loss.backward()
    used = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Dinov2 is kept whole, so its last layers and norm get nothing.
    allowed = ("mask_token", "encoder.layer.3", "layernorm", "k_proj.bias", "key.bias")
    if tower == "dinov2":
        allowed += ("model.vision_tower.layers.3", "model.vision_tower.layer.3")
    else:
        allowed = ("k_proj.bias",)  # a constant added to every key changes no softmax
    assert [name for name in used if not any(part in name for part in allowed)] == []


# The tower and its features


def reference_features(tower: nn.Module, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
    """The hidden state a transformers tower itself gives for images."""
    if tower.config.model_type == "siglip2_vision_model":
        patch = tower.config.patch_size
        patches = torch.stack(
            [torch.tensor(convert_image_to_patches(image.numpy(), patch)) for image in pixel_values]
        )
        inputs = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2]),
            "spatial_shapes": torch.tensor([[3, 3]] * len(patches)),
        }
    else:
        inputs = {"pixel_values": pixel_values}
    return tower(**inputs, output_hidden_states=True).hidden_states[layer]


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["full", "default"])
@pytest.mark.parametrize("layer", [-1, -2, -3, 2])
@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_those_of_the_whole_tower(tower, layer, strategy):
    config = tiny_config(
        tower=tower, vision_feature_layer=layer, vision_feature_select_strategy=strategy
    )
    whole = enlarge(AutoModel.from_config(copy.deepcopy(config.vision_config))).eval()
    model = MayaModel(config).eval()
    model.vision_tower.load_state_dict(whole.state_dict(), strict=tower == "dinov2")

    images = tiny_images(2)
    expected = reference_features(whole, images, layer)
    if strategy == "default":
        expected = expected[:, 1:]
    assert expected.shape[1] == config.image_seq_length
    features = model.get_image_features(images).pooler_output
    assert len(features) == 2
    torch.testing.assert_close(
        torch.stack(features), model.multi_modal_projector(expected), rtol=0, atol=0
    )


@torch.no_grad()
@pytest.mark.parametrize("tower", KNOWN_TOWERS)
def test_unused_vision_weights_are_neither_there_nor_needed(tower):
    lean = tiny_model(tower=tower)
    whole = tiny_model(tower=tower, vision_keep_unused_weights=True)
    missing = set(whole.state_dict()) - set(lean.state_dict())
    assert {
        name.split("vision_tower.")[1].split(".weight")[0].split(".bias")[0] for name in missing
    }
    assert all(
        any(part in name for part in ("encoder.layers.3.", "post_layernorm.", "vision_tower.head."))
        for name in missing
    )
    assert len(lean.model.vision_tower.encoder.layers) == 3
    whole.load_state_dict(lean.state_dict(), strict=False)
    inputs = tiny_inputs(lean.config, images=[1, 2])
    before = whole(**inputs).logits
    torch.testing.assert_close(lean(**inputs).logits, before, rtol=0, atol=0)
    # The kept ones change nothing, a used one does: the comparison above can fail.
    for name, parameter in whole.named_parameters():
        if name in missing:
            parameter.add_(1.0)
    torch.testing.assert_close(whole(**inputs).logits, before, rtol=0, atol=0)
    whole.model.vision_tower.encoder.layers[2].mlp.fc1.weight.add_(1.0)
    assert not torch.allclose(whole(**inputs).logits, before)


def test_a_loaded_tower_can_be_put_in():
    config = tiny_config()
    whole = enlarge(AutoModel.from_config(config.vision_config), seed=3)
    kept = copy.deepcopy(whole.state_dict())
    model = MayaModel(config)
    model.vision_tower = drop_unused_vision_weights(whole, config)
    assert set(model.vision_tower.state_dict()) == set(MayaModel(config).vision_tower.state_dict())
    for name, tensor in model.vision_tower.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)


def test_a_layer_that_was_dropped_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"vision_feature_layer: .*first 3, found -1 \(layer 4\)"):
        tiny_model().get_image_features(tiny_images(1), vision_feature_layer=-1)


# The projector


@pytest.mark.parametrize("layers", [1, 2, 4, 8])
def test_projector_is_linear_layers_at_even_indices_with_exact_gelu_between(layers):
    config = tiny_config(projector_num_layers=layers)
    projector = enlarge(MayaProjector(config))
    assert list(projector.state_dict()) == [
        f"layers.{2 * i}.{kind}" for i in range(layers) for kind in ("weight", "bias")
    ]
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    expected = x
    for i in range(layers):
        linear = projector.layers[2 * i]
        if i:
            expected = 0.5 * expected * (1 + torch.erf(expected / 2**0.5))
        expected = expected @ linear.weight.T + linear.bias
    torch.testing.assert_close(projector(x), expected, rtol=1e-5, atol=1e-5)


# Placeholders


@torch.no_grad()
def test_features_land_on_their_placeholders_in_reading_order():
    model = tiny_model("llama")
    inputs = tiny_inputs(model.config, images=[2, 0, 1])
    seen = {}

    def spy(module, args, kwargs):
        seen.update(kwargs)

    model.model.language_model.register_forward_pre_hook(spy, with_kwargs=True)
    output = model(**inputs)
    places = inputs["input_ids"] == IMAGE_TOKEN
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    torch.testing.assert_close(seen["inputs_embeds"][places], features, rtol=0, atol=0)
    torch.testing.assert_close(seen["inputs_embeds"][~places], embeddings[~places], rtol=0, atol=0)
    torch.testing.assert_close(output.image_hidden_states, features, rtol=0, atol=0)
    assert torch.equal(torch.cat(output.image_outputs.pooler_output), features)


@torch.no_grad()
def test_the_towers_states_are_returned_where_they_are_asked_for():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    inputs = tiny_inputs(model.config, images=[1])
    assert model(**inputs).image_outputs.hidden_states is None
    asked = model(**inputs, output_hidden_states=True, output_attentions=True).image_outputs
    layers = model.config.vision_layers_used
    assert (len(asked.hidden_states), len(asked.attentions)) == (layers + 1, layers)
    assert model(input_ids=inputs["input_ids"][:, -1:]).image_outputs is None


@pytest.mark.parametrize(
    ("spoil", "tokens", "features"),
    [
        (lambda x: {**x, "pixel_values": x["pixel_values"][:2]}, 27, 18),
        (lambda x: {**x, "pixel_values": tiny_images(4)}, 27, 36),
        (lambda x: {k: v[:, :-3] if v.ndim == 2 else v for k, v in x.items()}, None, 27),
        (lambda x: {k: v for k, v in x.items() if k != "pixel_values"}, 27, 0),
    ],
    ids=["image missing", "image too many", "text cut", "images forgotten"],
)
def test_wrong_counts_raise_with_both_numbers(spoil, tokens, features):
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2], text_tokens=1)
    inputs = spoil(inputs)
    if tokens is None:
        tokens = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
        assert tokens < features
    message = (
        rf"Image features and image tokens do not match, tokens: {tokens}, features: {features}\. "
        rf"Each image needs 9 tokens of id {IMAGE_TOKEN}"
    )
    with pytest.raises(ValueError, match=message):
        model.train()(**inputs)
    model.eval()
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, max_new_tokens=1)


def test_either_ids_or_embeddings_and_either_pixels_or_features():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(attention_mask=inputs["attention_mask"])
    features = model.get_image_features(inputs["pixel_values"])
    with pytest.raises(ValueError, match="either pixel_values or mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={"image": features})


@torch.no_grad()
def test_encoded_images_and_embeddings_give_the_same_logits():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2])
    expected = model(**inputs).logits
    pixels = inputs.pop("pixel_values")
    encoded = {"image": model.get_image_features(pixels)}
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs=encoded).logits, expected)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    output = model(inputs_embeds=embeddings, pixel_values=pixels, **inputs)
    torch.testing.assert_close(output.logits, expected)


# Logits and loss


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_are_the_decoders_own(decoder):
    """The whole path against the decoder's own class, fed the same embeddings: logit scale included."""
    from transformers import AutoModelForCausalLM

    model = tiny_model(decoder)
    own = AutoModelForCausalLM.from_config(copy.deepcopy(model.config.text_config)).eval()
    own.model.load_state_dict(model.model.language_model.state_dict())
    own.lm_head.load_state_dict(model.lm_head.state_dict())
    inputs = tiny_inputs(model.config, images=[1, 0])
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    embeddings[inputs["input_ids"] == IMAGE_TOKEN] = model.get_image_features(
        inputs["pixel_values"]
    ).pooler_output[0]
    expected = own(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(model(**inputs).logits, expected)
    if decoder.startswith("cohere"):
        assert model.config.text_config.logit_scale == 4.0
        unscaled = model.lm_head(model.model(**inputs).last_hidden_state)
        torch.testing.assert_close(model(**inputs).logits, 4.0 * unscaled)


def test_a_decoder_that_sets_no_scale_is_not_scaled():
    model = tiny_model(text={"logit_scale": None})
    inputs = tiny_inputs(model.config, images=[1])
    expected = model.lm_head(model.model(**inputs).last_hidden_state)
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


def test_loss_is_next_token_cross_entropy_of_the_scaled_logits():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 0])
    labels = masked_labels(inputs)
    output = model(**inputs, labels=labels)
    logits, targets = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(logits, targets))
    total = nn.functional.cross_entropy(logits, targets, reduction="sum")
    shared = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(shared, total / 50)


@pytest.mark.parametrize("decoder", DECODERS)
def test_trl_computes_the_same_loss_and_gradients(decoder):
    """TRL's trainer does not call our forward: it scores hidden states itself and reads the scale itself."""
    trl_utils = pytest.importorskip("trl.trainer.utils")
    model = tiny_model(decoder).train()
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    labels = masked_labels(inputs)
    ours = model(**inputs, labels=labels).loss
    ours.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    trl_utils.add_fused_lm_head(model)
    theirs = model(**inputs, labels=labels, fused_lm_head=True).loss
    torch.testing.assert_close(theirs, ours)
    theirs.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    if decoder.startswith("cohere"):
        # Negative control: a forward that uses another scale is told apart.
        model.config.text_config.logit_scale = 1.0
        assert abs(model(**inputs, labels=labels).loss - theirs) > 0.1


@torch.no_grad()
def test_logits_to_keep():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2])
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, logits[:, -3:])
    positions = torch.tensor([0, 5, 7])
    kept = model(**inputs, logits_to_keep=positions).logits
    torch.testing.assert_close(kept, logits[:, positions])


@pytest.mark.parametrize(
    ("decoder", "tie", "tied"),
    [
        ("cohere", None, True),
        ("cohere", False, False),
        ("llama", None, False),
        ("llama", True, True),
    ],
)
def test_tied_and_untied_heads(decoder, tie, tied):
    model = tiny_model(decoder, tie_word_embeddings=tie)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    assert model.get_output_embeddings() is model.lm_head
    assert ("lm_head.weight" in dict(model.named_parameters())) is not tied


def test_tuple_output():
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1])
    output = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].ndim == 0
    assert output[1].shape == (*inputs["input_ids"].shape, 96)


# Training


def frozen_tower(model: MayaForConditionalGeneration) -> MayaForConditionalGeneration:
    model.model.vision_tower.requires_grad_(False)
    return model.train()


def count_calls(module: nn.Module) -> list[int]:
    """A list whose only entry counts the forward calls of a module from now on."""
    calls = [0]
    forward = module.forward

    def counting(*args, **kwargs):
        calls[0] += 1
        return forward(*args, **kwargs)

    module.forward = counting
    return calls


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("tower", KNOWN_TOWERS)
def test_gradient_checkpointing_leaves_a_frozen_tower_alone(tower, reentrant):
    model = frozen_tower(tiny_model(tower=tower))
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    model(**inputs, labels=masked_labels(inputs)).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    enable_checkpointing(model, use_reentrant=reentrant)
    tower_calls = count_calls(model.model.vision_tower.encoder.layers[0].self_attn)
    decoder_calls = count_calls(model.model.language_model.layers[0].self_attn)
    output = model(**inputs, labels=masked_labels(inputs))
    features = model.get_image_features(inputs["pixel_values"])
    assert not features.last_hidden_state.requires_grad
    assert features.pooler_output[0].requires_grad
    assert tower_calls == [2]
    output.loss.backward()
    assert tower_calls == [2]
    assert decoder_calls == [2]  # so checkpointing was on, and recomputes what is trained
    assert all(p.grad is None for p in model.model.vision_tower.parameters())
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == expected.keys()
    assert any("multi_modal_projector" in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])


def test_gradient_checkpointing_recomputes_a_trained_tower():
    model = tiny_model().train()
    enable_checkpointing(model)
    calls = count_calls(model.model.vision_tower.encoder.layers[0].self_attn)
    inputs = tiny_inputs(model.config, images=[1])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert calls == [2]
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.any()


def test_gradients_reach_the_image_through_a_frozen_tower():
    model = frozen_tower(tiny_model())
    inputs = tiny_inputs(model.config, images=[1])
    inputs["pixel_values"].requires_grad_(True)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert inputs["pixel_values"].grad.any()


@pytest.mark.parametrize("tower", TOWERS)
def test_a_text_only_batch_still_touches_every_part_that_is_trained(tower):
    """Otherwise data-parallel ranks wait for each other for ever, and a lone projector has no loss to follow."""
    model = tiny_model(tower=tower)
    inputs = tiny_inputs(model.config, images=[0, 0])
    expected = model(**inputs, labels=inputs["input_ids"]).loss
    model.requires_grad_(False).train()
    model.model.multi_modal_projector.requires_grad_(True)
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for parameter in model.model.multi_modal_projector.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_text_only_batches_do_not_run_the_tower_outside_training():
    model = tiny_model()
    calls = count_calls(model.model.vision_tower.encoder.layers[0])
    inputs = tiny_inputs(model.config, images=[0])
    model(**inputs)
    with torch.no_grad():
        model.train()(**inputs)
    assert calls == [0]


# Attention


@torch.no_grad()
# The compiler of torch calls what it deprecates itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("decoder", "implementation"),
    # Flex attention is compiled before its first use, which on a CPU takes longest of all.
    [*((decoder, "eager") for decoder in DECODERS), ("cohere", "flex_attention")],
)
def test_attention_implementations_agree_with_sdpa(decoder, implementation):
    model = tiny_model(decoder)
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    assert model.config._attn_implementation == "sdpa"
    expected = model(**inputs).logits
    model.set_attn_implementation(implementation)
    assert model.model.language_model.config._attn_implementation == implementation
    assert model.model.vision_tower.config._attn_implementation == implementation
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], rtol=1e-4, atol=1e-4)


def test_parts_can_have_different_attention():
    model = tiny_model()
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.model.language_model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_four_dimensional_mask_reaches_the_decoder():
    """What packed training builds on: two texts in one row that do not see each other."""
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 1])
    separate = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    block = torch.ones(length, length).tril().bool()
    mask = torch.block_diag(block, block).bool()[None, None]
    packed = model(
        input_ids=inputs["input_ids"].reshape(1, -1),
        pixel_values=inputs["pixel_values"],
        attention_mask=mask,
        position_ids=torch.arange(length).repeat(2)[None],
    ).logits
    torch.testing.assert_close(packed.reshape(separate.shape), separate, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs a CUDA device")
@torch.no_grad()
def test_flash_attention_agrees_with_sdpa():
    pytest.importorskip("flash_attn", reason="flash_attn is not installed")
    model = tiny_model().to("cuda", torch.bfloat16)
    inputs = {k: v.to("cuda") for k, v in tiny_inputs(model.config, images=[1, 2, 0]).items()}
    expected = model(**inputs).logits
    model.set_attn_implementation("flash_attention_2")
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], rtol=0.05, atol=0.1)


# What serving engines look for


def test_serving_engines_find_the_parts():
    model = AutoModel.from_config(tiny_config())
    assert type(model) is MayaModel
    assert type(model.get_decoder()).__name__ == "CohereModel"
    assert type(model.get_encoder(modality="image")).__name__ == "SiglipVisionModel"
    assert model.get_input_embeddings() is model.language_model.embed_tokens
    assert MayaModel.is_backend_compatible()
    features = model.get_image_features(tiny_images(2)).pooler_output
    assert [tuple(image.shape) for image in features] == [(9, 32), (9, 32)]


def test_tensor_parallel_plan_covers_decoder_and_head():
    plan = tiny_model()._tp_plan
    assert plan["lm_head"] == "colwise_gather_output"
    for name, split in {"q_proj": "colwise", "o_proj": "rowwise"}.items():
        assert plan[f"model.language_model.layers.*.self_attn.{name}"] == split
