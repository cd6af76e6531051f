"""What SGLang 0.5.23 asks of a model of its transformers backend, without SGLang, which needs a GPU.

Facts are read from its wheel: `srt/models/transformers.py` (TransformersMultiModalForCausalLM) and
`srt/multimodal/processors/transformers_auto.py`. It builds the bare model from its config, loads the
checkpoint's tensors by name, runs all sequences of a batch as one row, with its own attention by the name
`sglang` and arguments that it passes through the model, and computes logits itself.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_maya import MayaForConditionalGeneration
from tests.helpers.tiny_maya import tiny_maya, tiny_picture
from tests.helpers.tiny_processing import TEXTS

TRUST = {"trust_remote_code": True}


class StandIn:
    """An attention layer of the engine: causal within each sequence of the row."""

    def __init__(self):
        self.calls = 0

    def forward(self, query, key, value, forward_batch):
        """Attend. All are float [tokens, heads * channels]."""
        self.calls += 1
        size = forward_batch.head_dim
        heads = query.shape[-1] // size
        outputs = []
        for part in zip(
            *(t.split(forward_batch.lengths) for t in (query, key, value)), strict=True
        ):
            q, k, v = (t.unflatten(-1, (-1, size)).transpose(0, 1) for t in part)
            k, v = (t.repeat_interleave(heads // len(k), 0) for t in (k, v))
            outputs.append(
                functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)
            )
        return torch.cat(outputs).flatten(1)


def attention(
    module,
    query,
    key,
    value,
    attention_mask,
    attention_instances=None,
    forward_batch=None,
    **kwargs,
):
    """The function that SGLang registers as `sglang`."""
    layer = attention_instances[module.layer_idx]
    length = query.shape[-2]
    query, key, value = (t.transpose(1, 2).reshape(length, -1) for t in (query, key, value))
    return layer.forward(query, key, value, forward_batch=forward_batch), None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "maya"
    model, processor = tiny_maya()
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture
def engine(folder, monkeypatch):
    """The bare model as SGLang builds and fills it."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sglang", attention)
    config = AutoConfig.from_pretrained(folder, **TRUST)
    config.text_config._attn_implementation = "sglang"
    model = AutoModel.from_config(config, **TRUST).eval()
    parameters = dict(model.named_parameters())
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.startswith("lm_head."):
            parameters.pop(name.removeprefix("model.")).data.copy_(value)
    assert not parameters
    return model


def test_the_class_supports_other_attention(folder):
    config = AutoConfig.from_pretrained(folder, **TRUST)
    found = get_class_from_dynamic_module(config.auto_map["AutoModel"], config._name_or_path)
    assert found._supports_attention_backend


def test_one_row_of_two_sequences_gives_the_logits_of_each(folder, engine):
    processor = AutoProcessor.from_pretrained(folder, **TRUST)
    ours = MayaForConditionalGeneration.from_pretrained(folder).eval()
    prompts = []
    for seed, text in enumerate((TEXTS["en"], TEXTS["hi"])):
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
        )
        # The engine gives pictures and the rendered text to the processor.
        images = [tiny_picture(seed + 1).convert("RGB")]
        prompts.append(processor(text=rendered, images=images, return_tensors="pt"))
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    text_config = engine.config.text_config
    head_dim = getattr(
        text_config, "head_dim", text_config.hidden_size // text_config.num_attention_heads
    )
    layers = {number: StandIn() for number in range(text_config.num_hidden_layers)}
    with torch.no_grad():
        hidden = engine(
            input_ids=torch.cat([prompt["input_ids"] for prompt in prompts], 1),
            inputs_embeds=None,
            use_cache=False,
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            return_dict=False,
            forward_batch=SimpleNamespace(lengths=lengths, head_dim=head_dim),
            attention_instances=layers,
            pixel_values=torch.cat([prompt["pixel_values"] for prompt in prompts]),
        )[0][0]
        # The head is the engine's own; the factor is in the decoder's config.
        assert text_config.tie_word_embeddings
        head = engine.get_input_embeddings().weight
        logits = functional.linear(hidden, head) * text_config.logit_scale
        expected = torch.cat([ours(**prompt).logits[0] for prompt in prompts])
    assert {layer.calls for layer in layers.values()} == {1}
    assert torch.allclose(logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_the_picture_arrives_by_the_names_that_the_engine_knows(folder, engine):
    processor = AutoProcessor.from_pretrained(folder, **TRUST)
    token = engine.config.image_token_id
    assert processor.tokenizer.convert_tokens_to_ids(processor.image_token) == token
    inputs = processor(
        text=f"{processor.image_token} {TEXTS['fr']}", images=[tiny_picture()], return_tensors="pt"
    )
    with torch.no_grad():
        features = engine.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    assert all(torch.is_tensor(one) for one in features)
    assert sum(len(one) for one in features) == int((inputs["input_ids"] == token).sum())


def test_the_plan_for_several_gpus_names_modules(engine):
    plan = engine.tp_plan
    assert set(plan.values()) <= {
        "colwise",
        "rowwise",
        "colwise_gather_output",
        "embedding_rowwise",
    }
    modules = {name for name, _ in engine.named_modules()}
    for pattern in plan:
        assert pattern.replace("*", "0") in modules, pattern
