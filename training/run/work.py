"""Amount of work in a stage: groups, their lengths, steps and evaluations, measured or read from a file."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_maya import MayaConfig

from ..arguments import LOGGING_STEPS
from ..common.reading import read_json_mapping
from ..common.schema import build
from ..model.flops import visible_pairs
from ..recipe import Recipe, StageRecipe, count_steps

# Number of groups that are tokenized to measure lengths.
SAMPLE = 256


@dataclass(frozen=True)
class Work:
    """Amounts of a stage. tokens, pairs, positions, images: means per group of a sample of groups;
    longest: tokens of the sample's longest group. assumed: source of the numbers, if not measured."""

    groups_per_epoch: int
    steps: int
    tokens: float
    pairs: float
    positions: float
    images: float
    longest: int
    assumed: str = ""

    @property
    def amounts(self) -> dict[str, float]:
        """Return the amounts of a mean group, as keyword arguments of `flops.training_flops`."""
        return {name: getattr(self, name) for name in ("tokens", "pairs", "positions", "images")}


def measure_work(recipe: Recipe, stage: StageRecipe, config: MayaConfig) -> Work:
    """Measure the groups and steps of a stage, and the lengths of a sample of its groups.

    Only a tokenizer may be downloaded.

    Raises:
        FileNotFoundError: the data is not on this machine.
        ValueError: the tokenizer is missing, or no sampled row can be used.
    """
    from ..batches.collator import GroupCollator
    from ..batches.open import open_groups
    from ..batches.packing import pack_group

    for source in stage.data:
        if not Path(source.path).exists():
            raise FileNotFoundError(f"no {source.path} here")
    processor = _processor(recipe, config)
    data = open_groups(stage, recipe.seed)
    shuffled = stage.order == "shuffled"
    plan = data.plan(None, stage.group_size, recipe.seed, shuffled=shuffled)
    collator = GroupCollator(data, processor, max_length=stage.args.get("max_length"))
    count = tokens = pairs = positions = images = longest = 0
    for number in range(0, len(plan), max(1, len(plan) // SAMPLE)):
        _, part = plan[number]
        try:
            encoded = [collator.encode(index) for index in part.tolist()]
        except ValueError:
            continue  # training handles bad and long rows by the recipe's policy
        count += 1
        trees = pack_group(encoded, collator.image_token, collator.max_length)
        longest = max(longest, sum(len(tree) for tree in trees))
        images += len({key for item in encoded for key in item.images})
        positions += sum(int(item.trained.sum()) for item in encoded)
        for tree in trees:
            tokens += len(tree)
            pairs += visible_pairs(len(tree.prefix), [len(b) for b in tree.branches])
    if not count:
        raise ValueError(f"stage {stage.name}: no row of a sample of its data can be used")
    return Work(
        len(plan),
        _steps(stage, len(plan)),
        tokens / count,
        pairs / count,
        positions / count,
        images / count,
        longest,
    )


@dataclass(frozen=True)
class AssumedData:
    """Lengths of a dataset that is not on this machine.

    prefix: tokens that the conversations about an image share, without those of the image.
    branches: trained tokens of each conversation about it.
    source: where the numbers come from.
    """

    images_per_epoch: int
    prefix: int
    branches: list[int]
    source: str


def assumed_work(file: Path, stage: StageRecipe, image_tokens: int) -> Work | None:
    """Return the work that `file` describes for a stage whose images have `image_tokens`, or None.

    The file maps a stage's name to the fields of `AssumedData`. The conversations of an image are divided
    into groups of nearly equal size, of at most the stage's group_size.

    Raises:
        ValueError: a value is wrong; one line with the file and key.
    """
    if not file.is_file():
        return None
    values = read_described(file).get(stage.name)
    if values is None:
        return None
    said = build(AssumedData, values, str(file), stage.name)
    if not said.branches:
        raise ValueError(f"{file}: {stage.name}.branches: expected at least one, found none")
    parts = -(-len(said.branches) // stage.group_size)
    groups = [part.tolist() for part in np.array_split(said.branches, parts)]
    count = said.images_per_epoch * parts
    prefix = image_tokens + said.prefix
    return Work(
        groups_per_epoch=count,
        steps=_steps(stage, count),
        tokens=prefix + sum(said.branches) / parts,
        pairs=sum(visible_pairs(prefix, group) for group in groups) / parts,
        positions=sum(said.branches) / parts,
        images=1.0,
        longest=prefix + max(map(sum, groups)),
        assumed=said.source,
    )


def _steps(stage: StageRecipe, groups_per_epoch: int) -> int:
    return count_steps(
        int(stage.args.get("max_steps", 0)),
        float(stage.args.get("num_train_epochs", 1.0)),
        stage.batch_size,
        groups_per_epoch,
    )


def _processor(recipe: Recipe, config: MayaConfig) -> Any:
    """Return the processor of a recipe, made from its base models or loaded from its checkpoint."""
    from processing_maya import MayaImageProcessor, MayaProcessor

    from ..model.assemble import IMAGE, add_placeholder, find_base, open_tokenizer
    from ..model.checkpoint import find_checkpoint, open_processor
    from ..model.templates import find_template

    model = recipe.model
    try:
        if model.checkpoint is not None:
            return open_processor(find_checkpoint(model), model)
        language = find_base(str(model.language_model), "language_model")
        tokenizer = open_tokenizer(language, config.get_text_config().vocab_size)
    except OSError:
        name = model.checkpoint or model.language_model
        raise ValueError(f"no tokenizer of {name} here") from None
    image_token = model.image_token or IMAGE
    add_placeholder(tokenizer, image_token, config.get_text_config().vocab_size)
    height, width = config.vision_image_size
    template = find_template(str(model.chat_template), tokenizer, image_token)
    return MayaProcessor(
        image_processor=MayaImageProcessor(size={"height": height, "width": width}),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=template.text,
        image_token=image_token,
    )


def evaluations(stage: StageRecipe, work: Work) -> int:
    """Return the number of evaluations in a stage, including the one at its end."""
    at_first = int(bool(stage.args.get("eval_on_start")))
    if stage.args.get("eval_strategy", "steps") == "epoch":
        passes = work.steps * stage.batch_size / work.groups_per_epoch
        return at_first + math.ceil(passes)
    asked = stage.args.get("eval_steps") or stage.args.get("logging_steps")
    every = float(asked or LOGGING_STEPS)
    every = math.ceil(work.steps * every) if every < 1 else every
    return at_first + math.ceil(work.steps / every)


def read_described(file: Path) -> dict[str, Any]:
    """Read the JSON mapping in a file that describes missing inputs.

    Raises:
        ValueError: the file is not a JSON mapping; the message names the file.
    """
    try:
        return read_json_mapping(file)
    except ValueError as error:
        raise ValueError(f"{error}; correct it") from None
