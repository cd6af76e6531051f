"""Incomplete or wrong bases: one line names folder and tensor, and no training starts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel

from maya_vlm.training.model.assemble import build_maya
from maya_vlm.training.run.train import train
from tests.helpers.tiny import TOWERS, enlarge
from tests.helpers.tiny_decoders import save_decoder
from tests.helpers.tiny_maya import save_tiny_maya

from ..run.tiny_run import make_bases, make_recipe, write


@pytest.fixture
def bases(tmp_path) -> tuple[Path, Path]:
    return make_bases(tmp_path)


def tensors(folder: Path, change) -> None:
    """Rewrite the weights of a folder with `change`, a function of the tensors."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*names: str):
    """Drop the tensors whose names contain one of these."""
    return lambda found: {k: v for k, v in found.items() if not any(name in k for name in names)}


def edit(file: Path, **values) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**found, **values}), encoding="utf-8")


def refused(bases, words, kind=ValueError, **options) -> str:
    vision, language = bases
    with pytest.raises(kind, match=words) as error:
        build_maya(str(vision), str(language), chat_template="aya", **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 900
    return str(error.value)


QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_a_decoder_that_lacks_a_tensor(bases):
    tensors(bases[1], without(QUERY))
    told = refused(bases, f"model.language_model: .*1 missing, such as {QUERY}")
    assert str(bases[1]) in told


def test_a_decoder_whose_tensors_have_other_names(bases):
    tensors(bases[1], lambda found: {f"other.{name}": value for name, value in found.items()})
    refused(bases, r"model.language_model: .*missing, such as .*of another model, such as other\.")


def test_a_decoder_with_a_tensor_too_many(bases):
    tensors(bases[1], lambda found: found | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2)})
    refused(bases, "1 of another model, such as model.layers.9.mlp.up_proj.weight")


def test_a_tensor_of_another_shape(bases):
    tensors(bases[1], lambda found: found | {QUERY: torch.zeros(3, 5)})
    refused(bases, rf"1 of another shape, such as {QUERY} \(expected \[32, 32\], found \[3, 5\]\)")


def test_whole_numbers_are_no_weights(bases):
    tensors(bases[1], lambda found: found | {QUERY: found[QUERY].to(torch.int8)})
    refused(bases, f"{QUERY}: expected floating-point weights, found I8 and no quantization_config")


def test_a_head_that_contradicts_the_tie(bases):
    tensors(bases[1], lambda f: f | {"lm_head.weight": f["model.embed_tokens.weight"] + 1})
    refused(bases, r"head \(lm_head.weight\) .*different values, but its config.json ties them")
    edit(bases[1] / "config.json", tie_word_embeddings=False)
    model, _ = build_maya(str(bases[0]), str(bases[1]), chat_template="aya")
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    # Without tying, the files must contain the head.
    tensors(bases[1], without("lm_head.weight"))
    refused(bases, "1 missing, such as lm_head.weight")


def test_a_tower_that_lacks_a_tensor(bases):
    name = "embeddings.patch_embedding.weight"
    tensors(bases[0], without(name))
    refused(bases, f"model.vision_tower: .*1 missing, such as .*{name}")


def test_a_tower_may_lack_what_is_not_used(bases):
    """A Maya never contains the pooling head or the layers after the feature layer."""
    tensors(bases[0], without("head.", "post_layernorm", "encoder.layers.3."))
    model, _ = build_maya(str(bases[0]), str(bases[1]), chat_template="aya")
    assert len(model.model.vision_tower.encoder.layers) == 3


