"""`maya evaluate`: score a model per language."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .parser import add_languages, add_trust, as_new_folder, as_place

if TYPE_CHECKING:
    from ..common.endpoint import EndpointPlan

SUMMARY = "score a model per language"
EXAMPLES = """
maya evaluate user/name@v1 --tasks cvqa,xgqa --languages ru,zh --limit 100 --processes 2
maya evaluate served-name --tasks pope --endpoint http://127.0.0.1:8000/v1 --output runs/served
maya evaluate --list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model",
        nargs="?",
        type=as_place,
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter; with --endpoint "
        "the name by which the server knows it",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the tasks with their protocols, metrics and languages, and end",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="names, or NAME:PROTOCOL, by spaces or commas; see --list (default: mini)",
    )
    parser.add_argument(
        "--data", type=as_place, help="a folder or repository with the task's dataset"
    )
    parser.add_argument(
        "--output", type=as_new_folder, help="where results go (default: beside the model)"
    )
    parser.add_argument("--split", help="default: the task's own")
    add_languages(parser, "BCP-47 codes, by spaces or commas")
    parser.add_argument("--limit", type=int, help="only this many pictures a task")
    parser.add_argument("--no-baselines", action="store_true", help="skip blind and shuffled runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch-size", type=int, default=256, help="questions answered together (default: 256)"
    )
    parser.add_argument(
        "--processes", type=int, help="share the work: one a GPU, or on CPU one a core (default: 1)"
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="ask the model of an OpenAI-compatible server"
    )
    parser.add_argument(
        "--concurrency", type=int, default=32, help="requests to the server at once (default: 32)"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable with the server's API key"
    )


def run(args: argparse.Namespace) -> None:
    if args.list:
        _list_tasks()
        return
    if args.model is None:
        raise ValueError("expected a model folder or Hub repository, or --list")
    if args.processes is not None and "WORLD_SIZE" not in os.environ:
        _in_processes(args.processes, args.endpoint)
        return
    from ..evaluation.run import evaluate

    evaluate(
        args.model,
        _split(args.tasks) or ["mini"],
        data=args.data,
        output=args.output,
        split=args.split,
        languages=_split(args.languages),
        limit=args.limit,
        baselines=() if args.no_baselines else ("blind", "shuffled"),
        batch_size=args.batch_size,
        trust_remote_code=args.trust_remote_code,
        seed=args.seed,
        revision=args.revision,
        endpoint=_endpoint(args),
    )


def _split(values: Sequence[str] | None) -> list[str] | None:
    """Names that were given by spaces or commas; None where the option was not given."""
    if values is None:
        return None
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def _endpoint(args: argparse.Namespace) -> "EndpointPlan | None":
    if args.endpoint is None:
        return None
    from ..common.endpoint import EndpointPlan

    return EndpointPlan(
        args.endpoint,
        args.model,
        args.revision,
        api_key_env=args.api_key_env,
        concurrency=args.concurrency,
    )


def _in_processes(count: int, endpoint: str | None) -> None:
    """Run this command in several processes, which accelerate starts; ends with their exit code."""
    if endpoint is not None:
        raise ValueError("--processes: expected none with --endpoint: use --concurrency")
    import torch

    from ..run.launch import find_config, launch
    from ..run.processes import available_cores

    gpus = torch.cuda.device_count()
    # Two may always be tried on CPU.
    most = gpus or max(2, available_cores())
    if not 1 <= count <= most:
        raise ValueError(
            f"--processes: expected 1 to {most}, one for each {'GPU' if gpus else 'core'} of this machine, "
            f"found {count}"
        )
    if code := launch(find_config("ddp"), count, sys.argv):
        sys.exit(code)


def _list_tasks() -> None:
    from ..evaluation.tasks import TASKS

    for kind in TASKS.values():
        print(f"{kind.name}: {kind.title}")
        for protocol, source in kind.protocols.items():
            task = kind(protocol)
            print(f"  {task.key}: {task.metrics[task.metric]['title']}; {source}")
        print(f"  languages: {' '.join(kind.languages)}")
