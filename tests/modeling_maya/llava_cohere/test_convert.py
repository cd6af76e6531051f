"""The converter: every source, both directions, both tower copies, what it refuses and what it leaves behind."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_maya
import processing_maya  # noqa: F401  (registers the processor)
from modeling_maya.llava_cohere import to_maya, write
from modeling_maya.llava_cohere.convert import convert
from tests.modeling_maya.llava_cohere import tiny_original as original

PACKAGES = Path(modeling_maya.__file__).parents[1]


def quiet(line):
    pass


def tensors_of(folder):
    """Every tensor of a model folder, by safetensors itself."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


def equal_bits(first, second):
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(equal_bits(found[key], expected[key]) for key in expected)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "original"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "maya"


# Full checkpoints


def test_converted_equals_loaded_directly(source, output):
    tensors = original.write_checkpoint(source, shards=3)
    report = convert(source, output, log=quiet)
    direct = AutoModelForImageTextToText.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert model.config.to_diff_dict().keys() == direct.config.to_diff_dict().keys() - {
        "processor_class"
    }
    state = direct.state_dict()
    assert_same(model.state_dict(), state)
    stored = {key: value for key, value in state.items() if key != "lm_head.weight"}
    assert_same(tensors_of(output), stored)
    assert report["tensors"] == len(stored)
    assert report["parameters"] == sum(value.numel() for value in stored.values())
    unused = report["parts"]["unused tower"]["parameters"]
    assert report["parameters"] + unused == sum(value.numel() for value in tensors.values())


def test_the_folder_is_complete_and_greedy(source, output):
    original.write_checkpoint(source)
    convert(source, output, log=quiet)
    names = {path.name for path in output.iterdir()}
    code = {
        "configuration_maya.py",
        "modeling_maya.py",
        "processing_maya.py",
        "image_processing_maya.py",
    }
    files = {
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "chat_template.jinja",
    }
    files |= {"tokenizer.json", "tokenizer_config.json", "model.safetensors", "conversion.json"}
    assert code | files <= names
    assert not [name for name in names if name.endswith((".bin", ".partial", ".pt"))]
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert model.generation_config.do_sample is False
    assert model.generation_config.eos_token_id == 401
    assert "processor_class" not in json.loads((output / "config.json").read_text())
    ours = AutoProcessor.from_pretrained(output)
    direct = AutoProcessor.from_pretrained(source)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "null 12?"}]}
    ]
    for processor in (ours, direct):
        assert processor.image_seq_length == original.FEATURES
    rendered = [
        p.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for p in (ours, direct)
    ]
    assert rendered[0] == rendered[1]
    assert ours.tokenizer(rendered[0])["input_ids"] == direct.tokenizer(rendered[1])["input_ids"]
    for field in ("size", "resample", "image_mean", "image_std", "image_aspect", "pad_color"):
        assert getattr(ours.image_processor, field) == getattr(direct.image_processor, field)


