"""`maya evaluate`: score a model on benchmarks, per language."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .parser import add_languages, add_trust, as_new_folder, as_path, as_place

if TYPE_CHECKING:
    from ..common.endpoint import EndpointPlan
    from ..evaluation.judges.plan import JudgePlan
    from ..evaluation.scoring.toxicity import Toxicity

EXAMPLES = """
maya evaluate user/name@v1 --tasks cvqa,xgqa --languages ru,zh --limit 100 --processes 2
maya evaluate runs/mini --tasks palo --judge http://127.0.0.1:8000/v1 --judge-model qwen
maya evaluate --compare runs/mini runs/other
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model",
        nargs="?",
        type=as_place,
        help="folder or Hub repository (user/name or user/name@revision) of a model or adapter; with "
        "--endpoint, the model's name on the server",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the tasks with their protocols, metrics and languages, and exit",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="NAME or NAME:PROTOCOL, separated by spaces or commas; see --list (default: mini)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=as_path,
        metavar=("A", "B"),
        help="print the paired difference of two evaluations (their folders) on the same questions",
    )
    parser.add_argument(
        "--report",
        nargs="+",
        type=as_path,
        metavar="FOLDER",
        help="write report.html from existing results; several folders are shown side by side",
    )
    parser.add_argument(
        "--data", type=as_place, help="folder or Hub repository of the task's dataset"
    )
    parser.add_argument(
        "--output", type=as_new_folder, help="folder for the results (default: beside the model)"
    )
    parser.add_argument("--split", help="split of the dataset (default: the task's split)")
    add_languages(parser, "BCP-47 codes, separated by spaces or commas (default: all of the task)")
    parser.add_argument("--limit", type=int, help="use only this many pictures per task")
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="skip the baselines without pictures (blind) and with swapped pictures (shuffled)",
    )
    parser.add_argument(
        "--toxicity",
        type=as_place,
        metavar="MODEL",
        help="folder or Hub repository of a text-classification model that detects toxic answers",
    )
    parser.add_argument(
        "--toxic-labels",
        nargs="+",
        metavar="LABEL",
        help="labels of the --toxicity model that mean toxic",
    )
    parser.add_argument(
        "--toxic-activation",
        choices=("softmax", "sigmoid"),
        help="softmax if the labels exclude each other, otherwise sigmoid",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch-size", type=int, default=256, help="questions per batch (default: 256)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        help="number of processes that share the work, at most one per GPU or CPU core (default: 1)",
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="evaluate a model on an OpenAI-compatible server"
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=32,
        help="concurrent requests to the server (default: 32)",
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable with the server's API key"
    )
    parser.add_argument(
        "--rejudge",
        type=as_path,
        metavar="ANSWERS",
        help="score stored answers without a model: the parquet file of an evaluation, or JSON lines",
    )
    judge = parser.add_argument_group(
        "judge", "the model that grades answers, for tasks with a judge"
    )
    judge.add_argument(
        "--judge", help="URL of an OpenAI-compatible server, or a folder or Hub repository"
    )
    judge.add_argument("--judge-model", metavar="NAME", help="the judge's name on the server")
    judge.add_argument(
        "--judge-revision",
        help="commit of the judge's weights, which distinguishes judges of the same name",
    )
    judge.add_argument(
        "--judge-key-env", metavar="NAME", help="environment variable with the server's API key"
    )
    judge.add_argument(
        "--judge-concurrency",
        type=int,
        default=8,
        help="concurrent requests to the judge (default: 8)",
    )
    judge.add_argument(
        "--judgements",
        type=as_path,
        help="file of judgements; evaluations of several models may share it",
    )
    judge.add_argument(
        "--against",
        type=as_path,
        help="answers of another model, for tasks that compare two models",
    )
    judge.add_argument(
        "--failed-share",
        type=float,
        default=0.01,
        help="give no score if a larger share of judgements failed (default: 0.01)",
    )


