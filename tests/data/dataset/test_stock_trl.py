"""Test that stock TRL trains a stock LLaVA on `messages` + `images` rows, with the code of the cards."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, List, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from maya_vlm.model_card.cards.dataset import write_dataset_card
from maya_vlm.training.data.dataset.export import export_messages
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.recipe import checkpointing_fields
from tests.data.tiny_build import make_plan, rows_of, translate, write_source
from tests.helpers.tiny_llava import IMAGE_SIZE, save_tiny_llava

MINI = Path(__file__).parents[3] / "training" / "data" / "mini"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    write_source(folder / "in", rows_of(25))
    plan = make_plan(folder, layout=LayoutPlan(images="bytes"))
    translate(plan)
    assemble(plan, progress=False)
    write_dataset_card(plan.folder / "dataset")
    return plan.folder / "dataset"


def snippet(card):
    """Return the card's TRL code without the last line, which starts the training."""
    (block,) = (b for b in card.read_text().split("```python\n")[1:] if "SFTTrainer" in b)
    code, end = block.split("```")[0].rsplit("trainer.train()", 1)
    assert not end.strip()
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 2
    return code


def trained(code, llava, tmp_path, path):
    """Train two steps of three rows; return the rows and the model's inputs."""
    for old, new in (
        ('"llava-hf/llava-1.5-7b-hf"', repr(str(llava))),
        ("SFTConfig(", f"SFTConfig({str(tmp_path / 'out')!r}, **settings, "),
        ('"path/to/this/folder"', "path"),
        ("load_dataset(path, ", f"load_dataset(path, cache_dir={str(tmp_path / 'cache')!r}, name="),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    settings = {
        **checkpointing_fields({}),
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    scope = {"settings": settings, "path": str(path)}
    exec(code, scope)
    trainer, seen = scope["trainer"], []
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append({k: kwargs[k] for k in ("pixel_values", "labels")}),
        with_kwargs=True,
    )
    result = trainer.train()
    assert result.global_step == 2
    assert math.isfinite(result.training_loss)
    return scope["rows"], seen


def check(rows, seen, llava):
    """Check that every picture in the inputs is a row's picture, as LLaVA's processor converts it."""
    processor = AutoProcessor.from_pretrained(llava)
    made = processor.image_processor([row["images"][0] for row in rows], return_tensors="pt")
    assert len(seen) == 2
    for step in seen:
        assert step["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
        for values in step["pixel_values"]:
            assert any(torch.equal(values, each) for each in made["pixel_values"])
        assert (step["labels"] != -100).any(dim=1).all()
    first, second = seen[0]["pixel_values"], seen[1]["pixel_values"]
    assert not torch.equal(first, second)


def test_trl_trains_on_the_config_of_a_built_dataset(built, llava, tmp_path):
    card = built / "README.md"
    rows, seen = trained(snippet(card), llava, tmp_path, built)
    assert set(rows["lang"]) == {"en", "fr", "hi"}
    check(rows, seen, llava)


def test_trl_trains_on_the_config_of_mini(llava, tmp_path):
    code = snippet(MINI / "README.md").replace('split="train"', 'split="train[:6]"')
    code = code.replace("load_dataset(path", 'load_dataset("path/to/this/folder"')
    rows, seen = trained(code, llava, tmp_path, MINI)
    assert len(rows) == 6
    check(rows, seen, llava)


def test_trl_trains_on_an_export(built, llava, tmp_path):
    folder = tmp_path / "rows"
    export_messages(built, folder)
    rows, seen = trained(snippet(folder / "README.md"), llava, tmp_path, folder)
    assert len(rows) == 25 + 23 + 24
    check(rows, seen, llava)


def test_rows_of_several_pictures_and_of_none_go_through_trls_collator(llava):
    """The format allows both; pictures go before the first question, in order."""
    processor = AutoProcessor.from_pretrained(llava)
    red, blue = (Image.new("RGB", (20, 14), colour) for colour in ("red", "blue"))
    talk = [
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "Both."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No."},
    ]
    rows = [
        {"images": [red, blue], "messages": talk},
        {"images": [], "messages": talk[2:]},
        {"images": [blue], "messages": talk[:2]},
    ]
    rows = Dataset.from_list(rows).cast_column("images", List(ImageFeature()))
    batch = DataCollatorForVisionLanguageModeling(processor)(list(rows))
    expected = processor.image_processor([red, blue, blue], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert (placeholders / placeholders[2]).tolist() == [2, 0, 1]
    text = processor.decode(batch["input_ids"][0])
    assert text.index("<image>") < text.index("Which?") < text.index("Both.") < text.index("And?")


def test_the_rows_of_mini_are_read_as_they_were_written(tmp_path):
    rows = load_dataset(str(MINI), "messages", split="validation", cache_dir=str(tmp_path))
    assert {type(turn["content"]) for row in rows for turn in row["messages"]} == {str}