def test_loads_with_torch_and_transformers_alone(source, output):
    """A fresh process without the packages: the folder's own code, by the Auto classes, and the same logits."""
    original.write_checkpoint(source)
    convert(source, output, log=quiet)
    code = f"""
import sys
sys.path[:] = [path for path in sys.path if path not in ("", {str(PACKAGES)!r})]
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(output)!r}, trust_remote_code=True, dtype=torch.float32)
processor = AutoProcessor.from_pretrained({str(output)!r}, trust_remote_code=True)
assert "modeling_maya.llava_cohere.convert" not in sys.modules
row = torch.tensor([[5] + [processor.image_token_id] * processor.image_seq_length + [30, 31]])
pixels = torch.linspace(-1, 1, 3 * {original.V_IMAGE} ** 2).reshape(1, 3, {original.V_IMAGE}, {original.V_IMAGE})
with torch.no_grad():
    print(model(input_ids=row, pixel_values=pixels).logits[0, -1, :5].tolist())
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(output.parent / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=output.parent,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    direct = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(source)
    row = torch.tensor([[5] + [processor.image_token_id] * processor.image_seq_length + [30, 31]])
    pixels = torch.linspace(-1, 1, 3 * original.V_IMAGE**2).reshape(
        1, 3, original.V_IMAGE, original.V_IMAGE
    )
    with torch.no_grad():
        expected = direct(input_ids=row, pixel_values=pixels).logits[0, -1, :5].tolist()
    assert json.loads(run.stdout.strip().splitlines()[-1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "layers", "head", "shards"),
    [
        ({}, 2, False, 1),
        ({"image_aspect_ratio": None, "use_cache": True, "rope_theta": ...}, 2, True, 3),
        ({"mm_projector_type": "linear", "tie_word_embeddings": False}, 1, True, 1),
        (
            {
                "mm_projector_type": "mlp3x_gelu",
                "mm_vision_select_layer": -1,
                "tie_word_embeddings": True,
            },
            3,
            False,
            2,
        ),
        (
            {
                "mm_vision_select_feature": "cls_patch",
                "mm_vision_select_layer": 1,
                "num_key_value_heads": 2,
            },
            2,
            False,
            1,
        ),
    ],
)
def test_there_and_back_is_bit_equal(source, output, tmp_path, changes, layers, head, shards):
    tensors = original.all_tensors(layers=layers)
    if changes.get("mm_projector_type") == "linear":
        tensors = {
            key.replace("mm_projector.0.", "mm_projector."): value for key, value in tensors.items()
        }
    if head:
        untied = changes.get("tie_word_embeddings") is False
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (1 if untied else 0)
    original.write_checkpoint(source, shards, tensors, **changes)
    convert(source, output, log=quiet, max_shard_size=20_000)
    assert len(list(output.glob("model-*.safetensors"))) > 2
    back = tmp_path / "elsewhere" / "back"
    convert(output, back, to="llava_cohere", log=quiet)
    assert_same(tensors_of(back), tensors)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((back / name).read_text()) == json.loads((source / name).read_text()), (
            name
        )
    # What went back loads like what was published, also where the tower's folder is not beside it.
    again = AutoModelForImageTextToText.from_pretrained(back)
    assert_same(
        again.state_dict(), AutoModelForImageTextToText.from_pretrained(source).state_dict()
    )
    first, second = AutoProcessor.from_pretrained(source), AutoProcessor.from_pretrained(back)
    text = "USER: <image>\nnull boat 12 ASSISTANT:"
    assert first.tokenizer(text)["input_ids"] == second.tokenizer(text)["input_ids"]
    assert "<image>" not in (back / "tokenizer.json").read_text()


def test_a_new_maya_goes_back(source, output, tmp_path):
    """One that was trained here: no record, no unused tensors."""
    tensors = original.write_checkpoint(source)
    model = AutoModelForImageTextToText.from_pretrained(source)
    model.save_pretrained(output)
    AutoProcessor.from_pretrained(source).save_pretrained(output)
    with pytest.raises(ValueError, match="--vision-tower"):
        convert(output, tmp_path / "back", to="llava_cohere", log=quiet)
    convert(output, tmp_path / "back", to="llava_cohere", vision_tower="../tower", log=quiet)
    back = tensors_of(tmp_path / "back")
    assert_same(back, {key: tensors[key] for key in back})
    left = {key for key in tensors if key not in back}
    assert left
    assert all(original.TOWER in key for key in left)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    assert_same(again.state_dict(), model.state_dict())


def test_dtype(source, output):
    tensors = original.write_checkpoint(source, tensors=original.all_tensors(torch.float32))
    report = convert(source, output, dtype="float16", log=quiet)
    found = tensors_of(output)
    for key, value in tensors.items():
        if original.native_name(key) in found:
            assert equal_bits(found[original.native_name(key)], value.to(torch.float16))
    assert report["bytes"] == 2 * report["parameters"]
    assert AutoModelForImageTextToText.from_pretrained(output).dtype == torch.float16


# The vision tower


def test_towers_are_compared_and_either_can_be_taken(source, output, tmp_path):
    tensors = original.write_checkpoint(source)
    name = "encoder.layers.1.mlp.fc1.weight"
    changed = {key: value.float() for key, value in tensors.items() if original.TOWER in key}
    changed[original.TOWER + name][3, 5] += 0.75
    original.write_tower(tmp_path / "tower", changed)
    expected = (
        changed[original.TOWER + name][3, 5].bfloat16() - tensors[original.TOWER + name][3, 5]
    )
    lines = []
    convert(source, output, log=lines.append)
    said = next(line for line in lines if "largest difference" in line)
    assert f"{expected.item():.3g} ({name}), 1 of {len(changed)} tensors differ" in said
    assert_same(
        {"tensor": tensors_of(output)[f"model.vision_tower.{name}"]},
        {"tensor": tensors[original.TOWER + name]},
    )
    convert(source, tmp_path / "hub", tower_source="hub", log=quiet)
    found = tensors_of(tmp_path / "hub")[f"model.vision_tower.{name}"]
    assert_same({"tensor": found}, {"tensor": changed[original.TOWER + name]})
    record = json.loads((tmp_path / "hub" / "conversion.json").read_text())["converted_from"]
    assert record["vision_tower"]["difference"]["maximum"] == pytest.approx(expected.item())
    assert record["vision_tower"]["weights"] == "named tower"


def test_tower_out_of_a_whole_siglip(source, output, tmp_path):
    """The shape of the repository that the published config names: text half, nested config, float16."""
    tensors = original.write_checkpoint(source)
    tower = tmp_path / "whole"
    vision = {
        "vision_model." + key[len(original.TOWER) :]: value.half()
        for key, value in tensors.items()
        if original.TOWER in key
    }
    rest = {
        "text_model.head.weight": torch.zeros(2),
        "logit_scale": torch.zeros(1),
        "logit_bias": torch.zeros(1),
    }
    original.write_weights(tower, vision | rest)
    inner = json.loads((tmp_path / "tower" / "config.json").read_text())
    original.write_json(
        tower / "config.json", {"model_type": "siglip", "vision_config": inner, "text_config": {}}
    )
    lines = []
    convert(source, output, vision_tower=tower, tower_source="hub", log=lines.append)
    assert any("3 tensors of its text half left out" in line for line in lines)
    found = tensors_of(output)
    key = "encoder.layers.0.self_attn.q_proj.weight"
    assert equal_bits(found[f"model.vision_tower.{key}"], vision[f"vision_model.{key}"])


def test_tower_of_another_size_is_refused(source, output, tmp_path):
    tensors = original.write_checkpoint(source)
    other = {key: value.float() for key, value in tensors.items() if original.TOWER in key}
    other[original.TOWER + "head.probe"] = torch.zeros(1, 2, original.V_WIDTH)
    original.write_tower(tmp_path / "tower", other)
    with pytest.raises(
        ValueError,
        match=r"head.probe: expected shape \[1, 1, 24\] .*found \[1, 2, 24\]: .*another tower",
    ):
        convert(source, output, log=quiet)
    assert not output.exists()


# A projector alone


@pytest.fixture
def projector(source, tmp_path):
    """The pretraining stage: mm_projector.bin, its config, and elsewhere the decoder and the tower."""
    tensors = original.all_tensors()
    source.mkdir()
    torch.save(
        {k: v for k, v in tensors.items() if "mm_projector" in k}, source / "mm_projector.bin"
    )
    changes = {
        "architectures": ["CohereForCausalLM"],
        "tune_mm_mlp_adapter": True,
        "image_aspect_ratio": "square",
    }
    original.write_json(source / "config.json", original.config(**changes))
    original.write_base(tmp_path / "base", tensors)
    original.write_tower(tmp_path / "tower", {k: v.float() for k, v in tensors.items()})
    return tensors


def test_projector_only(source, output, projector, tmp_path):
    report = convert(source, output, base_model=tmp_path / "base", log=quiet)
    assert report["kind"] == "projector only"
    found = tensors_of(output)
    for key, value in projector.items():
        if original.native_name(key) in found:
            expected = value.float() if original.TOWER in key else value
            assert equal_bits(found[original.native_name(key)], expected), key
    model = AutoModelForImageTextToText.from_pretrained(output)
    assert model.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(output)
    assert processor.image_processor.image_aspect == "square"
    assert "caption" in processor.chat_template.lower()
    ask = [{"role": "user", "content": [{"type": "image"}]}]
    prompt = processor.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<image>\n")
    # The file itself may be named too.
    convert(
        source / "mm_projector.bin", tmp_path / "second", base_model=tmp_path / "base", log=quiet
    )
    assert_same(tensors_of(tmp_path / "second"), found)


def test_projector_needs_its_decoder(source, output, projector, tmp_path):
    with pytest.raises(ValueError, match=r"base_model: expected .*found None.*tiny-decoder"):
        convert(source, output, log=quiet)
    original.write_base(tmp_path / "base", projector, logit_scale=0.5)
    with pytest.raises(
        ValueError, match=r"base/config.json: logit_scale: expected 0.125 as in .*, found 0.5"
    ):
        convert(source, output, base_model=tmp_path / "base", log=quiet)
    original.write_base(tmp_path / "base", projector, model_type="llama")
    with pytest.raises(
        ValueError, match=r"base/config.json: model_type: expected 'cohere', found 'llama'"
    ):
        convert(source, output, base_model=tmp_path / "base", log=quiet)
    assert not output.exists()


# LoRA


def write_lora(folder, tensors, rank=4, alpha=8, form="safetensors", **settings):
    """The original's layout; returns what the merged matrices must be, computed in float64."""
    folder.mkdir(exist_ok=True)
    draw = original.drawing(9, torch.float32)
    adapter, merged = {}, {}
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        base = tensors[f"{name}.weight"]
        down, up = draw(rank, base.shape[1]), draw(base.shape[0], rank)
        adapter[f"base_model.model.{name}.lora_A.weight"] = down
        adapter[f"base_model.model.{name}.lora_B.weight"] = up
        merged[f"{name}.weight"] = base.double() + scale * (up.double() @ down.double())
    if form == "safetensors":
        save_file(adapter, folder / "adapter_model.safetensors")
    else:
        torch.save(adapter, folder / "adapter_model.bin")
    projector = {f"base_model.model.{k}": v for k, v in tensors.items() if "mm_projector" in k}
    torch.save(projector, folder / "non_lora_trainables.bin")
    base_settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    original.write_json(folder / "adapter_config.json", {**base_settings, **settings})
    original.write_json(folder / "config.json", original.config())
    return merged


