"""Recipes: one YAML file describes a run and maps one-to-one to the dataclasses below.

Names and types of all keys are checked before anything is loaded. Messages name the key's path, the
expected type and the value found. Paths that start with "." are relative to the recipe's file; other
paths are relative to the working directory.
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
# Names of chat templates; `own` is the decoder's template.
TEMPLATES = ("maya", "aya", "plain", "own")


@dataclass
class ModelRecipe:
    """The model to train: two bases, or the `checkpoint` of an earlier stage.

    Each is a folder or a Hub repository, optionally at a revision (`user/name@v1`).
    """

    vision_tower: str | None = None
    """A vision tower, such as a SigLIP or CLIP."""
    language_model: str | None = None
    """The decoder, a language model."""
    checkpoint: str | None = None
    """A Maya, whose architecture must not be given again; or an adapter. A first stage with an `adapter`
    continues the adapter; any other first stage starts from its base with the adapter merged."""
    revision: str | None = None
    """The checkpoint's revision, if its name does not include one."""
    projector_kind: Literal["mlp", "pixel_shuffle", "q_former", "gated_cross_attention"] | None = (
        None
    )
    """mlp (default): linear layers for each patch. pixel_shuffle: the same for squares of patches. q_former:
    queries that attend to all patches. gated_cross_attention: Flamingo's blocks before the decoder's layers,
    whose tokens attend to all patches; an image has one token."""
    projector_num_layers: int | None = None
    """Linear layers of the projector, with an activation between them; layers of a Q-Former. Default 2."""
    image_seq_length: int | None = None
    """Tokens of an image, where the projector leaves a choice: the patches over a square number for
    pixel_shuffle (default: over 4), the queries of a q_former (default 32)."""
    cross_attention_interval: int | None = None
    """With gated_cross_attention, the decoder's layers from one block to the next. Default 4."""
    chat_template: str | None = None
    """`maya`, `aya` and `plain` are Maya's own; `own` is the decoder's (or the checkpoint's), with the
    answers marked; or the path of a .jinja file. The template must fit the decoder's tokenizer, see
    templates.py."""
    image_token: str | None = None
    """The token that stands for one patch of an image. `<image>` takes a spare row of the decoder's
    embeddings. For a decoder without spare rows, name a token that it has and does not need, such as
    <|image_pad|>, <|reserved_special_token_0|> or <unused0>."""
    image_aspect: Literal["pad", "square", "crop"] | None = None
    """How an image becomes a square: with a border (default), squeezed, or cut out of its center."""
    vision_feature_layer: int | None = None
    """The layer of the vision tower that the projector reads. Default -2, the layer before last."""
    vision_feature_select_strategy: Literal["full", "default"] | None = None
    """full (default): all patches. default: without the first one, as the original Maya."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. With args.bf16, trained weights are float32 in any case."""
    attention: Literal["auto", "segments", "flex", "dense"] = "auto"
    """How the decoder's attention over shared prefixes is computed; all choices give the same result, see
    attention.py. auto: flex on a GPU, otherwise segments."""


# Defaults for a model built from bases.
MODEL_DEFAULTS: dict[str, Any] = {
    "projector_num_layers": 2,
    "chat_template": "maya",
    "image_aspect": "pad",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "full",
}


@dataclass
class NoiseRecipe:
    """Wrong texts on purpose, for studies of caption quality: see noise.py."""

    swapped: float = 0.0
    """Share of texts that are replaced by that of another image, in the same language and task."""
    wrong_language: float = 0.0
    """Share of texts that are replaced by the same image's text in another language."""