def test_a_two_tower_model_gives_its_vision_tower(bases, tmp_path):
    config_class, fields = TOWERS["siglip"]
    text = {
        "vocab_size": 20,
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_size": 24,
    }
    config = SiglipConfig(text_config=text, vision_config=config_class(**fields).to_dict())
    both = enlarge(SiglipModel(config))
    both.save_pretrained(tmp_path / "both")
    model, _ = build_maya(str(tmp_path / "both"), str(bases[1]), chat_template="aya")
    ours = model.model.vision_tower.state_dict()
    theirs = both.vision_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # The text tower is not needed; parts of the vision tower are.
    tensors(tmp_path / "both", without("text_model"))
    build_maya(str(tmp_path / "both"), str(bases[1]), chat_template="aya")
    tensors(tmp_path / "both", without("layers.0.mlp"))
    refused((tmp_path / "both", bases[1]), "4 missing, such as vision_model.encoder.layers.0.mlp")
    refused(
        (bases[0], tmp_path / "both"),
        "expected a language model, .*type siglip with a vision_config",
    )


def test_bases_that_are_something_else(bases, tmp_path):
    vision, language = bases
    maya = save_tiny_maya(tmp_path / "maya")
    refused((vision, maya), r"is itself a Maya \(maya\): give it as model.checkpoint")
    refused((maya, language), "model.vision_tower: .*is itself a Maya")
    refused((language, vision), "model.vision_tower: .* expected a vision tower, .* of type cohere")
    refused(
        (vision, vision), "model.language_model: .*expected a language model, .*siglip_vision_model"
    )
    refused(
        (vision, tmp_path),
        r"it has no config.json; give a folder in it: language, maya, vision",
        OSError,
    )
    refused((vision, language / "config.json"), "found a file: give the file's folder")


def test_quantized_weights_are_no_base(bases):
    edit(
        bases[1] / "config.json",
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    )
    refused(bases, "model.language_model: .*expected unquantized weights")


@pytest.mark.parametrize("left", ["nothing", "tokenizer_config.json"])
def test_a_decoder_without_its_tokenizer(bases, left):
    for file in bases[1].glob("*token*"):
        if file.name != left:
            file.unlink()
    refused(bases, "model.language_model: .*(expected a tokenizer|cannot be loaded)")


def test_a_tokenizer_of_another_decoder(bases):
    file = bases[1] / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    vocabulary[next(iter(vocabulary))] = 5000
    file.write_text(json.dumps(found), encoding="utf-8")
    refused(bases, "has token ids up to 5000, but the decoder has 412 embeddings")


def test_a_tokenizer_that_knows_nothing(bases):
    file = bases[1] / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["model"] |= {"vocab": {"<UNK>": 1}, "merges": []}
    file.write_text(json.dumps(found), encoding="utf-8")
    refused(bases, "its tokenizer encodes no text|cannot be loaded")


def test_a_decoder_without_padding_token_gets_a_known_one(bases):
    edit(bases[1] / "tokenizer_config.json", pad_token=None)
    _, processor = build_maya(str(bases[0]), str(bases[1]), chat_template="aya")
    assert processor.tokenizer.pad_token == "<PAD>"
    edit(bases[1] / "config.json", pad_token_id=5)
    model, processor = build_maya(str(bases[0]), str(bases[1]), chat_template="aya")
    assert processor.tokenizer.pad_token_id == model.generation_config.pad_token_id == 5


def test_an_image_processor_that_is_damaged_is_not_made_up(bases):
    (bases[0] / "preprocessor_config.json").write_text("{")
    refused(bases, "preprocessor_config.json: not JSON")
    (bases[0] / "preprocessor_config.json").unlink()
    build_maya(str(bases[0]), str(bases[1]), chat_template="aya")


def test_pickled_bases_are_not_read(bases, tmp_path):
    trace = tmp_path / "it-ran"

    class Boom:
        def __reduce__(self):
            return (Path.mkdir, (trace,))

    (bases[1] / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Boom()}, bases[1] / "pytorch_model.bin")
    told = refused(bases, "found only pickles .*use_safetensors=False.*save_pretrained")
    assert str(bases[1]) in told
    assert not trace.exists()
    (bases[1] / "pytorch_model.bin").unlink()
    refused(bases, "no .safetensors weights", FileNotFoundError)


def test_generation_settings_beyond_the_embeddings(bases):
    edit(bases[1] / "generation_config.json", eos_token_id=[6, 9999])
    refused(bases, r"eos_token_id: expected a token id below 412, found \[6, 9999\]|found 9999")
    edit(bases[1] / "generation_config.json", eos_token_id="end")
    refused(bases, "eos_token_id: expected a token id below 412, found 'end'|cannot be loaded")


