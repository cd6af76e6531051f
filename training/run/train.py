"""`maya train`: run the stages of a recipe, one after the other, so that it can be killed any time.

Layout of an output folder::

    runs/mini/                 the model of the last stage, ready for the Hub, with recipe.yaml
    runs/mini/pretrain/        the model each stage ended with, and its training_log.json
    runs/mini/finetune/
    runs/mini/finetune/adapter/  of a stage with an adapter: what it learned alone, for peft
    runs/mini/.work/           manifest of the run, checkpoints of the stage in progress

A folder that is not whole is never under its final name: models and checkpoints are written
elsewhere and renamed. The manifest holds the recipe and the content of its inputs; a command whose
recipe differs is refused rather than mixed with old work.
"""

import contextlib
import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..arguments import LOGGING_STEPS
from ..common.files import write_json
from ..common.secrets import without_secrets
from ..common.signals import LAUNCHER, Interruption, Stopped, end_with_parent, handling, stopping
from ..common.telling import one_line, printable
from ..recipe import (
    CHECKPOINTING,
    EPOCHS,
    AdapterRecipe,
    Recipe,
    StageRecipe,
    checkpointing_fields,
    count_steps,
    find_recipe,
    load_recipe,
    template_owners,
    write_recipe,
)
from .checkpoints import newest_whole, read_state, writing
from .manifest import (
    MANIFEST,
    WORK,
    check_manifest,
    check_stage_inputs,
    make_manifest,
    pin,
    read_manifest,
    write_manifest,
)
from .processes import count_processes, start, threads_per_process

LOCK = "lock"
LOG = "training_log.json"
BAD_ROWS = "bad_rows.jsonl"
PICTURES = "pictures.{}.parquet"
TIMEOUT = 7200  # seconds that processes wait for one another


def train(
    recipe: str,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    trust_remote_code: bool = False,
    restart: bool = False,
) -> Path:
    """Run a recipe of kind `maya` to its end, continuing where the same command stopped before.

    Args:
        recipe: a YAML file, or the name of a shipped one (`mini`).
        overrides: `key=value` changes, such as `stages.0.args.max_steps=10`.
        output_dir: where to write, instead of the recipe's output_dir.
        trust_remote_code: allow code that comes with the base models to run.
        restart: delete what an earlier run left in output_dir first.

    Returns the folder of the finished model.

    Raises:
        ValueError, FileNotFoundError, MemoryError: one line naming what is wrong with the recipe,
            the data or the models, what was expected, and what to do.
    """
    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides, output_dir)
    if "WORLD_SIZE" in os.environ:  # started by torchrun or accelerate launch
        return run_recipe(loaded, trust_remote_code, restart)
    count = count_processes(loaded)
    if count == 1:
        return run_recipe(loaded, trust_remote_code, restart)
    start(run_recipe, count, loaded, trust_remote_code, restart)
    return Path(loaded.output_dir)


# ------------------------------------------------------------------------------ the run


def run_recipe(recipe: Recipe, trust_remote_code: bool, restart: bool) -> Path:
    """Run the stages of a recipe in this process, alone or as one of several that train together."""
    if launcher := os.environ.get(LAUNCHER):
        end_with_parent(int(launcher))
    with stopping("the same command continues"):
        return _run_stages(recipe, trust_remote_code, restart)


