"""TRL's preference trainers on rows with pictures: a saved Maya works like a LLaVA, without this package's code."""

import warnings

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from modeling_maya import MayaForConditionalGeneration
from processing_maya import MayaProcessor
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

TURN = [{"role": Value("string"), "content": Value("string")}]
ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _deprecations_of_trl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rows(**columns):
    """Return four rows, each with a picture and a question about it; a column has one text, or four."""
    turn = [{"role": "user", "content": "what is it"}]
    data = {"images": [[tiny_picture(seed)] for seed in range(4)], "prompt": [turn] * 4}
    features = {"images": List(Image()), "prompt": List(TURN[0])}
    for name, text in columns.items():
        texts = text if isinstance(text, list) else [text] * 4
        data[name] = [[{"role": "assistant", "content": each}] for each in texts]
        features[name] = List(TURN[0])
    return Dataset.from_dict(data, Features(features))


def trained(trainer, before) -> list[str]:
    """Return the names of the weights that training changed, after checking that the losses are finite."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    assert all(torch.tensor(losses).isfinite())
    after = trainer.model.state_dict()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_dpo(folder, tmp_path):
    from trl import DPOConfig, DPOTrainer

    model = MayaForConditionalGeneration.from_pretrained(folder)
    trainer = DPOTrainer(
        model,
        ref_model=MayaForConditionalGeneration.from_pretrained(folder),
        args=DPOConfig(output_dir=str(tmp_path), max_length=None, **ARGUMENTS),
        train_dataset=rows(chosen="a cat", rejected="a dog"),
        processing_class=MayaProcessor.from_pretrained(folder),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = trained(trainer, before)
    assert any("multi_modal_projector" in name for name in moved)
    first, last = (
        entry["rewards/margins"]
        for entry in trainer.state.log_history
        if "rewards/margins" in entry
    )
    assert first == pytest.approx(0, abs=1e-4)
    assert last > first


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_online(folder, tmp_path, name):
    import trl

    config = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path), num_generations=2, max_completion_length=6, **ARGUMENTS
    )
    seen = []

    def reward(completions, **columns):
        seen.append(columns.keys())
        return [float(len(one[0]["content"]) + place) for place, one in enumerate(completions)]

    model = MayaForConditionalGeneration.from_pretrained(folder)
    trainer = getattr(trl, f"{name}Trainer")(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=rows(),
        processing_class=MayaProcessor.from_pretrained(folder),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = trained(trainer, before)
    assert any("multi_modal_projector" in name for name in moved)
    assert seen