@pytest.mark.parametrize(("form", "settings"), [("bin", {}), ("safetensors", {"use_rslora": True})])
def test_lora(source, output, tmp_path, monkeypatch, form, settings):
    tensors = original.all_tensors()
    merged = write_lora(
        source, tensors, form=form, base_model_name_or_path=str(tmp_path / "base"), **settings
    )
    original.write_base(tmp_path / "base", tensors)
    original.write_tower(tmp_path / "tower", {k: v.float() for k, v in tensors.items()})
    # Chunks that end in the middle of a row.
    monkeypatch.setattr("modeling_maya.llava_cohere.tensors.CHUNK_BYTES", 100)
    convert(source, output, log=quiet)
    found = tensors_of(output)
    record = json.loads((output / "conversion.json").read_text())["converted_from"]
    hashed = {entry["name"] for entry in record["files"]}
    assert {"adapter_config.json", f"adapter_model.{form}", "non_lora_trainables.bin"} <= hashed
    for key, value in tensors.items():
        stored = found.get(original.native_name(key))
        if key in merged:
            assert equal_bits(stored, merged[key].float().to(torch.bfloat16)) or torch.allclose(
                stored.double(), merged[key], rtol=2**-8, atol=0
            )
            assert not equal_bits(stored, value)
        elif stored is not None and original.TOWER not in key:
            assert equal_bits(stored, value), key


