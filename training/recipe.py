"""A run is one YAML file that maps one-to-one to the dataclasses below.

Every key is checked by name and type before anything is loaded; the message names the key's path,
what was found and what was expected. Paths that start with "." are relative to the recipe's own
file, others to the working directory.
"""

import dataclasses
import difflib
import enum
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from .arguments import MAX_STEPS, check_values, is_honoured, refusal
from .common.files import write_text
from .common.paths import expand
from .common.revisions import split_revision
from .common.schema import (
    Bounds,
    build,
    convert,
    join_key,
    portable_paths,
    read_mapping,
    resolve_path,
    to_dict,
    unknown_key,
)
from .common.secrets import without_secrets
from .common.telling import one_line, printable

PACKAGE = Path(__file__).resolve().parent
RECIPES = PACKAGE / "recipes"
# Chat templates by name; `own` is the decoder's.
TEMPLATES = ("maya", "aya", "plain", "own")


@dataclass
class ModelRecipe:
    """Which model is trained: two bases, or the `checkpoint` of an earlier stage.

    Each is a folder or a repository of the Hub, at a revision where the name says so
    (`user/name@v1`).
    """

    vision_tower: str | None = None
    language_model: str | None = None
    checkpoint: str | None = None
    """A Maya, whose architecture may not be given again; or an adapter: a first stage with an `adapter`
    continues it, another starts from its base with the adapter merged."""
    revision: str | None = None
    """The checkpoint's revision, where its name does not say it."""
    projector_num_layers: int | None = None
    chat_template: str | None = None
    """`maya`, `aya` and `plain` are Maya's own; `own` is the one that comes with the decoder (or the
    checkpoint), with the answers marked; or the path of a .jinja file. It must fit the decoder's
    tokenizer, see templates.py."""
    image_token: str | None = None
    """The token of a patch of an image. `<image>` takes a spare row of the decoder's embeddings; for a
    decoder without one, name a token that it has and does not need, such as <|image_pad|>,
    <|reserved_special_token_0|> or <unused0>."""
    image_aspect: Literal["pad", "square", "crop"] | None = None
    vision_feature_layer: int | None = None
    vision_feature_select_strategy: Literal["full", "default"] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "segments", "flex", "dense"] = "auto"
    """How the decoder's attention over shared prefixes is computed, with the same result from each, see
    attention.py. auto: flex on a GPU, segments elsewhere."""


# What a model built from base folders gets where the recipe is silent.
MODEL_DEFAULTS: dict[str, Any] = {
    "projector_num_layers": 2,
    "chat_template": "maya",
    "image_aspect": "pad",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "full",
}


@dataclass
class DataRecipe:
    """One source of training conversations."""

    path: str
    """A dataset folder, a .json / .jsonl (also .gz) / .parquet file, or a Hub repository."""
    config: str | None = None
    """The dataset's configuration, such as toxicity_free."""
    split: str = "train"
    languages: list[str] = field(default_factory=list)
    """BCP-47 codes to keep; all when empty."""
    tasks: dict[str, float] = field(default_factory=dict)
    """How often an epoch has a conversation of each task (0.5: half of them, another half in every
    epoch). Tasks that are not named are left out."""
    limit: int | None = None
    """At most this many images, drawn from the seed."""
    language: str = "und"
    """The code of rows that carry none."""
    image_folder: str | None = None
    """Where the images are that rows name: a folder, a .zip or .tar, here or in the Hub repository of
    `path`. Default: the folder of the rows' own file, or the dataset's table of images."""
    chat_template: str | None = None
    """Another than the model's, named in the same way."""
    augment: Any = None
    """Refused, but for the null that older saved recipes have."""
    streaming: bool = False
    """Read parquet files as they are trained on, from a folder or the Hub, see streaming.py. Then
    `limit` takes the first images, and tasks are in or out (1.0)."""
    data_files: str | None = None
    """The one file of a folder or Hub repository that has the rows, such as LLaVA's JSON."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository. A run that continues reads the commit that it began
    with."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column is which of image, text and turns, where several or none say it by their names. An
    empty name for image says that rows have no images."""


@dataclass
class Rule:
    """Parameters whose name the regular expression finds (re.search) learn at `rate`, or not.

    top_layers: only those of the decoder's last so many layers.
    """

    pattern: str
    rate: float | Literal["frozen"]
    top_layers: int | None = None