def test_the_command_says_it_in_one_line_and_trains_nothing(tmp_path):
    recipe = make_recipe(tmp_path)
    tensors(Path(recipe["model"]["language_model"]), without(QUERY))
    maya = Path(sys.executable).with_name("maya")
    done = subprocess.run(
        [str(maya), "train", str(write(recipe, tmp_path / "r.yaml"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert QUERY in done.stderr
    assert not (tmp_path / "run" / "pretrain").exists()


# ------------------------------------------------------------------------------ model.checkpoint


def test_checkpoints_that_are_none_are_refused_before_memory_is_counted(tmp_path, monkeypatch):
    import psutil

    def counted():
        raise AssertionError("memory was counted")

    monkeypatch.setattr(psutil, "virtual_memory", counted)
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][1:]
    run = tmp_path / "runs" / "a"
    (tmp_path / "empty").mkdir()
    save_tiny_maya(run / "pretrain")
    (run / ".work" / "finetune" / "checkpoint-2").mkdir(parents=True)
    (run / ".work" / "manifest.json").write_text("{}")
    weights_only = tmp_path / "weights"
    weights_only.mkdir()
    shutil.copy(run / "pretrain" / "model.safetensors", weights_only)
    for checkpoint, words in (
        (tmp_path / "empty", "it is empty"),
        (run, "an unfinished run; the same command .* give a folder in it: pretrain"),
        (run / ".work", "holds the checkpoints of an unfinished run"),
        (run / ".work" / "finetune", "holds the checkpoints of an unfinished run"),
        (tmp_path / "runs", "it has no config.json"),
        (weights_only, "it has weights but no config.json"),
        (
            tmp_path / "bases" / "language",
            "expected 'maya', found 'cohere': a vision tower or language",
        ),
    ):
        recipe["model"] = {"checkpoint": str(checkpoint)}
        with pytest.raises((ValueError, OSError), match=f"model.checkpoint: .*{words}") as error:
            train(
                str(write(recipe, tmp_path / "r.yaml")),
                output_dir=str(tmp_path / f"to-{checkpoint.name}"),
            )
        assert str(error.value).isprintable()


def test_a_checkpoint_with_a_tensor_missing_or_of_another_shape(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][1:]
    maya = save_tiny_maya(tmp_path / "maya")
    recipe["model"] = {"checkpoint": str(maya)}
    path = str(write(recipe, tmp_path / "r.yaml"))
    name = "model.multi_modal_projector.layers.0.weight"
    tensors(maya, lambda found: found | {name: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=rf"{maya}: .*of another shape, such as {name}"):
        train(path)
    tensors(maya, without(name))
    with pytest.raises(ValueError, match=f"1 missing, such as {name}"):
        train(path, output_dir=str(tmp_path / "other"))


def test_special_tokens_beyond_the_embeddings(bases, tmp_path):
    decoder = save_decoder(tmp_path / "llama", "llama3")
    options = {"chat_template": "own", "image_token": "<|reserved_special_token_0|>"}
    edit(decoder / "tokenizer_config.json", pad_token="[PAD]")
    model, processor = build_maya(str(bases[0]), str(decoder), **options)
    # The first LLaMAs have such a token; the model has no row for it.
    assert processor.tokenizer.pad_token == "<|end_of_text|>"
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    edit(decoder / "tokenizer_config.json", bos_token="<start>")
    refused(
        (bases[0], decoder), r"bos_token: expected a token id below \d+, .*found '<start>' with id"
    )


@pytest.mark.parametrize(
    "values", [{"image_mean": [0.5, [1], 0]}, {"image_std": [0.5, 0.5]}, {"image_mean": ["", 0, 0]}]
)
def test_normalisation_that_cannot_be_done(bases, values):
    edit(bases[0] / "preprocessor_config.json", **values)
    refused(bases, "model.vision_tower: .*cannot be loaded")