def _run_stages(recipe: Recipe, trust_remote_code: bool, restart: bool) -> Path:
    import torch
    import transformers
    from accelerate import PartialState

    # What is printed is ours; the libraries' bars and warnings about their own defaults are not
    # for users.
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    cuda = torch.cuda.is_available()
    # Ranks wait while the first one reads data, or merges and writes a large model.
    seconds = max(int(stage.args.get("ddp_timeout", TIMEOUT)) for stage in recipe.stages)
    state = PartialState(cpu=not cuda, timeout=timedelta(seconds=seconds))
    if not cuda:
        threads = threads_per_process(int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", threads)))
    check_stages(recipe, state)
    output = Path(recipe.output_dir)
    work = output / WORK
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            anew = restart and (work / MANIFEST).is_file()
            manifest = make_manifest(recipe)
            if not anew:
                check_manifest(output, manifest)
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(work / LOCK, output))
            if anew:
                _clear(output, recipe)
            else:  # another run may have begun and ended before the lock was held
                if not check_manifest(output, manifest):
                    _clear_work(output)
                _check_pictures(recipe, output)
            write_manifest(output, manifest)
        state.wait_for_everyone()
        pin(recipe, read_manifest(output))
        if state.is_main_process:
            write_recipe(recipe, output / "recipe.yaml")
        trained = False
        for number, stage in enumerate(recipe.stages):
            folder = output / stage.name
            if (folder / "config.json").is_file():
                _say(state, f"stage {stage.name}: finished before, in {folder}")
                continue
            if trained and state.is_main_process:
                check_stage_inputs(output, stage)
            previous = output / recipe.stages[number - 1].name if number else None
            stop = _run_stage(recipe, stage, previous, folder, trust_remote_code, state)
            trained = True
            if stop is not None and stage is not recipe.stages[-1]:
                raise Stopped(
                    f"stage {stage.name}: asked to stop, the stage is finished; the same command "
                    "continues with the next",
                    stop,
                )
        if state.is_main_process:
            with writing(output):
                _publish(output / recipe.stages[-1].name, output)
        state.wait_for_everyone()
    return output


