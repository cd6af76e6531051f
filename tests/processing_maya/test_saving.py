"""A saved processor carries its code and its template, and loads anywhere."""

import json

import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline

from processing_maya import CHAT_TEMPLATES, MayaImageProcessor, MayaProcessor, load_chat_template
from tests.helpers.bare_python import make_site, run_bare
from tests.helpers.tiny_maya import tiny_maya
from tests.helpers.tiny_processing import tiny_processor

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is <image> a tag?"}]},
    {"role": "assistant", "content": "Yes, a boat."},
]


def picture():
    image = Image.new("RGB", (20, 9), (250, 10, 90))
    image.paste((0, 255, 0), (3, 3, 9, 9))
    return image


def test_files_and_settings(tmp_path):
    maya = tiny_processor(chat_template="maya", image_seq_length=5, image_aspect="crop")
    maya.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "chat_template.jinja",
        "image_processing_maya.py",
        "processing_maya.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    # Nothing of the package that a flat copy could not import.
    assert not {"__init__.py", "processing_llava_cohere.py", "templates.py"} & names
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == load_chat_template(
        "maya"
    )
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_seq_length"] == 5
    assert saved["image_token"] == "<image>"
    assert saved["processor_class"] == "MayaProcessor"
    assert saved["auto_map"]["AutoProcessor"] == "processing_maya.MayaProcessor"
    image_processor = saved["image_processor"]
    assert image_processor["image_aspect"] == "crop"
    assert (
        image_processor["auto_map"]["AutoImageProcessor"]
        == "image_processing_maya.MayaImageProcessor"
    )


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_loads_as_it_was(tmp_path, template):
    first = tiny_processor(chat_template=template, apply_exif_rotation=True)
    expected = first.encode_conversation(MESSAGES)
    folder = tmp_path / "0"
    first.save_pretrained(folder)
    for again in range(1, 3):
        # With the package imported its own classes are taken, and nobody is asked for trust.
        loaded = AutoProcessor.from_pretrained(folder)
        assert type(loaded) is MayaProcessor
        assert type(loaded.image_processor) is MayaImageProcessor
        assert loaded.chat_template == first.chat_template
        assert loaded.image_processor.to_dict() == first.image_processor.to_dict()
        assert (loaded.image_seq_length, loaded.image_token_id) == (
            first.image_seq_length,
            first.image_token_id,
        )
        assert loaded.tokenizer.padding_side == "left"
        assert loaded.encode_conversation(MESSAGES) == expected
        folder = tmp_path / str(again)
        loaded.save_pretrained(folder)
    assert type(AutoImageProcessor.from_pretrained(folder)) is MayaImageProcessor
    assert (
        AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>")
        == first.image_token_id
    )


def test_a_stranger_loads_it_and_saves_it_again(tmp_path):
    """In a process with torch, transformers and pillow only, and without a word of complaint."""
    maya = tiny_processor(chat_template="maya")
    maya.save_pretrained(tmp_path / "saved")
    picture().save(tmp_path / "picture.png")
    code = f"""
import importlib.util, json, sys
for name in ("processing_maya", "torchvision", "datasets", "trl"):
    assert importlib.util.find_spec(name) is None, name
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
messages = {MESSAGES!r}
with_picture = json.loads(json.dumps(messages))
with_picture[0]["content"][0]["image"] = Image.open("picture.png")
found = []
for folder in ("saved", "again", "again2"):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    assert type(processor.image_processor).__module__.startswith("transformers_modules.")
    assert AutoImageProcessor.from_pretrained(folder, trust_remote_code=True).backend == "pil"
    out = processor.apply_chat_template(with_picture, tokenize=True, return_dict=True,
                                        return_assistant_tokens_mask=True, return_tensors="np")
    encoded = processor.encode_conversation(messages)
    assert out["input_ids"][0].tolist() == encoded["input_ids"]
    found.append([encoded, out["assistant_masks"][0].tolist(), out["pixel_values"].tolist()])
    processor.save_pretrained("again" if folder == "saved" else "again2")
assert found[0] == found[1] == found[2]
print(json.dumps(found[0]))
"""
    done = run_bare(code, make_site(tmp_path / "site"), tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    encoded, mask, pixels = json.loads(done.stdout.splitlines()[-1])
    here = maya.encode_conversation(MESSAGES)
    assert encoded == here
    assert mask == here["assistant_mask"]
    assert pixels == maya.image_processor(picture(), return_tensors="np")["pixel_values"].tolist()


def test_pipeline_gives_one_bos(monkeypatch):
    model, maya = tiny_maya()
    seen = []
    generate = model.generate

    def record(*args, **kwargs):
        seen.append(kwargs["input_ids"])
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", record)
    pipe = pipeline("image-text-to-text", model=model, processor=maya)
    question = {
        "role": "user",
        "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}],
    }
    pipe(text=[question], max_new_tokens=1, do_sample=False)
    prompt = maya.apply_chat_template([question], add_generation_prompt=True)
    pipe(images=picture(), text=prompt, max_new_tokens=1, do_sample=False)
    assert len(seen) == 2
    assert seen[0].tolist() == seen[1].tolist()
    assert seen[0][0].tolist().count(maya.tokenizer.bos_token_id) == 1
    assert seen[0][0].tolist().count(maya.image_token_id) == maya.image_seq_length
