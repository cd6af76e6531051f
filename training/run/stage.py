"""One stage: make its data, model and trainer, train it, and write or stop it.

A finished stage is one folder with the model, the log and the list of bad rows.
"""

import gc
import json
import math
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.files import write_json
from ..common.secrets import without_secrets
from ..common.signals import Interruption, Stopped, signal_handlers
from ..common.telling import printable
from ..recipe import AdapterRecipe, Recipe, StageRecipe, count_steps, template_owners, write_recipe
from .checkpoints import newest_whole, read_state, writing
from .manifest import WORK
from .pushing import Pushing
from .sft_config import check_metric, metric_name, stage_arguments

# File of a stage's pictures, for watched.py.
PICTURES = "pictures.{}.parquet"
LOG = "training_log.json"
BAD_ROWS = "bad_rows.jsonl"


@dataclass(frozen=True)
class StageRun:
    """A stage in progress.

    previous: the folder of the previous stage; None for the first stage.
    folder: the folder of the stage's finished model.
    state: accelerate's PartialState.
    started: time.monotonic() at the start of the stage.
    """

    recipe: Recipe
    stage: StageRecipe
    previous: Path | None
    folder: Path
    trust_remote_code: bool
    state: Any
    started: float = field(default_factory=time.monotonic)

    @property
    def work(self) -> Path:
        return self.folder.parent / WORK

    def say(self, text: str) -> None:
        say(self.state, text)


def say(state: Any, text: str) -> None:
    """Print lines on rank 0 only."""
    if state.is_main_process:
        print("\n".join(map(printable, text.split("\n"))), flush=True)


def run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    previous: Path | None,
    folder: Path,
    trust_remote_code: bool,
    state: Any,
    pushing: Pushing | None = None,
) -> int | None:
    """Train a stage from its newest checkpoint, if there is one, and write its folder.

    Args:
        recipe: the run's recipe.
        stage: the stage to train.
        previous: the folder of the previous stage, or None.
        folder: the folder to write.
        trust_remote_code: passed on to transformers.
        state: accelerate's PartialState.
        pushing: the pushes to the Hub, on rank 0.

    Returns:
        The number of a signal that asked to stop, if the stage finished anyway; else None.

    Raises:
        Stopped: a signal asked to stop before the end of the stage; a checkpoint was saved.
    """
    import torch
    from transformers import set_seed

    from ..model.freezing import format_table
    from .memory import check_memory
    from .trainer import OnSave

    run = StageRun(recipe, stage, previous, folder, trust_remote_code, state)
    run.say(f"\nstage {stage.name}: {previous or recipe.model.checkpoint or 'from the bases'}")
    # Reference cycles keep the previous model alive; free it before loading the next.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # Check the memory, then open the data and load the model.
    for line in check_memory(recipe, stage, previous, state, trust_remote_code):
        run.say("  " + line)
    data, held = _open_data(run)
    set_seed(recipe.seed)
    model, processor, rows = _make_model(run)
    run.say(format_table(rows))
    args = stage_arguments(recipe, stage, folder, state)
    attention = _prepare_decoder(run, model, args)
    schedule, plan = _plan_steps(run, data, args)
    # Continue from the newest checkpoint.
    found = _newest_checkpoint(run, args)
    if found is not None:
        run.say(f"continuing from {found}")
        args.eval_on_start = False
        done = read_state(found)
        if schedule.stops_early(done["log_history"]):
            args.max_steps = done["global_step"]
    trainer = _make_trainer(run, model, processor, args, attention, schedule, data, plan, held)
    if pushing is not None and (send := pushing.on_save(stage, args.max_steps)):
        trainer.add_callback(OnSave(send))
    return _train(run, trainer, found, rows)


# ------------------------------------------------------------------------------ data


def _open_data(run: StageRun) -> tuple[Any, Any]:
    """Return the stage's data, and its held-out data if it has any."""
    from ..batches.open import open_groups
    from .watched import note

    stage, seed = run.stage, run.recipe.seed
    with run.state.main_process_first():
        data = open_groups(stage, seed, pinned=run.work / f"{stage.name}.files.json")
        held = None
        if stage.eval_data:
            held = open_groups(
                replace(stage, data=stage.eval_data),
                seed,
                pinned=run.work / f"{stage.name}.eval_files.json",
            )
    for line in [*data.report, data.summary()]:
        run.say("  " + line)
    if held is not None:
        for line in [*held.report, held.summary()]:
            run.say("  held out: " + line)
        check_metric(stage, held.languages)
    if run.state.is_main_process:
        opened = [data] if held is None else [data, held]
        if told := note(stage, opened, run.work / PICTURES.format(stage.name)):
            run.say("  " + told)
    return data, held


# ------------------------------------------------------------------------------ model


def _make_model(run: StageRun) -> tuple[Any, Any, list[Any]]:
    """Return the model with adapter and frozen parts, its processor, and the rows of the printed table."""
    from ..model.adapters import add_adapter
    from ..model.freezing import apply_rules

    stage = run.stage
    model, processor = load_model(run)
    if stage.adapter is not None:
        add_adapter(model, stage.adapter, stage.train)
    rows = apply_rules(model, stage.train, stage.adapter)
    if stage.adapter is not None:
        _continue_adapter(run, stage.adapter, model)
    return model, processor, rows


