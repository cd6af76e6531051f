"""Common parts of the training benchmarks: generated conversations, trainers on them, and single steps.

`maya_trainer` builds the trainer of this package in the same way as `maya train`.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from trl import SFTConfig

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.common.provenance import provenance
from maya_vlm.training.model.attention import choose_attention, set_attention
from maya_vlm.training.model.compiling import compile_layers
from maya_vlm.training.model.freezing import apply_rules
from maya_vlm.training.recipe import CHECKPOINTING, DataRecipe, Rule, checkpointing_fields
from maya_vlm.training.run.trainer import MayaTrainer
from tests.helpers.languages import MINI as LANGUAGES
from tests.helpers.tiny_processing import TEXTS, tiny_tokenizer

# So small that AdamW does all its work but does not change the weights: then every trainer has the same
# loss on the same samples at every step.
RATE = 1e-12
# About the size of LLaVA-Pretrain's photos.
PICTURE = (384, 288)


def environment() -> dict[str, Any]:
    """Return machine, threads, versions and commit, for every results file."""
    return {**provenance("trl", "accelerate")}


@dataclass(frozen=True)
class Texts:
    """Lengths in tokens of a conversation's texts, uniform from (least, most).

    system: length of a system turn that all conversations share, 0 for none.
    """

    answer: tuple[int, int]
    question: tuple[int, int] = (1, 1)
    system: int = 0


def write_rows(folder: Path, images: int, languages: int, texts: Texts, seed: int = 0) -> Path:
    """Write rows of `messages` and `images` about `images` JPEG files, each in the first `languages` languages."""
    random = np.random.default_rng(seed)
    tokenizer = tiny_tokenizer()
    words = {}
    for language in LANGUAGES[:languages]:
        spaced = " " in TEXTS[language]
        pieces = [f" {w}" for w in TEXTS[language].split()] if spaced else list(TEXTS[language])
        counts = tokenizer(pieces, add_special_tokens=False)["input_ids"]
        words[language] = list(zip(pieces, map(len, counts), strict=True))

    def text(language: str, tokens: int) -> str:
        drawn = ""
        while tokens > 0:
            piece, count = words[language][random.integers(len(words[language]))]
            drawn, tokens = drawn + piece, tokens - count
        return drawn.strip()

    def length(bounds: tuple[int, int]) -> int:
        return int(random.integers(bounds[0], bounds[1] + 1))

    (folder / "pictures").mkdir(parents=True)
    system = [{"role": "system", "content": text("en", texts.system)}] if texts.system else []
    rows = []
    for number in range(images):
        name = f"pictures/{number}.jpg"
        # Soft shapes, because noise would give larger files than photos of this size.
        coarse = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC).save(folder / name)
        for language in LANGUAGES[:languages]:
            turns = [
                {"role": "user", "content": text(language, length(texts.question))},
                {"role": "assistant", "content": text(language, length(texts.answer))},
            ]
            row = {"id": f"{number}-{language}", "lang": language, "images": [name]}
            rows.append({**row, "messages": system + turns})
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def arguments(folder: Path, samples: int, **changes: Any) -> SFTConfig:
    """Return the common arguments of all trainers: `samples` rows per step, the file's order, no logs."""
    cuda = torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": samples,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "bf16": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    values = {**values, **changes}
    plain = {name: value for name, value in values.items() if name not in CHECKPOINTING}
    return SFTConfig(**plain, **checkpointing_fields(values))


def maya_trainer(
    model: Any,
    processor: Any,
    rows: Path,
    rules: Sequence[Rule],
    *,
    images: int,
    languages: int,
    folder: Path,
    chat_template: str,
    compiled: bool = False,
    **changes: Any,
) -> MayaTrainer:
    """Return a MayaTrainer on `rows`, with `images` groups of at most `languages` conversations per step.

    The groups are in the file's order, so step n has the same conversations as in a trainer of single rows.
    `compiled`: as with torch_compile. Other arguments are passed to `arguments`; with bf16, trained weights
    are float32, as in `maya train`.
    """
    data = GroupData([DataRecipe(path=str(rows), chat_template=chat_template)])
    apply_rules(model, rules)
    if changes.get("bf16"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    decoder = model.model.language_model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = choose_attention("auto", decoder, device)
    set_attention(decoder, layout)
    compile_layers(decoder, {"torch_compile": compiled}, layout)
    parts = [np.sort(part) for _, part in data.plan(None, languages, seed=0)]
    plan = [(0, part) for part in sorted(parts, key=min)]
    steps = len(plan) // images
    return MayaTrainer(
        model,
        arguments(
            folder,
            1,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **changes,
        ),
        rules=rules,
        languages=data.languages,
        train_dataset=datasets.Dataset.from_dict({"step": range(steps), "rank": [0] * steps}),
        data_collator=GroupCollator(
            data,
            processor,
            attention=layout,
            plan=plan,
            batch_size=images,
        ),
        processing_class=processor,
    )


@dataclass
class Timed:
    """One step: the seconds of its parts, the mean loss over its tokens, and the tokens including padding."""

    collate: float
    forward_backward: float
    optimizer: float
    loss: float
    tokens: int

    @property
    def step(self) -> float:
        return self.collate + self.forward_backward + self.optimizer


class Stepper:
    """Run the steps of a trainer one by one, like its `train`, and time their parts.

    Single steps allow two trainers to alternate. Collation is measured for one batch per step in this
    process; if the trainer's loader has workers, it is the time of waiting for them.
    """

    def __init__(
        self,
        trainer: Any,
        around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.trainer = trainer
        self.around = around  # context of forward and backward
        if trainer.args.gradient_checkpointing:
            trainer.model.activation_checkpointing_enable(
                trainer.args.activation_checkpointing_kwargs
            )
        # It includes autocast if the arguments ask for half precision.
        self.model = trainer.accelerator.prepare_model(trainer.model)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        self.batches: Iterator[Any] = iter(trainer.get_train_dataloader())
        self.batch: Any = None  # the batch of the last step
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, keep_gradients: bool = False) -> Timed:
        """Run the next step. Raise ValueError if no data is left."""
        trainer = self.trainer
        marks = [_now()]
        found, count = trainer.get_batch_samples(self.batches, 1, trainer.args.device)
        if not found:
            raise ValueError("no rows are left: write rows for every step of every round")
        marks.append(_now())
        self.batch = found[0]
        with self.around():
            loss = trainer.training_step(self.model, dict(self.batch), count)
        marks.append(_now())
        if keep_gradients:  # only in a warm-up: the time of the copy counts as the optimizer's
            named = trainer.model.named_parameters()
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
        trainer.accelerator.clip_grad_norm_(self.parameters, trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        marks.append(_now())
        parts = [b - a for a, b in itertools.pairwise(marks)]
        return Timed(*parts, loss=float(loss), tokens=laid_out(self.batch))


def laid_out(batch: dict[str, Any]) -> int:
    """Return the number of positions of a step in the decoder, including padding. A batch is one tensor, or
    rows that MayaTrainer computes one after the other."""
    return sum(row["input_ids"].numel() for row in batch.get("rows", [batch]))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