def test_lora_agrees_with_peft(source, output, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import CohereForCausalLM

    tensors = original.all_tensors(torch.float32)
    merged = write_lora(source, tensors)
    original.write_base(tmp_path / "base", tensors)
    original.write_tower(tmp_path / "tower", tensors)
    base = CohereForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    settings = json.loads((source / "adapter_config.json").read_text())
    settings["target_modules"] = ["q_proj", "down_proj"]
    settings["task_type"] = "CAUSAL_LM"
    original.write_json(source / "adapter_config.json", settings)
    model = peft.PeftModel.from_pretrained(base, source).merge_and_unload()
    convert(source, output, base_model=tmp_path / "base", log=quiet)
    found = tensors_of(output)
    for key in merged:
        assert torch.allclose(
            found[original.native_name(key)], model.state_dict()[key], atol=1e-6
        ), key


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "use_dora: expected false .*found True"),
        ({"bias": "all"}, "bias: expected 'none', found 'all'"),
        ({"peft_type": "IA3"}, "peft_type: expected 'LORA', found 'IA3'"),
        ({"r": 5}, r"expected lora_A \[5, .*found \[4, "),
    ],
)
def test_lora_that_cannot_be_merged(source, output, tmp_path, settings, match):
    tensors = original.all_tensors()
    write_lora(source, tensors, **settings)
    original.write_base(tmp_path / "base", tensors)
    original.write_tower(tmp_path / "tower", tensors)
    with pytest.raises(ValueError, match=match):
        convert(source, output, base_model=tmp_path / "base", log=quiet)
    assert not output.exists()


