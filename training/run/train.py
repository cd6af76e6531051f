"""`maya train`: run the stages of a recipe one after the other. A killed run can always be continued.

Layout of an output folder::

    runs/mini/                 the model of the last stage, ready for the Hub, with recipe.yaml
    runs/mini/pretrain/        the final model of each stage, and its training_log.json
    runs/mini/finetune/
    runs/mini/finetune/adapter/  for a stage with an adapter: the adapter alone, for peft
    runs/mini/.work/           manifest of the run, checkpoints of the stage in progress

An incomplete folder never has its final name: models and checkpoints are written under a temporary
name and then renamed. The manifest records the recipe and the content of its inputs. A command with
a different recipe is refused, so that the work of two recipes is never mixed.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..common.files import only_one
from ..common.signals import LAUNCHER, Stopped, end_with_parent, stopping
from ..recipe import Recipe, StageRecipe, find_recipe, load_recipe, write_recipe
from .checkpoints import writing
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
from .pushing import MakePusher, Pushing
from .sft_config import stage_arguments
from .stage import PICTURES, run_stage, say

TIMEOUT = 7200  # default of ddp_timeout: seconds that processes wait for each other
LOCK = "lock"


def train(
    recipe: str,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    trust_remote_code: bool = False,
    restart: bool = False,
    make_pusher: MakePusher | None = None,
) -> Path:
    """Run a recipe of kind `maya` to its end. An earlier stopped run is continued.

    Args:
        recipe: a YAML file, or the name of a shipped recipe (`mini`).
        overrides: `key=value` changes, such as `stages.0.args.max_steps=10`.
        output_dir: the folder to write; default: the recipe's output_dir.
        trust_remote_code: allow the Python code in the base models' repositories to run.
        restart: first delete the files of an earlier run in output_dir.
        make_pusher: makes the object that pushes models to the Hub, for stages with push_to_hub.

    Returns:
        The folder of the finished model.

    Raises:
        ValueError: the recipe, the data or a model is wrong; one line with what to do.
        FileNotFoundError: an input is missing.
        MemoryError: a stage does not fit in memory.
    """
    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides, output_dir)
    if "WORLD_SIZE" in os.environ:  # started by torchrun or accelerate launch
        return run_recipe(loaded, trust_remote_code, restart, make_pusher)
    count = count_processes(loaded)
    if count == 1:
        return run_recipe(loaded, trust_remote_code, restart, make_pusher)
    start(run_recipe, count, loaded, trust_remote_code, restart, make_pusher)
    return Path(loaded.output_dir)


def run_recipe(
    recipe: Recipe, trust_remote_code: bool, restart: bool, make_pusher: MakePusher | None = None
) -> Path:
    """Run the stages of a recipe in this process, which may be one rank of several."""
    if launcher := os.environ.get(LAUNCHER):
        end_with_parent(int(launcher))
    with stopping("the same command continues"):
        return _run_stages(recipe, trust_remote_code, restart, make_pusher)


def _run_stages(
    recipe: Recipe, trust_remote_code: bool, restart: bool, make_pusher: MakePusher | None
) -> Path:
    import torch
    import transformers
    from accelerate import PartialState

    from . import watched

    # Set up the process: quiet libraries, accelerate's state, threads.
    # The silenced warnings are about the libraries' own defaults.
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    cuda = torch.cuda.is_available()
    # The other ranks wait while rank 0 reads data, or merges and writes a large model.
    seconds = max(int(stage.args.get("ddp_timeout", TIMEOUT)) for stage in recipe.stages)
    state = PartialState(cpu=not cuda, timeout=timedelta(seconds=seconds))
    if not cuda:
        threads = threads_per_process(int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", threads)))
    # Check everything that can be checked before a model is loaded.
    check_stages(recipe, state)
    output = Path(recipe.output_dir)
    work = output / WORK
    pushing = Pushing(recipe, work, make_pusher) if state.is_main_process else None
    not_pushed: OSError | None = None
    with contextlib.ExitStack() as stack:
        # Compare the output folder with the recipe, lock it, and write the manifest.
        if state.is_main_process:
            cleared = restart and (work / MANIFEST).is_file()
            manifest = make_manifest(recipe)
            if not cleared:
                check_manifest(output, manifest)
            work.mkdir(parents=True, exist_ok=True)
            refusal = f"another run is writing to {output}; wait for it or use another output_dir"
            stack.enter_context(only_one(work / LOCK, refusal))
            if cleared:
                clear(output, recipe)
            else:  # check again: another run may have started and ended before this one got the lock
                if not check_manifest(output, manifest):
                    clear_work(output)
                for stage in recipe.stages:
                    finished = (output / stage.name / "config.json").is_file()
                    watched.check(stage, work / PICTURES.format(stage.name), finished)
            write_manifest(output, manifest)
        state.wait_for_everyone()
        pin(recipe, read_manifest(output))
        if state.is_main_process:
            write_recipe(recipe, output / "recipe.yaml")
        if pushing is not None:
            pushing.open()
        # Train every stage that is not finished.
        trained = False
        for number, stage in enumerate(recipe.stages):
            folder = output / stage.name
            if (folder / "config.json").is_file():
                say(state, f"stage {stage.name}: finished before, in {folder}")
                not_pushed = _push_end(pushing, stage, folder) or not_pushed
                continue
            if trained and state.is_main_process:
                check_stage_inputs(output, stage)
            previous = output / recipe.stages[number - 1].name if number else None
            stop = run_stage(recipe, stage, previous, folder, trust_remote_code, state, pushing)
            trained = True
            not_pushed = _push_end(pushing, stage, folder) or not_pushed
            if stop is not None and stage is not recipe.stages[-1]:
                raise Stopped(
                    f"stage {stage.name}: asked to stop, the stage is finished; the same command "
                    "continues with the next",
                    stop,
                )
        # Make the last stage's model the model of the run.
        if state.is_main_process:
            with writing(output):
                copy_model(output / recipe.stages[-1].name, output)
        state.wait_for_everyone()
    if not_pushed is not None:
        raise OSError(
            f"{not_pushed}; the model is in {output}, and the same command pushes it again"
        )
    return output


def _push_end(pushing: Pushing | None, stage: StageRecipe, folder: Path) -> OSError | None:
    """Push a finished stage. Return a failure as an error, because training must go on."""
    if pushing is not None:
        try:
            pushing.finish(stage, folder)
        except OSError as error:
            print(f"stage {stage.name}: not pushed: {error}", flush=True)
            return error
    return None


def check_stages(recipe: Recipe, state: Any) -> None:
    """Check that every stage's args work on this machine, before any model is loaded.

    Raises:
        ValueError: an argument, an optimizer, a schedule or a package cannot be used.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from ..arguments import check_optimizer, check_packages
    from ..model.adapters import check_bitsandbytes

    for stage in recipe.stages:
        check_bitsandbytes(stage)
        args = stage_arguments(recipe, stage, Path(recipe.output_dir) / stage.name, state)
        # Creating an SFTConfig may switch on ZeRO-3: transformers would then shard every new model.
        unset_hf_deepspeed_config()
        check_optimizer(args, f"stage {stage.name}: args")
        if state.is_main_process:
            check_packages(args, f"stage {stage.name}: args")