def load_model(run: StageRun) -> tuple[Any, Any]:
    """Load the model and processor that a stage starts from, quantized if its adapter asks for it."""
    import torch

    recipe, stage, previous = run.recipe, run.stage, run.previous
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
            projector_kind=model.projector_kind or "mlp",
            projector_num_layers=model.projector_num_layers,
            image_seq_length=model.image_seq_length,
            cross_attention_interval=model.cross_attention_interval or 4,
            chat_template=str(model.chat_template),
            further_templates=further,
            image_token=model.image_token or IMAGE,
            image_aspect=str(model.image_aspect),
            vision_feature_layer=model.vision_feature_layer,
            vision_feature_select_strategy=str(model.vision_feature_select_strategy),
            dtype=dtype,
            trust_remote_code=run.trust_remote_code,
        )
    from ..model.checkpoint import find_checkpoint, load_checkpoint

    options = {}
    if stage.adapter is not None and stage.adapter.quantize is not None:
        from ..model.adapters import quantization

        options["quantization_config"] = quantization(stage.adapter, dtype)
    return load_checkpoint(
        find_checkpoint(model, previous),
        model,
        # A stage with an adapter continues the checkpoint's adapter instead of merging it.
        merged=stage.adapter is None,
        further_templates=further,
        **options,
    )


def _continue_adapter(run: StageRun, adapter: AdapterRecipe, model: Any) -> None:
    """Load the weights of the adapter that the stage starts from, if any, into the new adapter."""
    from ..common.adapters import Adapter
    from ..model.adapters import check_continued, load_adapter
    from ..model.checkpoint import find_checkpoint

    found = find_checkpoint(run.recipe.model, run.previous)
    if isinstance(found, Adapter):
        check_continued(found, adapter)
        load_adapter(model, found.weights.parent, more=True)
        run.say(f"continues the adapter of {found.model}, on {found.base}")


def _prepare_decoder(run: StageRun, model: Any, args: Any) -> Any:
    """Set the dtype of trained weights and the decoder's attention, compile its layers, and return the attention's name."""
    from ..model.attention import choose_attention, set_attention
    from ..model.compiling import compile_layers

    if args.bf16:
        # bfloat16 rounds small updates away, so trained weights are kept in float32.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    decoder = model.model.language_model
    attention = choose_attention(run.recipe.model.attention, decoder, run.state.device.type)
    set_attention(decoder, attention)
    compile_layers(decoder, run.stage.args, attention)
    run.say(f"attention: {attention}")
    return attention


# ------------------------------------------------------------------------------ steps


def _plan_steps(run: StageRun, data: Any, args: Any) -> tuple[Any, Sequence[Any]]:
    """Return the schedule and the groups of the stage, and set the steps of `args`."""
    from .schedule import Schedule

    stage, seed = run.stage, run.recipe.seed
    per_step = stage.batch_size
    shuffled = stage.order == "shuffled"
    per_epoch = len(data.plan(None, stage.group_size, seed, shuffled=shuffled))
    steps = count_steps(args.max_steps, args.num_train_epochs, per_step, per_epoch)
    groups = steps * per_step
    if args.max_steps <= 0:  # whole epochs: the last step has only the remaining groups
        groups = min(groups, math.ceil(per_epoch * args.num_train_epochs))
    args.max_steps = steps
    plan = data.plan(groups, stage.group_size, seed, shuffled=shuffled)
    run.say(
        f"{args.max_steps:,} steps of {per_step} groups of at most {stage.group_size} conversations: "
        f"{groups / per_epoch:.2f} passes over the data"
    )
    args.num_train_epochs = 1.0
    schedule = Schedule(
        save=args.save_strategy.value,
        per_step=per_step,
        groups=groups,
        per_epoch=per_epoch,
        metric=metric_name(args),
        greater=bool(args.greater_is_better),
        patience=stage.early_stopping_patience,
        threshold=stage.early_stopping_threshold,
    )
    # The schedule decides when to save. Trainer only needs a strategy other than `no`, to record the best step.
    args.save_strategy = type(args.save_strategy)(
        "steps" if schedule.save == "best" else schedule.save
    )
    return schedule, plan


def _newest_checkpoint(run: StageRun, args: Any) -> Path | None:
    """Return the checkpoint that all ranks continue from. Only rank 0 searches for it."""
    from accelerate.utils import broadcast_object_list

    found: list[Path | None] = [None]
    if run.state.is_main_process:
        found = [newest_whole(Path(args.output_dir), bool(args.load_best_model_at_end), run.say)]
    broadcast_object_list(found)
    return found[0]


# ------------------------------------------------------------------------------ training


