"""`maya train --accelerate`: start the processes with accelerate and a config file.

`training/accelerate/` has shipped config files. Without the option, `maya train` starts its processes
itself, for DistributedDataParallel, or for FSDP2 if the recipe's args set `fsdp`.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.paths import expand
from ..common.reading import read_yaml
from ..common.signals import LAUNCHER
from ..recipe import find_recipe, load_recipe
from .processes import check_processes, count_processes, threads_per_process

# Exceptions that accelerate raises for a config file that it cannot use.
REFUSALS = (ValueError, TypeError, AttributeError, KeyError)
CONFIGS = Path(__file__).resolve().parents[1] / "accelerate"


def find_config(name: str) -> Path:
    """Return the path of an accelerate config file.

    Args:
        name: a path, or the name of a shipped file (`fsdp2`).

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped files.
    """
    for path in (Path(expand(name)), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(
        f"no accelerate config {name!r}: found neither a file nor a shipped one; shipped: {names}"
    )


def environment(config: Path, processes: int) -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets for a config.

    accelerate's own code computes them.

    Args:
        config: the accelerate config file.
        processes: number of processes.

    Raises:
        ValueError: accelerate does not accept the file.
    """
    read_config(config)
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    try:
        args, defaults, _ = _validate_launch_command(
            launch_command_parser().parse_args(_options(config, processes, ["maya"]))
        )
        if args.use_deepspeed:
            args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            found = prepare_deepspeed_cmd_env(args)[1]
        else:
            found = prepare_multi_gpu_env(args)
    except REFUSALS as error:
        raise _refused(config, error) from None
    return {k: v for k, v in found.items() if k.startswith(("ACCELERATE_", "FSDP_"))}


def read_config(config: Path) -> dict[str, Any]:
    """Read the mapping in a config file. Raise ValueError, in one line, if the file has none."""
    try:
        found = read_yaml(config)
    except ValueError as error:
        raise _refused(config, error) from None
    if not isinstance(found, dict):
        raise _refused(config, f"expected a mapping, found {type(found).__name__}")
    return found


def _refused(config: Path, reason: object) -> ValueError:
    return ValueError(f"{config}: no config file of accelerate's: {' '.join(str(reason).split())}")


def launch(config: Path, processes: int, command: Sequence[str]) -> int:
    """Run a Python script with its arguments in every process.

    SIGTERM is forwarded to the processes, and they get as long as they need to save.

    Args:
        config: the accelerate config file.
        processes: number of processes.
        command: the script and its arguments.

    Returns:
        The exit code of the first failed process, 143 after SIGTERM, or 0.

    Raises:
        ValueError: accelerate rejects the file, or the config needs DeepSpeed, which is not installed.
        OSError: a process was killed.
    """
    read_config(config)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torch kills processes after half a minute, which is too short to save a large model.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    os.environ[LAUNCHER] = str(os.getpid())
    # Each process prints one line about its failure; silence torch's additional table.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(_options(config, processes, command)))
    except ImportError as error:
        raise ValueError(f"{config}: {error}") from None
    except REFUSALS as error:
        raise _refused(config, error) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise OSError(
                f"the process of rank {rank} was killed by {failure.signal_name()}, as it is when memory "
                "runs out; the same command continues"
            ) from None
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def relaunch(config: str, recipe: str, overrides: Sequence[str], options: Sequence[str]) -> int:
    """Run the current `maya train` command again in the recipe's number of processes.

    Args:
        config: the accelerate config file, or the name of a shipped file.
        recipe: the recipe's file or name.
        overrides: `key=value` changes of the recipe.
        options: other options of the command.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: as in `find_config`.
        ValueError: as in `load_recipe`.
    """
    file = find_config(config)
    processes = count_processes(load_recipe(find_recipe(recipe), overrides))
    if read_config(file).get("num_machines") in (None, 1):
        check_processes(processes)
    command = [sys.argv[0], "train", recipe, *options]
    return launch(file, processes, command + (["--set", *overrides] if overrides else []))


def _options(config: Path, processes: int, command: Sequence[str]) -> list[str]:
    threads = os.environ.get("OMP_NUM_THREADS", str(threads_per_process(processes)))
    options = ["--config_file", str(config), "--num_processes", str(processes)]
    return [*options, "--num_cpu_threads_per_process", threads, *command]