def check_stages(recipe: Recipe, state: Any) -> None:
    """Raise ValueError, in one line, for args that cannot be honoured here, before anything is loaded."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from ..arguments import check_optimizer, check_packages
    from ..model.adapters import check_bitsandbytes

    for stage in recipe.stages:
        check_bitsandbytes(stage)
        args = _arguments(recipe, stage, Path(recipe.output_dir) / stage.name, state)
        # While transformers knows of a ZeRO-3 run, it cuts every model that is made among the ranks.
        unset_hf_deepspeed_config()
        check_optimizer(args, f"stage {stage.name}: args")
        if state.is_main_process:
            check_packages(args, f"stage {stage.name}: args")


def _check_pictures(recipe: Recipe, output: Path) -> None:
    from .watched import check

    for stage in recipe.stages:
        finished = (output / stage.name / "config.json").is_file()
        check(stage, output / WORK / PICTURES.format(stage.name), finished)


def _say(state: Any, text: str) -> None:
    if state.is_main_process:
        print("\n".join(map(printable, text.split("\n"))), flush=True)


def _run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    previous: Path | None,
    folder: Path,
    trust_remote_code: bool,
    state: Any,
) -> int | None:
    """Train a stage, or what is left of it; returns the signal that asked to stop after its end, if any.

    Raises Stopped when it was asked before that.
    """
    import datasets
    import torch
    from transformers import set_seed

    from ..batches.collator import GroupCollator
    from ..batches.open import open_groups
    from ..model.adapters import add_adapter
    from ..model.attention import choose_attention, set_attention
    from ..model.compiling import compile_layers
    from ..model.freezing import apply_rules, format_table
    from .held_out import HeldOut
    from .schedule import Schedule
    from .trainer import MayaTrainer, quiet_callbacks
    from .watched import note

    started = time.monotonic()
    _say(state, f"\nstage {stage.name}: {previous or recipe.model.checkpoint or 'from the bases'}")
    # The model of the stage before is a cycle of references, and its memory kept for reuse.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    check_memory(recipe, stage, previous, state, trust_remote_code)
    work = folder.parent / WORK
    with state.main_process_first():
        data = open_groups(stage, recipe.seed, pinned=work / f"{stage.name}.files.json")
        held = None
        if stage.eval_data:
            held = open_groups(
                dataclasses.replace(stage, data=stage.eval_data),
                recipe.seed,
                pinned=work / f"{stage.name}.eval_files.json",
            )
    for line in [*data.report, data.summary()]:
        _say(state, "  " + line)
    if held is not None:
        for line in [*held.report, held.summary()]:
            _say(state, "  held out: " + line)
        _check_metric(stage, held.languages)
    if state.is_main_process:
        opened = [data] if held is None else [data, held]
        if told := note(stage, opened, work / PICTURES.format(stage.name)):
            _say(state, "  " + told)
    set_seed(recipe.seed)
    model, processor = _load(recipe, stage, previous, trust_remote_code)
    if stage.adapter is not None:
        add_adapter(model, stage.adapter, stage.train)
    rows = apply_rules(model, stage.train, stage.adapter)
    if stage.adapter is not None:
        _continue_adapter(recipe, stage.adapter, previous, model, state)
    _say(state, format_table(rows))

    args = _arguments(recipe, stage, folder, state)
    if args.bf16:
        # In bfloat16 a small step rounds to nothing: what learns is kept in float32.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    decoder = model.model.language_model
    half = args.bf16 or args.fp16 or decoder.dtype != torch.float32
    layout = choose_attention(recipe.model.attention, decoder, state.device.type, half)
    set_attention(decoder, layout)
    compile_layers(decoder, stage.args, layout)
    _say(state, f"attention: {layout}")

    per_step = stage.batch_size
    shuffled = stage.order == "shuffled"
    per_epoch = len(data.plan(None, stage.group_size, recipe.seed, shuffled=shuffled))
    steps = count_steps(args.max_steps, args.num_train_epochs, per_step, per_epoch)
    groups = steps * per_step
    if args.max_steps <= 0:  # epochs: the last step has what is left, and nothing of the next
        groups = min(groups, math.ceil(per_epoch * args.num_train_epochs))
    args.max_steps = steps
    plan = data.plan(groups, stage.group_size, recipe.seed, shuffled=shuffled)
    _say(
        state,
        f"{args.max_steps:,} steps of {per_step} groups of at most {stage.group_size} conversations: "
        f"{groups / per_epoch:.2f} passes over the data",
    )
    args.num_train_epochs = 1.0
    schedule = Schedule(
        save=args.save_strategy.value,
        per_step=per_step,
        groups=groups,
        per_epoch=per_epoch,
        metric=_metric(args),
        greater=bool(args.greater_is_better),
        patience=stage.early_stopping_patience,
        threshold=stage.early_stopping_threshold,
    )
    # The schedule decides; for Trainer any strategy but `no` keeps the best step in its state.
    args.save_strategy = type(args.save_strategy)(
        "steps" if schedule.save == "best" else schedule.save
    )
    found = _newest_checkpoint(Path(args.output_dir), bool(args.load_best_model_at_end), state)
    if found is not None:
        _say(state, f"continuing from {found}")
        args.eval_on_start = False
        done = read_state(found)
        if schedule.stops_early(done["log_history"]):
            args.max_steps = done["global_step"]
    ranks = state.num_processes
    dataset = datasets.Dataset.from_dict(
        {
            "step": [step for step in range(args.max_steps) for _ in range(ranks)],
            "rank": list(range(ranks)) * args.max_steps,
        }
    )
    options: dict[str, Any] = {
        "layout": layout,
        "max_length": stage.args.get("max_length"),
        "batch_size": per_step,
        "ranks": ranks,
        "on_bad_row": stage.on_bad_row,
        "on_long_row": stage.on_long_row,
    }
    held_out = None
    if held is not None:
        pass_over = held.plan(None, stage.group_size, recipe.seed, shuffled=False)
        held_out = HeldOut(
            GroupCollator(held, processor, plan=pass_over, **options), held.languages
        )
    trainer = MayaTrainer(
        model,
        args,
        rules=stage.train,
        languages=data.languages,
        schedule=schedule,
        held_out=held_out,
        adapter=stage.adapter,
        train_dataset=dataset,
        eval_dataset=None if held_out is None else dataset,  # asked for, and not read
        data_collator=GroupCollator(data, processor, plan=plan, **options),
        processing_class=processor,
    )
    quiet_callbacks(trainer, stage.name)
    trainer.bad_rows_file = work / f"{stage.name}.bad_rows.{state.process_index}.jsonl"
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked and state.num_processes == 1:
            raise Interruption(number)  # asked for the second time
        asked.append(number)
        trainer.ask_to_stop()

    # The trainer saves after the step in progress and stops; with no step left, the stage is finished
    # first.
    with handling(ask):
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
        stop = signal.Signals(asked[0]) if asked else signal.SIGTERM
        if trainer.is_finished:
            set_attention(decoder, "dense")
            _finish_stage(recipe, stage, previous, folder, trainer, rows, started, state)
            return stop if trainer.is_asked_to_stop() else None
    raise Stopped(
        f"stage {stage.name}: asked to stop, saved after step {trainer.state.global_step} of "
        f"{args.max_steps}; the same command continues",
        stop,
    )


def _metric(args: Any) -> str | None:
    """The logged name of the metric that decides which checkpoint is the best."""
    name = args.metric_for_best_model
    return name if name is None or name.startswith("eval_") else f"eval_{name}"


def _check_metric(stage: StageRecipe, languages: Sequence[str]) -> None:
    """Raise ValueError for a metric of a language that no held-out row has."""
    name = str(stage.args.get("metric_for_best_model") or "loss").removeprefix("eval_")
    language = name.rpartition("/")[0]
    if language and language not in languages:
        raise ValueError(
            f"stage {stage.name}: args.metric_for_best_model: expected a language of eval_data "
            f"({', '.join(languages)}), found {language!r}"
        )


def _newest_checkpoint(folder: Path, best: bool, state: Any) -> Path | None:
    """The checkpoint that all ranks continue from; see `newest_whole`, which the first one asks."""
    from accelerate.utils import broadcast_object_list

    found: list[Path | None] = [None]
    if state.is_main_process:
        found = [newest_whole(folder, best, lambda line: _say(state, line))]
    broadcast_object_list(found)
    return found[0]


def _continue_adapter(
    recipe: Recipe, adapter: AdapterRecipe, previous: Path | None, model: Any, state: Any
) -> None:
    """Give a fresh adapter the values of the one that the stage starts from, if that is one."""
    from ..common.adapters import Adapter
    from ..model.adapters import check_continued, load_adapter
    from ..model.checkpoint import find_checkpoint

    found = find_checkpoint(recipe.model, previous)
    if isinstance(found, Adapter):
        check_continued(found, adapter)
        load_adapter(model, found.weights.parent, more=True)
        _say(state, f"continues the adapter of {found.model}, on {found.base}")


def _finish_stage(
    recipe: Recipe,
    stage: StageRecipe,
    previous: Path | None,
    folder: Path,
    trainer: Any,
    rows: Sequence[Any],
    started: float,
    state: Any,
) -> None:
    """Write what a stage learned, its log and its bad rows to `folder`, and drop its checkpoints.

    Args:
        rows: of the printed table. started: time.monotonic() when the stage began.
    """
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from ..model.adapters import ADAPTER, merge_adapter
    from ..model.checkpoint import base_of, find_checkpoint

    processor = trainer.processing_class
    temporary = folder.parent / WORK / f"{folder.name}.model"
    if state.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    state.wait_for_everyone()
    trainer.check_weights()
    try:
        with writing(folder.parent):
            trainer.save_model(str(temporary / ADAPTER if stage.adapter else temporary))
            # While transformers knows of a ZeRO-3 run, it cuts every model that is made among the ranks.
            unset_hf_deepspeed_config()
            if stage.adapter is not None and state.is_main_process:
                base = base_of(find_checkpoint(recipe.model, previous))
                dtype = getattr(torch, recipe.model.dtype)
                merge_adapter(base, temporary / ADAPTER, dtype).save_pretrained(temporary)
                for place in (temporary, temporary / ADAPTER):
                    processor.save_pretrained(place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if state.is_main_process:
        write_recipe(recipe, temporary / "recipe.yaml", folder)
        lists = sorted((folder.parent / WORK).glob(f"{stage.name}.bad_rows.*.jsonl"))
        bad = _merge_bad_rows(lists, temporary / BAD_ROWS)
        for line in bad:
            _say(state, "  " + line)
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        write_json(
            temporary / LOG,
            {
                "stage": stage.name,
                "steps": trainer.state.global_step,
                **({} if best is None else {"best_step": best}),
                "seconds": round(time.monotonic() - started, 1),
                "processes": state.num_processes,
                "device": str(state.device),
                "peak": trainer.peak_source,
                "table": [vars(row) for row in rows],
                "data": trainer.data_collator.data.summary(),
                "bad_rows": bad,
                "log": without_secrets(trainer.state.log_history),
            },
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        # Killed here, the next run finds a finished stage and no need of these.
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        for file in lists:
            file.unlink()
        print(
            f"stage {stage.name}: done in {time.monotonic() - started:.0f} s, {folder}", flush=True
        )
    state.wait_for_everyone()


def _merge_bad_rows(files: Sequence[Path], target: Path) -> list[str]:
    """Merge the ranks' lists into `target`, each row once; returns what was left out, in words."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                # Ids repeat; a row's number in its file does not, and a file may be several times in the data.
                place = (row.get("data"), row.get("row"))
                identity = place if None not in place else (row["id"], row["language"])
                rows.setdefault((row["path"], row["action"], *identity), row)
            except ValueError:  # empty, or the last line of a killed run: its row was met again
                continue
    counts = Counter((path, action) for path, action, *_ in rows)
    if rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows.values()]
        text = "\n".join(lines) + "\n"
        target.write_bytes(text.encode("utf-8", "backslashreplace"))
    return [
        f"{path}: {count:,} rows {action}, listed in {target.name}"
        for (path, action), count in sorted(counts.items())
    ]