# Dry run and record


def test_dry_run_writes_nothing(source, output, tmp_path):
    tensors = original.write_checkpoint(source, shards=2)
    before = sorted(tmp_path.rglob("*"))
    lines = []
    report = convert(source, output, dry_run=True, log=lines.append)
    assert sorted(tmp_path.rglob("*")) == before
    text = "\n".join(lines)
    assert "would write" in text
    assert "model.safetensors" in text
    for name, part in report["parts"].items():
        assert name in text
        assert f"{part['parameters']:,}" in text
    total = sum(part["parameters"] for part in report["parts"].values())
    assert total == sum(value.numel() for value in tensors.values())
    assert "memory: " in text
    written = convert(source, output, log=quiet)
    assert written == report
    sizes = {path.name: path.stat().st_size for path in output.glob("model*.safetensors")}
    assert sizes.keys() == report["shards"].keys()
    assert all(0 < sizes[name] - size < 20_000 for name, size in report["shards"].items())


def test_the_record_says_what_was_converted(output, tmp_path):
    """From a snapshot in the Hub's cache: repository and commit, and a digest of every file that was read."""
    import hashlib

    commit = "0123456789abcdef0123456789abcdef01234567"
    source = tmp_path / "models--someone--maya" / "snapshots" / commit
    original.write_checkpoint(source, shards=2)
    convert(source, output, log=quiet)
    record = json.loads((output / "conversion.json").read_text())
    made_from = record["converted_from"]
    assert (made_from["name"], made_from["commit"]) == ("someone/maya", commit)
    assert made_from["kind"] == "full checkpoint"
    digests = {entry["name"]: entry["sha256"] for entry in made_from["files"]}
    assert digests.keys() == {"config.json", *(path.name for path in source.glob("*.safetensors"))}
    for name, digest in digests.items():
        assert digest == hashlib.sha256((source / name).read_bytes()).hexdigest()
    assert record["original_config"] == json.loads((source / "config.json").read_text())
    assert str(tmp_path) not in (output / "conversion.json").read_text()


# Refused


class Boom:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_pickle_is_never_run(source, output, projector, tmp_path, form):
    trace = tmp_path / "it-ran"
    bad = {"model.mm_projector.0.weight": Boom(trace)}
    if form == "torch":
        torch.save(bad, source / "mm_projector.bin")
    else:
        (source / "mm_projector.bin").write_bytes(pickle.dumps(bad))
    with pytest.raises(
        ValueError,
        match=r"mm_projector.bin: (expected .*: refused, no code in it was run|not a readable)",
    ) as caught:
        convert(source, output, base_model=tmp_path / "base", log=quiet)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "expected a dictionary of names to tensors, found a list"),
        (
            {"model.mm_projector.0.weight": "text"},
            "found a str under 'model.mm_projector.0.weight'",
        ),
        ({"model.layers.0.weight": torch.zeros(2)}, "expected only mm_projector"),
        (
            {"model.mm_projector.0.weight": torch.zeros(2, 2)},
            r"model.mm_projector.0.bias: expected a tensor of shape .*, found none",
        ),
    ],
)
def test_pickles_of_other_things(source, output, projector, tmp_path, content, match):
    torch.save(content, source / "mm_projector.bin")
    with pytest.raises(ValueError, match=match):
        convert(source, output, base_model=tmp_path / "base", log=quiet)
    assert not output.exists()