@dataclass
class DataRecipe:
    """One dataset of training conversations."""

    path: str
    """A dataset folder, a .json / .jsonl (also .gz) / .parquet file, or a Hub repository."""
    config: str | None = None
    """The dataset's configuration, such as toxicity_free."""
    split: str = "train"
    """The dataset's split."""
    languages: list[str] = field(default_factory=list)
    """BCP-47 codes to keep; all if empty."""
    tasks: dict[str, float] = field(default_factory=dict)
    """How often an epoch visits the conversations of each task (0.5: a random half of them, drawn again
    each epoch). If tasks are named, all other tasks are dropped."""
    limit: int | None = None
    """Keep at most this many images, drawn at random from the seed."""
    language: str = "und"
    """The BCP-47 code of rows without one."""
    image_folder: str | None = None
    """Where the images are that rows name: a folder, .zip or .tar, local or in the Hub repository of
    `path`. Default: the folder of the rows' file, or the dataset's image table."""
    chat_template: str | None = None
    """A chat template other than the model's, named in the same way."""
    augment: Any = None
    """No longer supported. Only null is accepted, because older saved recipes contain it."""
    streaming: bool = False
    """Read parquet files during training, from a folder or the Hub, see streaming.py. `limit` then keeps
    the first images, and the weight of a task can only be 1.0."""
    data_files: str | None = None
    """The one file of a folder or Hub repository that holds the rows, such as LLaVA's JSON."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository. A resumed run reads the same commit as before."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns for image, text and turns, if several columns match or none does. An empty
    name for image means that rows have no images."""
    noise: NoiseRecipe | None = None
    """Shares of wrong texts, for studies; nothing is replaced by default."""


@dataclass
class Rule:
    """Which parameters learn, and at which rate. The first rule that matches a parameter decides."""

    pattern: str
    """A regular expression that is searched in the parameter's name (re.search)."""
    rate: float | Literal["frozen"]
    """The learning rate, or frozen."""
    top_layers: int | None = None
    """Match only parameters in this many last layers of the decoder."""


@dataclass
class AdapterRecipe:
    """Low-rank matrices trained beside frozen linear layers of the decoder: W + alpha / r * B A."""

    rate: float
    """Learning rate of A; B learns at `rate * lora_plus_ratio`."""
    type: Literal["lora", "dora"] = "lora"
    """dora trains the length of every row of W separately from its direction (arXiv 2402.09353)."""
    r: int = 16
    """Rank: the smaller side of A and B."""
    alpha: int = 32
    """Scale of the adapter; B A is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the input of A."""
    target_modules: str | list[str] | None = None
    """The decoder's linear layers to adapt, by a regular expression (re.search in the name) or by the last
    parts of their names; default all. Vision tower, projector and head never get an adapter: the `train`
    rules decide about these, and about all other parameters."""
    lora_plus_ratio: float = 1.0
    """Ratio of LoRA+ (arXiv 2402.12354); 1 is plain LoRA."""
    quantize: Literal["nf4", "int8"] | None = None
    """Store the decoder's frozen linear layers in 4 bits (nf4: QLoRA, arXiv 2305.14314) or 8 bits (int8:
    LLM.int8(), arXiv 2208.07339)."""
    double_quant: bool = True
    """Also store the constants of nf4 in 8 bits."""


@dataclass
class StageRecipe:
    """One stage of training."""

    name: str
    """Name of the stage, and of its folder in output_dir."""
    data: list[DataRecipe]
    """Training datasets."""
    train: list[Rule]
    """Ordered rules; the first one that matches a parameter's name decides."""
    batch_size: int = 8
    """Groups (one image with its conversations) per optimizer step, over all processes together."""
    group_size: int = 1
    """Most conversations in a group: the number of languages per image, if each language has one."""
    order: Literal["shuffled", "stored"] = "shuffled"
    """Order of the groups: shuffled again in every epoch, or the order in which the data has its images."""
    shuffle_buffer: int = 2048
    """Number of images of streamed data that are held and shuffled together."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """For a row that cannot be read or has nothing to learn: stop the run, or skip the row, count it, and
    list it in the stage's bad_rows.jsonl."""
    on_long_row: Literal["stop", "skip", "shorten"] = "stop"
    """The same for a row longer than args.max_length; `shorten` cuts the end of its text."""
    eval_data: list[DataRecipe] = field(default_factory=list)
    """Held-out rows, given and packed like `data`. Their loss, accuracy and bits per byte, in total and by
    language, are logged as eval_loss, eval_hi/loss, ...: every args.eval_steps, or, with
    args.eval_strategy epoch, after each pass over `data`, and at the end. With
    args.load_best_model_at_end the stage ends with the checkpoint that is best in
    args.metric_for_best_model (loss, hi/accuracy, ...)."""
    early_stopping_patience: int | None = None
    """End the stage after this many evaluations in a row that do not improve the best one by more than
    `early_stopping_threshold`, as in transformers' EarlyStoppingCallback."""
    early_stopping_threshold: float = 0.0
    """Improvements up to this value do not count, see early_stopping_patience."""
    adapter: AdapterRecipe | None = None
    """Low-rank matrices trained beside frozen layers."""
    args: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's SFTConfig, passed on. max_length: most tokens of a packed row; a step is computed
    in as many rows as it needs. torch_compile and its backend and mode have their own implementation, see
    compiling.py."""


@dataclass
class Recipe:
    """A whole run. Each stage starts from the model of the stage before."""

    output_dir: str
    """Folder for the finished model, which is that of the last stage, and for the stages' folders."""
    model: ModelRecipe
    """The model to train."""
    stages: list[StageRecipe]
    """The stages, in order."""
    kind: Literal["maya"] = "maya"
    """Kind of the recipe: base models have recipes of other kinds."""
    seed: int = 0
    """Seed of all random numbers: weights, order of the data, dropout."""
    processes: int | Literal["auto"] = 1
    """Number of processes that share the work, at most one per GPU, or per core without a GPU. auto: one
    per GPU; on CPU, one per core, up to four."""