def _make_trainer(
    run: StageRun,
    model: Any,
    processor: Any,
    args: Any,
    attention: Any,
    schedule: Any,
    data: Any,
    plan: Sequence[Any],
    held: Any,
) -> Any:
    import datasets

    from ..batches.collator import GroupCollator
    from .trainer import HeldOut, MayaTrainer, quiet_callbacks

    stage, ranks = run.stage, run.state.num_processes
    dataset = datasets.Dataset.from_dict(
        {
            "step": [step for step in range(args.max_steps) for _ in range(ranks)],
            "rank": list(range(ranks)) * args.max_steps,
        }
    )
    options: dict[str, Any] = {
        "attention": attention,
        "max_length": stage.args.get("max_length"),
        "batch_size": stage.batch_size,
        "ranks": ranks,
        "on_bad_row": stage.on_bad_row,
        "on_long_row": stage.on_long_row,
    }
    held_out = None
    if held is not None:
        pass_over = held.plan(None, stage.group_size, run.recipe.seed, shuffled=False)
        held_out = HeldOut(GroupCollator(held, processor, plan=pass_over, **options))
    trainer = MayaTrainer(
        model,
        args,
        rules=stage.train,
        languages=data.languages,
        schedule=schedule,
        held_out=held_out,
        adapter=stage.adapter,
        train_dataset=dataset,
        eval_dataset=None if held_out is None else dataset,  # Trainer requires it; it is not read
        data_collator=GroupCollator(data, processor, plan=plan, **options),
        processing_class=processor,
    )
    quiet_callbacks(trainer, stage.name)
    trainer.bad_rows_file = run.work / f"{stage.name}.bad_rows.{run.state.process_index}.jsonl"
    return trainer


def _train(run: StageRun, trainer: Any, found: Path | None, rows: Sequence[Any]) -> int | None:
    """Train from a checkpoint or from the start, and finish the stage; see `run_stage`."""
    from ..model.attention import set_attention

    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked and run.state.num_processes == 1:
            raise Interruption(number)  # second Ctrl-C: stop at once
        asked.append(number)
        trainer.ask_to_stop()

    decoder = trainer.model.model.language_model
    # After a signal, the trainer saves after the current step and stops. If no step is left, it finishes
    # the stage first.
    with signal_handlers(ask):
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
        stop = signal.Signals(asked[0]) if asked else signal.SIGTERM
        if trainer.is_finished:
            set_attention(decoder, "dense")
            finish_stage(run, trainer, rows)
            return stop if trainer.is_asked_to_stop() else None
    raise Stopped(
        f"stage {run.stage.name}: asked to stop, saved after step {trainer.state.global_step} of "
        f"{trainer.args.max_steps}; the same command continues",
        stop,
    )


# ------------------------------------------------------------------------------ result


def finish_stage(run: StageRun, trainer: Any, rows: Sequence[Any]) -> None:
    """Write the model, log and bad rows of a stage to its folder, and delete its checkpoints.

    Args:
        run: the stage.
        trainer: the stage's trainer, after its last step.
        rows: the rows of the printed table of the model's parts.
    """
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from ..model.adapters import ADAPTER, merge_adapter
    from ..model.checkpoint import base_of, find_checkpoint

    recipe, stage, folder, state = run.recipe, run.stage, run.folder, run.state
    processor = trainer.processing_class
    temporary = run.work / f"{folder.name}.model"
    if state.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    state.wait_for_everyone()
    # Save the model, and merge an adapter into its base.
    trainer.check_weights()
    try:
        with writing(folder.parent):
            trainer.save_model(str(temporary / ADAPTER if stage.adapter else temporary))
            # While ZeRO-3 is switched on, transformers shards every new model between the ranks.
            unset_hf_deepspeed_config()
            if stage.adapter is not None and state.is_main_process:
                base = base_of(find_checkpoint(recipe.model, run.previous))
                dtype = getattr(torch, recipe.model.dtype)
                merge_adapter(base, temporary / ADAPTER, dtype).save_pretrained(temporary)
                processor.save_pretrained(temporary)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # Add recipe, bad rows and log, and move the folder into place.
    if state.is_main_process:
        write_recipe(recipe, temporary / "recipe.yaml", folder)
        lists = sorted(run.work.glob(f"{stage.name}.bad_rows.*.jsonl"))
        bad = merge_bad_rows(lists, temporary / BAD_ROWS)
        for line in bad:
            run.say("  " + line)
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        write_json(
            temporary / LOG,
            {
                "stage": stage.name,
                "steps": trainer.state.global_step,
                **({} if best is None else {"best_step": best}),
                "seconds": round(time.monotonic() - run.started, 1),
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
        # From here on the stage is finished, even if the run is killed; checkpoints are not needed.
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        for file in lists:
            file.unlink()
        print(
            f"stage {stage.name}: done in {time.monotonic() - run.started:.0f} s, {folder}",
            flush=True,
        )
    state.wait_for_everyone()


def merge_bad_rows(files: Sequence[Path], target: Path) -> list[str]:
    """Merge the ranks' lists of bad rows into `target` without repeats, and return a summary line per source."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                # Ids may repeat, so a row is identified by its source's number and its place in the file.
                place = (row.get("data"), row.get("row"))
                identity = place if None not in place else (row["id"], row["language"])
                rows.setdefault((row["path"], row["action"], *identity), row)
            except (
                ValueError
            ):  # an empty line, or a killed run's half line, which was written again
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