def _load(
    recipe: Recipe, stage: StageRecipe, previous: Path | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """The model and processor a stage starts from, quantized where its adapter says so."""
    import torch

    model = recipe.model
    dtype = getattr(torch, model.dtype)
    named = dict.fromkeys(owner.chat_template for _, owner in template_owners(recipe))
    further = [name for name in named if name not in (None, model.chat_template)]
    if previous is None and model.checkpoint is None:
        from ..model.assemble import IMAGE, build_maya

        assert model.projector_num_layers is not None
        assert model.vision_feature_layer is not None
        return build_maya(
            str(model.vision_tower),
            str(model.language_model),
            projector_num_layers=model.projector_num_layers,
            chat_template=str(model.chat_template),
            further_templates=further,
            image_token=model.image_token or IMAGE,
            image_aspect=str(model.image_aspect),
            vision_feature_layer=model.vision_feature_layer,
            vision_feature_select_strategy=str(model.vision_feature_select_strategy),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    from ..model.checkpoint import find_checkpoint, load_checkpoint

    options = {}
    if stage.adapter is not None and stage.adapter.quantize is not None:
        from ..model.adapters import quantization

        options["quantization_config"] = quantization(stage.adapter, dtype)
    return load_checkpoint(
        find_checkpoint(model, previous),
        model,
        # A stage with an adapter continues that of the checkpoint.
        merged=stage.adapter is None,
        further_templates=further,
        **options,
    )


def _arguments(recipe: Recipe, stage: StageRecipe, folder: Path, state: Any) -> Any:
    """The SFTConfig of a stage: our defaults, the recipe's args over them, then what is fixed."""
    import torch
    from trl import SFTConfig

    from ..model.compiling import ARGUMENTS as COMPILE

    cuda = torch.cuda.is_available()
    rates = [rule.rate for rule in stage.train if rule.rate != "frozen"]
    rates += [stage.adapter.rate] if stage.adapter else []
    values: dict[str, Any] = {
        "learning_rate": max((float(r) for r in rates), default=0.0),
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": "cosine",
        "bf16": cuda,
        "max_length": None,
        "logging_steps": LOGGING_STEPS,
        "save_steps": 500,
        "save_total_limit": 2,
        "report_to": "none",
        # A loss that is not a number ends the run.
        "logging_nan_inf_filter": False,
        "log_level_replica": "error",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": cuda,
        "use_cpu": not cuda,
    }
    values.update(
        (k, v) for k, v in stage.args.items() if k not in COMPILE and k not in CHECKPOINTING
    )
    values.update(checkpointing_fields(stage.args))
    if os.environ.get("HF_TOKEN"):
        values.pop("hub_token", None)
    if stage.eval_data:
        values.setdefault("eval_strategy", "steps")
        if stage.early_stopping_patience is not None or values.get("save_strategy") == "best":
            values.setdefault("metric_for_best_model", "loss")
        if values.get("greater_is_better") is None:
            metric = str(values.get("metric_for_best_model") or "loss")
            values["greater_is_better"] = metric.endswith("accuracy")
    if state.num_processes == 1:  # Trainer refuses what needs no sharding
        values.pop("fsdp", None)
        values.pop("fsdp_config", None)
    values.update(
        output_dir=str(folder.parent / WORK / stage.name),
        seed=recipe.seed,
        data_seed=recipe.seed,
        per_device_train_batch_size=1,  # one share of a step, however many rows
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )
    if values.get("report_to") not in ("none", [], None):
        values.setdefault("run_name", f"{folder.parent.name}-{stage.name}")
    try:
        args = SFTConfig(**values)
        if args.n_gpu > 1:
            # One process sees all GPUs and uses one: DataParallel is for nobody.
            args._n_gpu = 1
        return args
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(f"stage {stage.name}: args: {one_line(str(error), 300)}") from None


# ------------------------------------------------------------------------------ memory


def check_memory(
    recipe: Recipe, stage: StageRecipe, previous: Path | None, state: Any, trust: bool
) -> None:
    """Raises MemoryError, in one line, when the model and its training state cannot fit."""
    import psutil
    import torch

    from ..model.assemble import base_configs
    from ..model.checkpoint import checkpoint_config, find_checkpoint
    from ..model.freezing import table
    from .estimate import WITHOUT_FSDP, maya_config, sharding, stage_memory

    source = recipe.model
    if previous is None and source.checkpoint is None:
        bases = base_configs(str(source.vision_tower), str(source.language_model), trust)
        config = maya_config(recipe, *bases)
    else:
        config = checkpoint_config(find_checkpoint(source, previous))
    dtype, count = getattr(torch, source.dtype), state.num_processes
    mixed = bool(stage.args.get("bf16", torch.cuda.is_available()))
    shards = sharding(stage.args, count, os.environ, torch.cuda.is_available())
    if stage.args.get("fsdp") and shards in WITHOUT_FSDP:
        _say(state, "  " + WITHOUT_FSDP[shards])
    model, memory = stage_memory(config, stage, dtype, mixed, shards, count)
    needed, rows = memory.resident, table(model, stage.train, stage.adapter)
    total = sum(row.parameters for row in rows)
    trained = sum(row.parameters for row in rows if row.rate is not None)
    if torch.cuda.is_available():
        free, place = torch.cuda.mem_get_info(state.local_process_index)[0], "GPU memory"
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        free, place = psutil.virtual_memory().available // max(1, local), "memory"
    if needed > free:
        raise MemoryError(
            f"stage {stage.name}: too little {place}: weights, gradients and optimizer state of "
            f"{total:,} parameters ({trained:,} trained) take {needed / 2**30:.1f} GiB a process, "
            f"{free / 2**30:.1f} GiB are free; train fewer parts, use dtype bfloat16, an adapter, "
            "quantized weights, an 8-bit optimizer or fsdp, or a larger machine"
        )


# ------------------------------------------------------------------------------ the output folder


@contextlib.contextmanager
def _lock(path: Path, output: Path) -> Iterator[None]:
    """Hold the output folder; two runs must not write to it at once. Freed when the process ends."""
    try:
        import fcntl
    except ImportError:  # not a Unix machine
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another run is writing to {output}; wait for it or use another output_dir"
            ) from None
        yield


def _clear(output: Path, recipe: Recipe) -> None:
    """Remove what runs left in `output`, and nothing else; the lock stays, as it is held.

    Killed in the middle, it can be done again: the manifest goes last, and a stage's config.json,
    without which it is not finished, before the rest.
    """
    stages = [output / stage.name for stage in recipe.stages]
    for folder in (output, *stages):
        (folder / "config.json").unlink(missing_ok=True)
    for folder in stages:
        shutil.rmtree(folder, ignore_errors=True)
    _clear_work(output)


def _clear_work(output: Path) -> None:
    for path in sorted((output / WORK).iterdir(), key=lambda p: p.name == MANIFEST):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _publish(stage: Path, output: Path) -> None:
    """Give `output` the files of the last stage, config.json last: before it, nothing loads."""
    if (output / "config.json").is_file():
        return
    # Paths in recipe.yaml are relative to the folder it is in, and `output` has its own.
    names = sorted(p.name for p in stage.iterdir() if p.is_file() and p.name != "recipe.yaml")
    for name in [n for n in names if n != "config.json"] + ["config.json"]:
        temporary = output / WORK / name
        temporary.unlink(missing_ok=True)
        if name.endswith(".safetensors"):
            try:
                os.link(stage / name, temporary)
            except OSError:
                shutil.copy2(stage / name, temporary)
        else:
            shutil.copy2(stage / name, temporary)
        os.replace(temporary, output / name)
