"""Parts of a tiny training run, generated: two base models, a dataset and a recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from transformers import CohereForCausalLM, SiglipImageProcessorPil, SiglipVisionModel

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from tests.helpers.tiny import DECODERS, IMAGE_SIZE, TOWERS, enlarge
from tests.helpers.tiny_processing import tiny_processor, tiny_tokenizer

WORDS = {
    "en": ("What is shown?", "a small red boat"),
    "fr": ("Que voit-on ?", "un petit bateau rouge"),
    "hi": ("चित्र में क्या है?", "एक छोटी लाल नाव"),
    "ja": ("何が写っていますか？", "小さな赤い船"),
}


def make_bases(folder: Path) -> tuple[Path, Path]:
    """Write base folders of a tiny vision tower and of a tiny decoder with its tokenizer."""
    vision, language = folder / "vision", folder / "language"
    config_class, fields = TOWERS["siglip"]
    enlarge(SiglipVisionModel(config_class(**fields))).save_pretrained(vision)
    SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(
        vision
    )
    tokenizer = tiny_tokenizer()
    config_class, fields = DECODERS["cohere"]
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = config_class(**{**fields, **ids, "vocab_size": len(tokenizer) + 4})
    enlarge(CohereForCausalLM(config)).save_pretrained(language)
    tokenizer.save_pretrained(language)
    return vision, language


def make_data(
    folder: Path, images: int = 6, languages: tuple[str, ...] = ("en", "fr", "hi")
) -> Path:
    """Write a JSON-lines file of rows with messages and images: every image in every language."""
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        name = f"pictures/{number}.png"
        pixels = random.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        for language in languages:
            question, answer = WORDS[language]
            rows.append(
                {
                    "id": f"{number}-{language}",
                    "images": [name],
                    "lang": language,
                    "task": "name" if number % 2 else "category",
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer + str(number)},
                    ],
                }
            )
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


def make_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a two-stage recipe of a few steps as a mapping, and write its bases and data to `folder`."""
    vision, language = make_bases(folder / "bases")
    data = make_data(folder / "data")
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "seed": 3,
        "model": {
            "vision_tower": str(vision),
            "language_model": str(language),
            "chat_template": "aya",
        },
        "stages": [
            {
                "name": "pretrain",
                "batch_size": 2,
                "group_size": 3,
                "data": [{"path": str(data)}],
                "train": [
                    {"pattern": "multi_modal_projector", "rate": 0.01},
                    {"pattern": ".*", "rate": "frozen"},
                ],
                "args": {"max_steps": 4, "logging_steps": 1, "save_steps": 2},
            },
            {
                "name": "finetune",
                "batch_size": 2,
                "group_size": 2,
                "data": [{"path": str(data), "tasks": {"name": 1.0, "category": 0.5}}],
                "train": [
                    {"pattern": "vision_tower", "rate": "frozen"},
                    {"pattern": "multi_modal_projector", "rate": 0.01},
                    {"pattern": ".*", "rate": 0.001},
                ],
                "args": {"max_steps": 4, "logging_steps": 1, "save_steps": 2},
            },
        ],
    }
    recipe.update(changes)
    return recipe


def write(recipe: dict[str, Any], path: Path) -> Path:
    """Write a mapping as a recipe file."""
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def training_log(folder: Path) -> dict[str, Any]:
    """Return the training log of a stage."""
    return json.loads((folder / "training_log.json").read_text(encoding="utf-8"))


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the log lines of a stage's steps."""
    return [line for line in training_log(folder)["log"] if "mean_loss" in line]


def one_row(
    data: GroupData, *groups: Sequence[int], epoch: int = 0, **options: Any
) -> dict[str, Any]:
    """Return the only row of a step of these groups of conversations, with one process."""
    plan = [(epoch, np.array(group)) for group in groups]
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=len(plan), **options)
    (row,) = collator([{"step": 0, "rank": 0}])["rows"]
    return row