@dataclass
class AdapterRecipe:
    """Low-rank matrices that learn beside frozen linear layers of the decoder: W + alpha / r * B A."""

    rate: float
    """Of A; B learns at `rate * lora_plus_ratio`."""
    type: Literal["lora", "dora"] = "lora"
    """dora learns the length of every row of W apart from its direction (arXiv 2402.09353)."""
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] | None = None
    """Which linear layers of the decoder, by a regular expression (re.search in the name) or by the last
    parts of their names; all when left out. Vision tower, projector and head never get an adapter: the
    `train` rules decide about them, and about everything else."""
    lora_plus_ratio: float = 1.0
    """LoRA+ (arXiv 2402.12354); 1 is plain LoRA."""
    quantize: Literal["nf4", "int8"] | None = None
    """Hold the decoder's frozen linear layers in 4 bits (nf4: QLoRA, arXiv 2305.14314) or 8 (int8:
    LLM.int8(), arXiv 2208.07339)."""
    double_quant: bool = True
    """nf4's own constants in 8 bits too."""


@dataclass
class StageRecipe:
    """One stage."""

    name: str
    data: list[DataRecipe]
    train: list[Rule]
    """Ordered; the first rule that finds a parameter's name decides."""
    batch_size: int = 8
    """Groups (one image with its conversations) per optimizer step, over all processes."""
    group_size: int = 1
    """Most conversations in a group: languages per image, where every language has one."""
    order: Literal["shuffled", "stored"] = "shuffled"
    """Of the groups: shuffled, in another order in every epoch, or as the data has its images."""
    shuffle_buffer: int = 2048
    """Images of streamed data that are held and shuffled together."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be read or has nothing to learn stops the run, or is left out, counted, and
    listed in the stage's bad_rows.jsonl."""
    on_long_row: Literal["stop", "skip", "shorten"] = "stop"
    """The same for a row longer than args.max_length, which may also be shortened at its text's end."""
    eval_data: list[DataRecipe] = field(default_factory=list)
    """Held-out rows, in the form of `data`, packed as training's are. Their loss, accuracy and bits per
    byte, in all and by language, are logged as eval_loss, eval_hi/loss, ...: every args.eval_steps, or,
    with args.eval_strategy epoch, after each pass over `data`, and at the end. With
    args.load_best_model_at_end the stage ends with the checkpoint that was best in
    args.metric_for_best_model (loss, hi/accuracy, ...)."""
    early_stopping_patience: int | None = None
    """End the stage after so many evaluations in a row that are no better than the best one by more than
    `early_stopping_threshold`, as transformers' EarlyStoppingCallback."""
    early_stopping_threshold: float = 0.0
    adapter: AdapterRecipe | None = None
    """Low-rank matrices beside frozen layers."""
    args: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's SFTConfig, passed on. max_length: most tokens of a packed row; a step is
    computed in as many rows as it needs. torch_compile and its backend and mode are our own, see
    compiling.py."""


@dataclass
class Recipe:
    """A whole run; the stages follow one another, each from the model the last one left."""

    output_dir: str
    model: ModelRecipe
    stages: list[StageRecipe]
    kind: Literal["maya"] = "maya"
    seed: int = 0
    processes: int | Literal["auto"] = 1
    """How many share the work, at most one for each GPU, or core where there is no GPU. auto: one per
    GPU, or on CPU one per core up to four."""


# Passes over the data where a stage's args say neither max_steps nor num_train_epochs.
EPOCHS = 1.0
# transformers 5.24 renames the older two; a recipe may use either name with every release.
CHECKPOINTING = {
    "gradient_checkpointing": bool | None,
    "gradient_checkpointing_kwargs": dict | None,
    "activation_checkpointing": bool | None,
    "activation_checkpointing_kwargs": dict | None,
}


def activation_checkpointing(args: dict[str, Any]) -> tuple[bool, dict[str, Any] | None]:
    """Whether a stage's args ask to compute activations again in the backward pass, and how.

    TRL does so where nothing is said; a recipe has to ask for it.
    """
    on, how = (
        args.get(f"activation_checkpointing{end}", args.get(f"gradient_checkpointing{end}"))
        for end in ("", "_kwargs")
    )
    return bool(on), how


def checkpointing_fields(args: dict[str, Any]) -> dict[str, Any]:
    """What `args` say of activation checkpointing, under the names that the installed transformers has.

    The older names warn in releases that have the newer ones, and TRL sets the older ones itself.
    """
    from trl import SFTConfig

    new = "activation_checkpointing" in SFTConfig.__dataclass_fields__
    fields: dict[str, Any] = {}
    for end, value in zip(("", "_kwargs"), activation_checkpointing(args), strict=True):
        fields[f"gradient_checkpointing{end}"] = None if new else value
        if new:
            fields[f"activation_checkpointing{end}"] = value
    return fields


# ------------------------------------------------------------------------------ reading


def count_steps(max_steps: int, epochs: float, batch_size: int, groups_per_epoch: int) -> int:
    """Steps of a stage: `max_steps`, or as many as `epochs` take where that is not positive.

    Raises ValueError where neither is, and for more than MAX_STEPS.
    """
    if max_steps > 0:
        return max_steps
    if epochs <= 0:
        raise ValueError(f"args.num_train_epochs: expected more than 0, found {epochs:g}")
    steps = groups_per_epoch * epochs / batch_size
    if steps > MAX_STEPS:
        raise ValueError(
            f"args.num_train_epochs: expected at most {MAX_STEPS:,} steps of {batch_size:,} groups, found "
            f"{steps:.3g}: take fewer epochs or a larger batch_size"
        )
    return max(1, math.ceil(steps))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by the name of a shipped one.

    Raises FileNotFoundError naming the shipped recipes.
    """
    path = Path(expand(name))
    if path.is_file():
        return path
    if not name.endswith((".yaml", ".yml")):
        shipped = RECIPES / f"{name}.yaml"
        if shipped.is_file():
            return shipped
    names = sorted(
        p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml")
    )
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise FileNotFoundError(
        f"no recipe {name!r}: found neither a file nor a shipped recipe; {hint}"
        f"shipped recipes: {', '.join(names)}"
    )