def test_pickles_are_opened_in_one_place_only():
    """`weights_only=True`, in the converter's reader, and nowhere else in the package."""
    import ast

    found = []
    for room in ("modeling_maya", "processing_maya", "training", "model_card"):
        for path in (PACKAGES / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner = node.func.value
                names = {"torch", "pickle", "dill", "joblib", "cloudpickle"}
                if (
                    node.func.attr in ("load", "loads")
                    and isinstance(owner, ast.Name)
                    and owner.id in names
                ):
                    safe = [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"]
                    assert safe == ["True"], f"{path}:{node.lineno}"
                    found.append(path.name)
    assert set(found) == {"tensors.py"}


def test_output_that_is_in_use(source, output):
    original.write_checkpoint(source)
    output.mkdir(parents=True)
    (output / "precious.txt").write_text("keep me")
    with pytest.raises(
        FileExistsError, match="expected an empty folder or none, found files in it"
    ):
        convert(source, output, log=quiet)
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def test_sources_that_are_none(tmp_path, source, output):
    with pytest.raises(FileNotFoundError, match=r"no-such-folder: no such folder"):
        convert(tmp_path / "no-such-folder", output, log=quiet)
    source.mkdir()
    with pytest.raises(FileNotFoundError, match=r"original/config.json: no such file"):
        convert(source, output, log=quiet)
    (source / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"original/config.json: not valid JSON"):
        convert(source, output, log=quiet)
    original.write_json(source / "config.json", original.config(model_type="llama"))
    with pytest.raises(
        ValueError, match=r"config.json: model_type: expected 'llava_cohere', found 'llama'"
    ):
        convert(source, output, log=quiet)
    original.write_json(source / "config.json", original.config())
    with pytest.raises(FileNotFoundError, match=r"no weights: expected model.safetensors"):
        convert(source, output, log=quiet)
    assert not output.exists()


def test_too_little_disk(source, output, monkeypatch):
    original.write_checkpoint(source)
    usage = type("usage", (), {"free": 1000})()
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"expected at least .* free on the disk, found 1.000 kB"):
        convert(source, output, log=quiet)
    assert not list(output.parent.iterdir())


# Interrupted


def test_an_error_leaves_nothing(source, output, monkeypatch):
    original.write_checkpoint(source)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(to_maya, "custom_object_save", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, output, log=quiet)
    assert not list(output.parent.iterdir())


def test_killed_at_any_step_nothing_loads(source, output):
    """A process is killed at every file operation of a conversion in turn; only the whole result has a config.json."""
    original.write_checkpoint(source)
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(PACKAGES)!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from modeling_maya.llava_cohere import to_maya, write
from modeling_maya.llava_cohere.convert import convert

steps = 0
def counting(function):
    def call(*args, **kwargs):
        global steps
        steps += 1
        if steps == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

write.write_safetensors = counting(write.write_safetensors)
write.write_json = counting(write.write_json)
to_maya.custom_object_save = counting(to_maya.custom_object_save)
to_maya.read_weights = counting(to_maya.read_weights)
write.read_weights = counting(write.read_weights)
os.rename = counting(os.rename)
os.replace = counting(os.replace)
limit = 1
while True:
    child = os.fork()
    if child == 0:
        convert({str(source)!r}, {str(output)!r}, log=lambda line: None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    output = Path({str(output)!r})
    left = sorted(str(path.relative_to(output.parent)) for path in output.parent.rglob("config.json"))
    print(limit, os.WIFSIGNALED(status), left, flush=True)
    if not os.WIFSIGNALED(status):
        break
    limit += 1
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.strip().splitlines()
    assert len(lines) > 5
    for line in lines[:-1]:
        assert line.endswith("True []"), line
    assert lines[-1].endswith("False ['maya/config.json']")
    # What the killed runs left was cleared away by the one that finished.
    assert [path.name for path in output.parent.iterdir()] == ["maya"]
    AutoModelForImageTextToText.from_pretrained(output)


def test_killed_from_outside(source, output):
    original.write_checkpoint(source)
    code = f"""
import sys, time
sys.path.insert(0, {str(PACKAGES)!r})
from modeling_maya.llava_cohere import to_maya
from modeling_maya.llava_cohere.convert import convert
def slow(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(600)
to_maya.custom_object_save = slow
convert({str(source)!r}, {str(output)!r}, log=lambda line: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGTERM)
    process.wait()
    process.stdout.close()
    assert not output.exists()
    left = list(output.parent.iterdir())
    assert len(left) == 1
    with pytest.raises((OSError, ValueError)):
        AutoModelForImageTextToText.from_pretrained(left[0])
    time.sleep(0.1)
    convert(source, output, log=quiet)
    assert [path.name for path in output.parent.iterdir()] == ["maya"]
