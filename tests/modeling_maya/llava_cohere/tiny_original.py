"""Tiny checkpoints in the original's layouts, written by hand: none of the converter's tables are used.

write_checkpoint(folder, shards=3, **{"use_cache": False})
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_processing import tiny_tokenizer

WIDTH, LAYERS, HEADS, KV_HEADS, MLP, ROWS = 32, 2, 4, 2, 48, 424
V_WIDTH, V_LAYERS, V_HEADS, V_MLP, V_PATCH, V_IMAGE = 24, 3, 4, 40, 4, 16
TOWER = "model.vision_tower.vision_tower.vision_model."
FEATURES = (V_IMAGE // V_PATCH) ** 2 - 1


def config(**changes):
    """config.json of a full fine-tune; a value of `...` takes the field out."""
    fields = {
        "_name_or_path": "tiny-decoder",
        "architectures": ["LlavaCohereForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 5,
        "eos_token_id": 401,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "layer_norm_eps": 1e-05,
        "logit_scale": 0.125,
        "max_position_embeddings": 512,
        "mm_hidden_size": V_WIDTH,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "../tower",
        "model_type": "llava_cohere",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 0,
        "rope_theta": 10000,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
        "use_qk_norm": False,
        "vocab_size": ROWS,
    }
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not ...}


def decoder_tensors(draw):
    head = WIDTH // HEADS
    tensors = {"model.embed_tokens.weight": draw(ROWS, WIDTH), "model.norm.weight": draw(WIDTH)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors |= {
            f"{at}input_layernorm.weight": draw(WIDTH),
            f"{at}self_attn.q_proj.weight": draw(HEADS * head, WIDTH),
            f"{at}self_attn.k_proj.weight": draw(KV_HEADS * head, WIDTH),
            f"{at}self_attn.v_proj.weight": draw(KV_HEADS * head, WIDTH),
            f"{at}self_attn.o_proj.weight": draw(WIDTH, HEADS * head),
            f"{at}mlp.gate_proj.weight": draw(MLP, WIDTH),
            f"{at}mlp.up_proj.weight": draw(MLP, WIDTH),
            f"{at}mlp.down_proj.weight": draw(WIDTH, MLP),
        }
    return tensors


def tower_tensors(draw):
    tensors = {
        "embeddings.patch_embedding.weight": draw(V_WIDTH, 3, V_PATCH, V_PATCH),
        "embeddings.patch_embedding.bias": draw(V_WIDTH),
        "embeddings.position_embedding.weight": draw((V_IMAGE // V_PATCH) ** 2, V_WIDTH),
        "post_layernorm.weight": draw(V_WIDTH),
        "post_layernorm.bias": draw(V_WIDTH),
        "head.probe": draw(1, 1, V_WIDTH),
        "head.attention.in_proj_weight": draw(3 * V_WIDTH, V_WIDTH),
        "head.attention.in_proj_bias": draw(3 * V_WIDTH),
        "head.attention.out_proj.weight": draw(V_WIDTH, V_WIDTH),
        "head.attention.out_proj.bias": draw(V_WIDTH),
        "head.layernorm.weight": draw(V_WIDTH),
        "head.layernorm.bias": draw(V_WIDTH),
    }
    for at in ["head.", *(f"encoder.layers.{layer}." for layer in range(V_LAYERS))]:
        tensors |= {
            f"{at}mlp.fc1.weight": draw(V_MLP, V_WIDTH),
            f"{at}mlp.fc1.bias": draw(V_MLP),
            f"{at}mlp.fc2.weight": draw(V_WIDTH, V_MLP),
            f"{at}mlp.fc2.bias": draw(V_WIDTH),
        }
    for layer in range(V_LAYERS):
        at = f"encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            tensors |= {f"{at}{norm}.weight": draw(V_WIDTH), f"{at}{norm}.bias": draw(V_WIDTH)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{at}self_attn.{name}.weight"] = draw(V_WIDTH, V_WIDTH)
            tensors[f"{at}self_attn.{name}.bias"] = draw(V_WIDTH)
    return tensors


def projector_tensors(draw, layers=2):
    tensors = {}
    for layer in range(layers):
        width = V_WIDTH if layer == 0 else WIDTH
        tensors[f"model.mm_projector.{2 * layer}.weight"] = draw(WIDTH, width)
        tensors[f"model.mm_projector.{2 * layer}.bias"] = draw(WIDTH)
    return tensors


def drawing(seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: (torch.randn(shape, generator=generator) * 0.2).to(dtype)


def all_tensors(dtype=torch.bfloat16, layers=2, seed=0):
    draw = drawing(seed, dtype)
    tower = {TOWER + key: value for key, value in tower_tensors(draw).items()}
    return {**decoder_tensors(draw), **tower, **projector_tensors(draw, layers)}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2))


def write_weights(folder: Path, tensors, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys, weight_map = list(tensors), {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in keys[shard::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def write_tokenizer(folder, broken_unknown=True):
    """As the original's trainer leaves it: right padding, and the missing unk_token turned into "null"."""
    tiny_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    saved |= {"padding_side": "right", "model_max_length": 2048}
    saved["unk_token"] = "null" if broken_unknown else None
    saved["chat_template"] = "{{ 'the base model says so' }}"
    write_json(path, saved)


def write_tower(folder, tensors, prefix="vision_model."):
    """The tower's own folder, as transformers 4 wrote SigLIP vision models."""
    write_weights(
        folder,
        {prefix + key.removeprefix(TOWER): value for key, value in tensors.items() if TOWER in key},
    )
    write_json(
        folder / "config.json",
        {
            "model_type": "siglip_vision_model",
            "hidden_size": V_WIDTH,
            "num_hidden_layers": V_LAYERS,
            "num_attention_heads": V_HEADS,
            "intermediate_size": V_MLP,
            "patch_size": V_PATCH,
            "image_size": V_IMAGE,
        },
    )


def write_checkpoint(folder: Path, shards=1, tensors=None, **changes):
    """A full checkpoint in `folder` and its tower's folder beside it; returns its tensors."""
    tensors = all_tensors() if tensors is None else tensors
    write_weights(folder, tensors, shards)
    write_json(folder / "config.json", config(**changes))
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 5, "eos_token_id": 401, "pad_token_id": 0},
    )
    write_tokenizer(folder)
    if any(TOWER in key for key in tensors):
        write_tower(folder.parent / "tower", {k: v.float() for k, v in tensors.items()})
    return tensors


def write_base(folder: Path, tensors, **changes):
    """The decoder that the original starts from: weights, config and tokenizer of its own."""
    write_weights(
        folder,
        {key: value for key, value in tensors.items() if "mm_" not in key and TOWER not in key},
    )
    fields = {
        key: value
        for key, value in config().items()
        if not key.startswith(("mm_", "tune", "freeze"))
    }
    fields |= {"model_type": "cohere", "architectures": ["CohereForCausalLM"], **changes}
    write_json(folder / "config.json", fields)
    write_tokenizer(folder, broken_unknown=False)


def native_name(key):
    """Where a tensor of the original belongs in Maya, spelled out once more for the tests."""
    if key.startswith(TOWER):
        return "model.vision_tower." + key[len(TOWER) :]
    if key.startswith("model.mm_projector."):
        return "model.multi_modal_projector.layers." + key[len("model.mm_projector.") :]
    return "model.language_model." + key[len("model.") :] if key.startswith("model.") else key
