"""A Maya as transformers' own LLaVA: the same logits, pixels and answers, without remote code."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from modeling_maya import MayaForConditionalGeneration
from modeling_maya.llava_cohere.convert import convert
from processing_maya import MayaProcessor
from tests.helpers.tiny_maya import tiny_maya, tiny_picture


def save_maya(
    folder, decoder="cohere", tower="siglip", dtype=torch.float32, aspect="pad", **fields
):
    """A tiny Maya whose config has `fields`."""
    model, processor = tiny_maya(decoder, tower=tower, **fields)
    processor.image_processor.image_aspect = aspect
    model.to(dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def conversation(picture):
    """A question about a picture."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is it"}]
    return [{"role": "user", "content": content}]


ENCODE = {
    "add_generation_prompt": True,
    "tokenize": True,
    "return_dict": True,
    "return_tensors": "pt",
}


@pytest.mark.parametrize(
    ("decoder", "tower", "fields"),
    [
        ("cohere", "siglip", {}),
        ("cohere", "siglip", {"vision_feature_select_strategy": "default"}),
        ("cohere", "siglip", {"vision_feature_layer": -1}),
        ("cohere", "siglip", {"vision_keep_unused_weights": True}),
        ("cohere", "clip", {"projector_num_layers": 1}),
        ("cohere2", "clip", {"vision_feature_select_strategy": "default"}),
        ("llama", "siglip", {"tie_word_embeddings": False}),
        ("qwen3", "siglip", {"projector_hidden_act": "silu"}),
    ],
)
def test_logits_pixels_and_answers_are_equal(tmp_path, decoder, tower, fields):
    folder = save_maya(tmp_path / "maya", decoder, tower, **fields)
    convert(folder, tmp_path / "llava", to="llava", log=lambda line: None)
    ours = MayaForConditionalGeneration.from_pretrained(folder).eval()
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "llava", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path / "llava"), type(theirs))
    theirs.eval()
    read, read_there = (
        MayaProcessor.from_pretrained(folder),
        AutoProcessor.from_pretrained(tmp_path / "llava"),
    )
    assert type(read_there).__name__ == "LlavaProcessor"
    for seed, size in enumerate([(12, 12), (30, 17), (9, 40)]):
        asked = conversation(tiny_picture(seed).resize(size))
        mine = read.apply_chat_template(asked, **ENCODE)
        other = read_there.apply_chat_template(asked, **ENCODE)
        assert mine["input_ids"].tolist() == other["input_ids"].tolist()
        assert torch.allclose(mine["pixel_values"], other["pixel_values"], atol=1e-6, rtol=0)
        with torch.no_grad():
            logits, there = ours(**mine).logits, theirs(**other).logits
        assert torch.allclose(logits, there, atol=1e-5 * float(logits.abs().max()), rtol=0)
        options = {"max_new_tokens": 8, "do_sample": False}
        assert (
            ours.generate(**mine, **options).tolist()
            == theirs.generate(**other, **options).tolist()
        )


def test_squeezed_pictures(tmp_path):
    folder = save_maya(tmp_path / "maya", aspect="square")
    convert(folder, tmp_path / "llava", to="llava", log=lambda line: None)
    picture = Image.effect_noise((37, 11), 90).convert("RGB")
    pixels = [
        read.image_processor(picture, return_tensors="pt")["pixel_values"]
        for read in (
            MayaProcessor.from_pretrained(folder),
            AutoProcessor.from_pretrained(tmp_path / "llava"),
        )
    ]
    assert torch.allclose(*pixels, atol=1e-6, rtol=0)


def test_the_logit_scale_is_in_a_head_of_its_own(tmp_path):
    folder = save_maya(tmp_path / "maya", dtype=torch.bfloat16)
    lines = []
    convert(folder, tmp_path / "llava", to="llava", log=lines.append)
    assert "logit_scale 4.0 multiplied into it (exact" in "\n".join(lines)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert theirs.dtype == torch.bfloat16
    assert not theirs.config.tie_word_embeddings
    embeddings = theirs.get_input_embeddings().weight
    assert torch.equal(theirs.lm_head.weight, embeddings * 4)
    # An engine that applies the decoder's own factor must not apply it twice.
    assert theirs.config.text_config.logit_scale == 1.0
    text = (tmp_path / "llava" / "config.json").read_text()
    assert str(tmp_path) not in text
    assert "auto_map" not in text


def test_another_dtype(tmp_path):
    folder = save_maya(tmp_path / "maya")
    convert(folder, tmp_path / "llava", to="llava", dtype="bfloat16", log=lambda line: None)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava", dtype="auto")
    assert theirs.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"projector_num_layers": 3}, "projector_num_layers: expected 1 or 2, .*found 3"),
        ({"tower": "siglip2"}, "vision_config.model_type: expected .*found 'siglip2_vision_model'"),
        ({"aspect": "crop"}, "image_aspect: expected 'pad' or 'square', .*found 'crop'"),
    ],
)
def test_what_llava_cannot_hold_is_refused(tmp_path, arguments, match):
    folder = save_maya(tmp_path / "maya", **arguments)
    with pytest.raises(ValueError, match=match):
        convert(folder, tmp_path / "llava", to="llava")
    assert not (tmp_path / "llava").exists()


def test_another_grey_is_refused(tmp_path):
    folder = save_maya(tmp_path / "maya")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["pad_color"] = [0, 0, 0]
    path.write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"pad_color: expected \[127, 127, 127\], .*found \[0, 0, 0\]"
    ):
        convert(folder, tmp_path / "llava", to="llava")
