"""Processes of a run on one machine: count, start and watch them."""

import contextlib
import logging
import os
import platform
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import in_one_line, is_bad_input, of_lost_process
from ..common.signals import Stopped, end_with_parent, signal_handlers
from ..recipe import Recipe

# Prefix of the message of a process that a signal stopped.
STOPPED = "stopped: "


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_process(processes: int) -> int:
    """Return the number of threads per process, an equal share of the machine's cores."""
    return max(1, available_cores() // processes)


def count_processes(recipe: Recipe) -> int:
    """Return the number of processes of a recipe. `auto` means one per GPU, or up to four on a CPU."""
    if recipe.processes != "auto":
        return recipe.processes
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    # Small matrices do not use several threads well, so several single-threaded processes are faster on a CPU.
    count = min(4, available_cores())
    return min(count, *(stage.batch_size for stage in recipe.stages))


def check_processes(count: int) -> None:
    """Raise ValueError for more processes than this machine has GPUs (or cores, if it has no GPU)."""
    import torch

    cuda = torch.cuda.is_available()
    # Two processes are always allowed, for tests.
    most = torch.cuda.device_count() if cuda else max(2, available_cores())
    if count > most:
        raise ValueError(
            f"processes: expected at most {most}, one for each {'GPU' if cuda else 'core'} of this "
            f"machine, found {count}: use auto, or --accelerate CONFIG for several machines"
        )


def start(target: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Call `target(*arguments)` in `count` processes, and wait for them.

    Args:
        target: the function that every process calls.
        count: number of processes.
        arguments: arguments of `target`.

    Raises:
        ValueError: bad input; the message is that of the first failed process.
        Stopped: a signal stopped the processes.
        OSError: a process was killed.
    """
    import torch
    import torch.multiprocessing

    check_processes(count)
    # Silence torch's log of the processes it ends after a failure; `_failure` reports the cause.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked processes share imported modules. CUDA and macOS do not work after a fork.
    forks = platform.system() == "Linux" and not torch.cuda.is_available()
    asked: list[int] = []
    with tempfile.TemporaryDirectory() as errors, _passing_on(asked) as processes:
        try:
            running = torch.multiprocessing.start_processes(
                _process,
                args=(count, port, errors, target, arguments),
                nprocs=count,
                join=False,
                start_method="fork" if forks else "spawn",
            )
            processes += running.processes
            while not running.join():
                pass
        except Exception as error:
            raise _failure(error, Path(errors), asked) from None


def _failure(error: Exception, errors: Path, asked: Sequence[int]) -> Exception:
    """Return the error that ended the processes, from the messages that they wrote to `errors`."""
    told = sorted(errors.glob("rank-*.txt"), key=lambda p: p.stat().st_mtime_ns)
    texts = [file.read_text(encoding="utf-8") for file in told]
    bad = next((text for text in texts if not text.startswith(STOPPED)), None)
    if bad is not None:
        return ValueError(bad)
    killed = getattr(error, "signal_name", None)
    if killed is not None and not asked:
        return OSError(
            f"the process of rank {getattr(error, 'error_index', '?')} was killed by {killed}, as it is "
            "when memory runs out; the same command continues"
        )
    number = signal.Signals(asked[0] if asked else signal.SIGTERM)
    if texts:
        return Stopped(texts[0].removeprefix(STOPPED), number)
    if asked:
        return Stopped(f"stopped by {number.name}; the same command continues", number)
    return error


@contextlib.contextmanager
def _passing_on(asked: list[int]) -> Iterator[list[Any]]:
    """Forward SIGTERM and SIGINT, both as SIGTERM, to the processes in the list that the block receives.

    A second SIGINT kills the processes. `asked` receives the signals.
    """
    processes: list[Any] = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        again = number == signal.SIGINT and len(asked) > 1
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL if again else signal.SIGTERM)

    with signal_handlers(pass_on):
        yield processes


def _process(
    rank: int,
    count: int,
    port: int,
    errors: str,
    target: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    end_with_parent()
    # A terminal sends SIGINT to all processes; only the parent handles it, and sends one SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    # If it is not set, accelerate chooses a value and warns.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(count)))
    # A forked process inherits accelerate's state of the parent, which is that of a single process.
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        target(*arguments)
    except Exception as error:
        told = Path(errors, f"rank-{rank}.txt")
        if isinstance(error, Stopped):
            told.write_text(STOPPED + str(error), encoding="utf-8")
        elif is_bad_input(error) and not of_lost_process(
            error
        ):  # the lost process reports the cause
            told.write_text(in_one_line(error, "train"), encoding="utf-8")
        raise
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