def run(args: argparse.Namespace) -> None:
    if args.list:
        _list_tasks()
        return
    judge = _judge(args)
    if args.rejudge is not None:
        from ..evaluation.rejudge import rejudge

        tasks = _split(args.tasks) or []
        if len(tasks) != 1 or args.output is None or args.limit is not None:
            raise ValueError(
                "--rejudge: expected one task in --tasks, --output, and no --limit: correct these options"
            )
        rejudge(
            args.rejudge,
            tasks[0],
            args.output,
            data=args.data,
            split=args.split,
            languages=_split(args.languages),
            judge=judge,
            model=args.model,
            seed=args.seed,
        )
        return
    if args.compare:
        from ..evaluation.report.compare import compare, comparison_text
        from ..evaluation.report.evaluations import read_evaluation

        first, second = map(read_evaluation, args.compare)
        print(comparison_text(first, second, compare(first, second, args.seed)))
        return
    if args.report:
        from ..evaluation.report.page import write_report

        print(f"written to {write_report(args.report, args.output)}")
        return
    if args.model is None:
        raise ValueError(
            "expected a model folder or Hub repository, or one of --list, --compare, --report, --rejudge, "
            "found none: name a model"
        )
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
        judge=judge,
        toxicity=_toxicity(args),
    )


def _split(values: Sequence[str] | None) -> list[str] | None:
    """Split an option's values at commas. Return None if the option was not given."""
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


def _toxicity(args: argparse.Namespace) -> "Toxicity | None":
    """Return the classifier of toxic answers that the options name."""
    given = [args.toxicity, args.toxic_labels, args.toxic_activation]
    if any(given) and not all(given):
        raise ValueError(
            "--toxicity, --toxic-labels and --toxic-activation: expected all three or none, found some: "
            "add the missing ones; most models do not say which labels mean toxic or exclude each other"
        )
    from ..evaluation.scoring.toxicity import Toxicity

    return Toxicity(*given, trust_remote_code=args.trust_remote_code) if args.toxicity else None


def _judge(args: argparse.Namespace) -> "JudgePlan | None":
    """Return the judge that the options name."""
    from ..evaluation.judges.plan import JudgePlan

    if args.judge is None:
        for name in ("judge_model", "judge_key_env", "against", "judgements"):
            if getattr(args, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected --judge, found none: add --judge"
                )
        return None
    return JudgePlan(
        args.judge,
        args.judge_model,
        args.judge_revision,
        args.judge_key_env,
        args.judgements,
        args.failed_share,
        args.against,
        args.judge_concurrency,
        trust_remote_code=args.trust_remote_code,
    )


def _in_processes(count: int, endpoint: str | None) -> None:
    """Start this command in several processes with accelerate, and exit with their code if they fail."""
    if endpoint is not None:
        raise ValueError(
            "--processes: expected no --endpoint, found one: use --concurrency instead of --processes"
        )
    import torch

    from ..run.launch import find_config, launch
    from ..run.processes import available_cores

    gpus = torch.cuda.device_count()
    # Allow at least two processes on a CPU.
    most = gpus or max(2, available_cores())
    if not 1 <= count <= most:
        raise ValueError(
            f"--processes: expected 1 to {most}, one per {'GPU' if gpus else 'core'} of this machine, "
            f"found {count}"
        )
    if code := launch(find_config("ddp"), count, sys.argv):
        sys.exit(code)


def _list_tasks() -> None:
    from ..evaluation.tasks import TASKS
    from ..evaluation.tasks.judged import Judged

    for kind in TASKS.values():
        graded = " (a judge grades)" if issubclass(kind, Judged) else ""
        print(f"{kind.name}: {kind.title}{graded}")
        for protocol, source in kind.protocols.items():
            task = kind(protocol)
            print(f"  {task.key}: {task.metrics[task.metric]['title']}; {source}")
        print(f"  languages: {' '.join(kind.languages)}")