# ------------------------------------------------------------------------------ the output folder


def clear(output: Path, recipe: Recipe) -> None:
    """Remove the files of earlier runs from `output`, and no other files.

    An interrupted removal can be repeated: config.json, which marks a stage as finished, is removed first,
    and the manifest last.
    """
    stages = [output / stage.name for stage in recipe.stages]
    for folder in (output, *stages):
        (folder / "config.json").unlink(missing_ok=True)
    for folder in stages:
        shutil.rmtree(folder, ignore_errors=True)
    clear_work(output)


def clear_work(output: Path) -> None:
    """Remove the contents of the work folder. The manifest is removed last, and the lock is kept."""
    for path in sorted((output / WORK).iterdir(), key=lambda p: p.name == MANIFEST):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def copy_model(stage: Path, output: Path) -> None:
    """Copy the files of the last stage to `output`. config.json is last, because no model loads without it."""
    if (output / "config.json").is_file():
        return
    # recipe.yaml has paths relative to its folder, so `output` has a different one.
    names = sorted(p.name for p in stage.iterdir() if p.is_file() and p.name != "recipe.yaml")
    for name in [n for n in names if n != "config.json"] + ["config.json"]:
        temporary = output / WORK / name
        temporary.unlink(missing_ok=True)
        copy = os.link if name.endswith(".safetensors") else shutil.copy2
        try:
            copy(stage / name, temporary)
        except OSError:  # the file system has no hard links
            shutil.copy2(stage / name, temporary)
        os.replace(temporary, output / name)