# Passes over the data if a stage's args set neither max_steps nor num_train_epochs.
EPOCHS = 1.0
# transformers 5.24 renames the first two; recipes may use either name with every release.
CHECKPOINTING = {
    "gradient_checkpointing": bool | None,
    "gradient_checkpointing_kwargs": dict | None,
    "activation_checkpointing": bool | None,
    "activation_checkpointing_kwargs": dict | None,
}


def activation_checkpointing(args: dict[str, Any]) -> tuple[bool, dict[str, Any] | None]:
    """Return whether a stage's args ask for activation checkpointing, and its keyword arguments.

    TRL enables it by default; a recipe has to ask for it.
    """
    on, how = (
        args.get(f"activation_checkpointing{end}", args.get(f"gradient_checkpointing{end}"))
        for end in ("", "_kwargs")
    )
    return bool(on), how


def checkpointing_fields(args: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of activation checkpointing under the installed transformers' names.

    The old names cause warnings in releases that have the new ones, and TRL sets the old ones itself.
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
    """Return the steps of a stage: `max_steps` if positive, otherwise the steps of `epochs`.

    Raises:
        ValueError: if neither is positive, or for more than MAX_STEPS.
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
    """Return the file of a recipe given by path or by the name of a shipped recipe.

    Raises:
        FileNotFoundError: naming the shipped recipes.
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
        f"no recipe {name!r}: expected a file or a shipped recipe, found neither: {hint}"
        f"shipped recipes: {', '.join(names)}"
    )


def load_recipe(path: Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> Recipe:
    """Read, check and resolve a recipe of kind `maya`. Raises ValueError (one line) if it is invalid."""
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


# A stage's name becomes a folder's name.
_NAME = re.compile(r"(?=.{1,64}\Z)[\w-]*[^\W_][\w-]*")
STAGE_NUMBERS = {
    "batch_size": Bounds(least=1, most=2**20),
    "group_size": Bounds(least=1, most=2**20),
    "shuffle_buffer": Bounds(least=1, most=2**31),
    "early_stopping_patience": Bounds(least=1),
    "early_stopping_threshold": Bounds(least=0),
}


def _check(recipe: Recipe, where: str) -> None:
    # Model.
    model = recipe.model
    bases = [model.vision_tower, model.language_model]
    if model.checkpoint is not None:
        decided = {
            "vision_tower", "language_model", "image_token", "projector_kind", "image_seq_length",
            "cross_attention_interval", *MODEL_DEFAULTS,
        }  # fmt: skip
        decided -= {"chat_template", "image_aspect"}
        given = [
            name for name in vars(model) if name in decided and getattr(model, name) is not None
        ]
        if given:
            raise ValueError(
                f"{where}: model.{given[0]}: expected no value, because the checkpoint determines it: "
                "remove it, or give bases instead of model.checkpoint"
            )
    elif None in bases:
        missing = "vision_tower" if model.vision_tower is None else "language_model"
        raise ValueError(
            f"{where}: model.{missing}: expected a folder or Hub repository, found nothing: add it "
            "(or model.checkpoint, the folder of an earlier stage)"
        )
    elif model.revision is not None:
        raise ValueError(
            f"{where}: model.revision: expected only with model.checkpoint: write the revision of a base after "
            f"its name: {model.language_model}@{model.revision}"
        )
    # Run and stages.
    # torch, numpy and Python accept seeds of 32 bits.
    Bounds(least=0, below=2**32).check(recipe.seed, where, "seed")
    if not recipe.stages:
        raise ValueError(f"{where}: stages: expected at least one stage, found none")
    names = [stage.name.casefold() for stage in recipe.stages]
    for i, stage in enumerate(recipe.stages):
        key = f"stages[{i}]"
        if names.index(stage.name.casefold()) != i:
            raise ValueError(
                f"{where}: {key}.name: expected a unique name, found {stage.name!r} in two stages"
            )
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
                    f"{where}: {key}.adapter: expected a finished Maya for the adapter, onto which it can be "
                    "loaded again, found bases: give model.checkpoint, or a stage before this one"
                )
        _check_args(stage, where, f"{key}.args")
    if isinstance(recipe.processes, int) and recipe.processes < 1:
        raise ValueError(f"{where}: processes: expected 1 or more, found {recipe.processes}")