def load_recipe(path: Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> Recipe:
    """Read, check and resolve a recipe of kind `maya`. Raises ValueError (one line) if it is bad."""
    data = read_mapping(path, overrides)
    recipe = build(Recipe, data, str(path))
    if output_dir is not None:
        recipe.output_dir = str(output_dir)
    if not recipe.output_dir.strip():
        option = "--output-dir" if output_dir is not None else f"{path}: output_dir"
        raise ValueError(f"{option}: expected a folder, found an empty text")
    _check(recipe, str(path))
    _resolve(recipe, path.resolve().parent, str(path))
    _check_names(recipe, str(path))
    return recipe


# ------------------------------------------------------------------------------ checking


# A stage's name is that of a folder.
_NAME = re.compile(r"(?=.{1,64}\Z)[\w-]*[^\W_][\w-]*")
STAGE_NUMBERS = {
    "batch_size": Bounds(least=1, most=2**20),
    "group_size": Bounds(least=1, most=2**20),
    "shuffle_buffer": Bounds(least=1, most=2**31),
    "early_stopping_patience": Bounds(least=1),
    "early_stopping_threshold": Bounds(least=0),
}


def _check(recipe: Recipe, where: str) -> None:
    model = recipe.model
    bases = [model.vision_tower, model.language_model]
    if model.checkpoint is not None:
        decided = {"vision_tower", "language_model", "image_token", *MODEL_DEFAULTS}
        decided -= {"chat_template", "image_aspect"}
        given = [
            name for name in vars(model) if name in decided and getattr(model, name) is not None
        ]
        if given:
            raise ValueError(
                f"{where}: model.{given[0]}: the checkpoint decides this; "
                "remove it, or give base folders instead of model.checkpoint"
            )
    elif None in bases:
        missing = "vision_tower" if model.vision_tower is None else "language_model"
        raise ValueError(
            f"{where}: model.{missing}: missing; expected a folder or Hub repository "
            "(or model.checkpoint, the folder of an earlier stage)"
        )
    elif model.revision is not None:
        raise ValueError(
            f"{where}: model.revision: only for model.checkpoint; write the revision of a base behind its "
            f"name: {model.language_model}@{model.revision}"
        )
    # torch, numpy and Python take seeds of 32 bits.
    Bounds(least=0, below=2**32).check(recipe.seed, where, "seed")
    if not recipe.stages:
        raise ValueError(f"{where}: stages: expected at least one stage, found none")
    names = [stage.name.casefold() for stage in recipe.stages]
    for i, stage in enumerate(recipe.stages):
        key = f"stages[{i}]"
        if names.index(stage.name.casefold()) != i:
            raise ValueError(f"{where}: {key}.name: {stage.name!r} is used by two stages")
        if not _NAME.fullmatch(stage.name):
            raise ValueError(
                f"{where}: {key}.name: expected letters, digits, - and _, at most 64, found {stage.name!r}"
            )
        for name, bounds in STAGE_NUMBERS.items():
            bounds.check(getattr(stage, name), where, f"{key}.{name}")
        for name in ("data", "train"):
            if not getattr(stage, name):
                raise ValueError(f"{where}: {key}.{name}: expected at least one item, found none")
        for part in ("data", "eval_data"):
            sources = getattr(stage, part)
            for j, source in enumerate(sources):
                _check_source(source, sources[0], where, f"{key}.{part}[{j}]")
        for j, rule in enumerate(stage.train):
            Bounds(least=1).check(rule.top_layers, where, f"{key}.train[{j}].top_layers")
            if rule.rate != "frozen":
                Bounds(above=0).check(rule.rate, where, f"{key}.train[{j}].rate")
        if stage.early_stopping_patience is not None and not stage.eval_data:
            raise ValueError(
                f"{where}: {key}.early_stopping_patience: expected the stage's eval_data, the held-out "
                "rows, found none: add eval_data, or leave the patience out"
            )
        if stage.adapter is not None:
            _check_adapter(stage.adapter, stage.args, where, f"{key}.adapter")
            if i == 0 and model.checkpoint is None:
                raise ValueError(
                    f"{where}: {key}.adapter: an adapter belongs to a finished Maya that it can be "
                    "loaded onto again; give model.checkpoint, or a stage before this one"
                )
        _check_args(stage, where, f"{key}.args")
    if isinstance(recipe.processes, int) and recipe.processes < 1:
        raise ValueError(f"{where}: processes: expected 1 or more, found {recipe.processes}")


def template_owners(recipe: Recipe) -> list[tuple[str, ModelRecipe | DataRecipe]]:
    """The parts of a recipe that may name a chat template, by key."""
    found: list[tuple[str, ModelRecipe | DataRecipe]] = [("model", recipe.model)]
    for i, stage in enumerate(recipe.stages):
        for part in ("data", "eval_data"):
            sources = enumerate(getattr(stage, part))
            found += [(f"stages[{i}].{part}[{j}]", source) for j, source in sources]
    return found


def _check_names(recipe: Recipe, where: str) -> None:
    """Refuse names of models and templates that name nothing, wherever they would be looked up."""
    model = recipe.model
    for field_name in ("vision_tower", "language_model", "checkpoint"):
        name = getattr(model, field_name)
        if name is not None:
            try:
                split_revision(name, model.revision)
            except ValueError as error:
                raise ValueError(f"{where}: model.{field_name}: {error}") from None
    for key, owner in template_owners(recipe):
        if isinstance(owner, DataRecipe):
            try:
                owner.path, owner.revision = split_revision(owner.path, owner.revision)
            except ValueError as error:
                raise ValueError(f"{where}: {key}.path: {error}") from None
        template = owner.chat_template
        if template is None:
            continue
        if template not in TEMPLATES and not template.endswith(".jinja"):
            raise ValueError(
                f"{where}: {key}.chat_template: expected {', '.join(TEMPLATES)} or the path of a .jinja "
                f"file, found {one_line(repr(template), 80)}"
            )
        if template.endswith(".jinja") and not Path(template).is_file():
            raise ValueError(f"{where}: {key}.chat_template: no file {printable(template)}")
        if template == "own" and model.checkpoint is None and model.chat_template != "own":
            # A finished stage keeps one template, the model's.
            raise ValueError(
                f"{where}: {key}.chat_template: own: the model's is {model.chat_template}, with which the "
                "decoder's is not kept: set model.chat_template to own, or name the decoder's as a file"
            )


def _check_source(source: DataRecipe, first: DataRecipe, where: str, key: str) -> None:
    if source.streaming != first.streaming:
        raise ValueError(
            f"{where}: {key}.streaming: expected {str(first.streaming).lower()} as for the stage's first "
            "data, as either all of a stage's data is streamed or none of it"
        )
    Bounds(least=1).check(source.limit, where, f"{key}.limit")
    if source.augment is not None:
        raise ValueError(
            f"{where}: {key}.augment: images are no longer changed at random: leave the key out"
        )
    for task, rate in source.tasks.items():
        Bounds(least=0, most=1000).check(rate, where, f"{key}.tasks.{task}")
        if source.streaming and rate != 1:
            raise ValueError(
                f"{where}: {key}.tasks.{task}: expected 1.0, as the rows of a stream are seen once an "
                f"epoch, found {rate:g}; leave the task out, or streaming"
            )


ADAPTER_NUMBERS = {
    "rate": Bounds(above=0),
    "r": Bounds(least=1),
    "alpha": Bounds(above=0),
    "dropout": Bounds(least=0, below=1),
    "lora_plus_ratio": Bounds(above=0),
}


def _check_adapter(adapter: AdapterRecipe, args: dict[str, Any], where: str, key: str) -> None:
    for name, bounds in ADAPTER_NUMBERS.items():
        bounds.check(getattr(adapter, name), where, f"{key}.{name}")
    if isinstance(adapter.target_modules, str):
        try:
            re.compile(adapter.target_modules)
        except re.error as error:
            raise ValueError(
                f"{where}: {key}.target_modules: {adapter.target_modules!r} is not a regular "
                f"expression: {error}"
            ) from None
    elif adapter.target_modules == []:
        raise ValueError(
            f"{where}: {key}.target_modules: expected at least one name, found none; "
            "leave it out for all linear layers of the decoder"
        )
    sharded = [name for name in ("fsdp", "deepspeed") if args.get(name)]
    if adapter.quantize is not None and sharded:
        raise ValueError(
            f"{where}: {key}.quantize: quantized weights are held whole by every process; "
            f"remove args.{sharded[0]}, or leave quantize out"
        )


def _check_args(stage: StageRecipe, where: str, key: str) -> None:
    from trl import SFTConfig

    args = stage.args
    hints = typing.get_type_hints(SFTConfig)
    hints = {**CHECKPOINTING, **hints}
    fields = {f.name: f for f in dataclasses.fields(SFTConfig) if f.init}
    known = [*fields, *(name for name in CHECKPOINTING if name not in fields)]
    for name, value in args.items():
        instead = refusal(name, value, fields[name].default if name in fields else None)
        if instead is not None:
            raise ValueError(f"{where}: {join_key(key, name)}: set by maya; use {instead}")
        if name not in known:
            raise ValueError(f"{where}: {unknown_key(join_key(key, name), str(name), known)}")
        if not is_honoured(name):
            raise ValueError(
                f"{where}: {join_key(key, name)}: a field of this release of TRL or transformers that maya "
                "does not know yet: leave it out"
            )
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as false
        args[name] = convert(hints[name], value, where, join_key(key, name))
        for kind in (hints[name], *typing.get_args(hints[name])):
            if isinstance(kind, type) and issubclass(kind, enum.Enum):
                choices = [each.value for each in kind]
                if args[name] not in choices:
                    raise ValueError(
                        f"{where}: {join_key(key, name)}: expected one of {', '.join(choices)}, found "
                        f"{args[name]!r}"
                    )
    check_values(args, bool(stage.eval_data), where, key)


def _resolve(recipe: Recipe, folder: Path, where: str) -> None:
    """Make paths usable from the working directory, and write out what was left to defaults."""

    def resolve(owner: Any, name: str, key: str) -> None:
        value = getattr(owner, name)
        if value is not None:
            try:
                setattr(owner, name, resolve_path(value, folder))
            except ValueError as error:
                raise ValueError(f"{where}: {join_key(key, name)}: {error}") from None

    model = recipe.model
    for name in ("vision_tower", "language_model", "checkpoint"):
        resolve(model, name, "model")
    if model.checkpoint is None:
        for name, default in MODEL_DEFAULTS.items():
            if getattr(model, name) is None:
                setattr(model, name, default)
    # Templates by name or by file.
    for key, owner in template_owners(recipe):
        if owner.chat_template is not None and owner.chat_template.endswith(".jinja"):
            resolve(owner, "chat_template", key)
    for i, stage in enumerate(recipe.stages):
        for part in ("data", "eval_data"):
            for j, source in enumerate(getattr(stage, part)):
                for name in ("path", "image_folder"):
                    resolve(source, name, f"stages[{i}].{part}[{j}]")
    resolve(recipe, "output_dir", "")


# ------------------------------------------------------------------------------ writing


def write_recipe(recipe: Recipe, path: Path, folder: Path | None = None) -> None:
    """Write the resolved recipe, without secrets; reading it again from the same directory gives the
    same run.

    folder: where the file will lie in the end, if not where it is written.
    """
    values = portable_paths(without_secrets(to_dict(recipe)), folder or path.parent)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    head = "# The recipe of this run, with every default written out (maya train).\n"
    write_text(path, head + text)