def template_owners(recipe: Recipe) -> list[tuple[str, ModelRecipe | DataRecipe]]:
    """Return the parts of a recipe that may name a chat template, as (key, part)."""
    found: list[tuple[str, ModelRecipe | DataRecipe]] = [("model", recipe.model)]
    for i, stage in enumerate(recipe.stages):
        for part in ("data", "eval_data"):
            sources = enumerate(getattr(stage, part))
            found += [(f"stages[{i}].{part}[{j}]", source) for j, source in sources]
    return found


def _check_names(recipe: Recipe, where: str) -> None:
    """Raise ValueError for malformed names of models, datasets and templates, before they are looked up."""
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
            raise ValueError(
                f"{where}: {key}.chat_template: expected a file, found nothing at {printable(template)}"
            )
        if template == "own" and model.checkpoint is None and model.chat_template != "own":
            # A finished stage keeps only the model's template.
            raise ValueError(
                f"{where}: {key}.chat_template: own: the model's template is {model.chat_template}, so the "
                "decoder's is not kept: set model.chat_template to own, or give the decoder's as a file"
            )


def _check_source(source: DataRecipe, first: DataRecipe, where: str, key: str) -> None:
    if source.streaming != first.streaming:
        raise ValueError(
            f"{where}: {key}.streaming: expected {str(first.streaming).lower()} as for the stage's first "
            "dataset, because a stage streams all of its datasets or none"
        )
    Bounds(least=1).check(source.limit, where, f"{key}.limit")
    if source.augment is not None:
        raise ValueError(
            f"{where}: {key}.augment: expected null, because images are no longer augmented: leave the key out"
        )
    for task, rate in source.tasks.items():
        Bounds(least=0, most=1000).check(rate, where, f"{key}.tasks.{task}")
        if source.streaming and rate != 1:
            raise ValueError(
                f"{where}: {key}.tasks.{task}: expected 1.0, because the rows of a stream are seen once per "
                f"epoch, found {rate:g}: leave the task out, or streaming"
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
                f"{where}: {key}.target_modules: expected a regular expression, found {adapter.target_modules!r}: "
                f"{error}"
            ) from None
    elif adapter.target_modules == []:
        raise ValueError(
            f"{where}: {key}.target_modules: expected at least one name, found none: "
            "leave it out for all linear layers of the decoder"
        )
    sharded = [name for name in ("fsdp", "deepspeed") if args.get(name)]
    if adapter.quantize is not None and sharded:
        raise ValueError(
            f"{where}: {key}.quantize: every process must hold quantized weights unsharded: "
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
                "does not support yet: leave it out"
            )
        if value is False and name.endswith("_strategy"):
            value = "no"  # YAML parses an unquoted no as false
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
    """Resolve paths from the working directory, and fill in defaults."""

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
    # Chat templates given as files.
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
    """Write the resolved recipe, without secrets. Reading it from the same directory gives the same run.

    Args:
        folder: the file's final folder, if it is written elsewhere first.
    """
    values = portable_paths(without_secrets(to_dict(recipe)), folder or path.parent)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    head = "# The recipe of this run, with every default written out (maya train).\n"
    write_text(path, head + text)
