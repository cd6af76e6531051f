"""`maya evaluate`: score a model per language."""

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
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter; with --endpoint "
        "the name of the model on the server",
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
        "--compare",
        nargs=2,
        type=as_path,
        metavar=("A", "B"),
        help="the paired difference of two evaluations on the same questions, from their folders",
    )
    parser.add_argument(
        "--report",
        nargs="+",
        type=as_path,
        metavar="FOLDER",
        help="write report.html of existing results, several side by side",
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
    parser.add_argument(
        "--toxicity",
        type=as_place,
        metavar="MODEL",
        help="a text-classification model, user/name@revision too, that finds toxic answers",
    )
    parser.add_argument(
        "--toxic-labels", nargs="+", metavar="LABEL", help="its labels that mean toxic"
    )
    parser.add_argument(
        "--toxic-activation",
        choices=("softmax", "sigmoid"),
        help="softmax if its labels exclude each other, sigmoid if they do not",
    )
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
    parser.add_argument(
        "--rejudge",
        type=as_path,
        metavar="ANSWERS",
        help="score these answers without a model: a parquet file of ours, or JSON lines",
    )
    judge = parser.add_argument_group("judge", "which model grades, for tasks that need one")
    judge.add_argument(
        "--judge", help="address of an OpenAI-compatible server, or a folder or Hub repository"
    )
    judge.add_argument("--judge-model", metavar="NAME", help="the name of the model on the server")
    judge.add_argument(
        "--judge-revision",
        help="commit of the judge's weights, to tell apart judges of the same name",
    )
    judge.add_argument(
        "--judge-key-env", metavar="NAME", help="environment variable with the server's API key"
    )
    judge.add_argument("--judge-concurrency", type=int, default=8, help="calls at once")
    judge.add_argument(
        "--judgements", type=as_path, help="file of judgements, which models may share"
    )
    judge.add_argument(
        "--against", type=as_path, help="answers of another model, for tasks that compare two"
    )
    judge.add_argument(
        "--failed-share",
        type=float,
        default=0.01,
        help="no score where more judgements failed (default: 0.01)",
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
            raise ValueError("--rejudge: expected one of --tasks, --output, and no --limit")
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
            "expected a model folder or Hub repository, or one of --list, --compare, --report, --rejudge"
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


def _toxicity(args: argparse.Namespace) -> "Toxicity | None":
    """The classifier of toxic answers that the options name."""
    given = [args.toxicity, args.toxic_labels, args.toxic_activation]
    if any(given) and not all(given):
        raise ValueError(
            "--toxicity, --toxic-labels and --toxic-activation: expected all three or none: models "
            "seldom say which labels mean toxic and whether they exclude each other"
        )
    from ..evaluation.scoring.toxicity import Toxicity

    return Toxicity(*given, trust_remote_code=args.trust_remote_code) if args.toxicity else None


def _judge(args: argparse.Namespace) -> "JudgePlan | None":
    """The judge that the options name."""
    from ..evaluation.judges.plan import JudgePlan

    if args.judge is None:
        for name in ("judge_model", "judge_key_env", "against", "judgements"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: expected with --judge")
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
    from ..evaluation.tasks.judged import Judged

    for kind in TASKS.values():
        graded = " (a judge grades)" if issubclass(kind, Judged) else ""
        print(f"{kind.name}: {kind.title}{graded}")
        for protocol, source in kind.protocols.items():
            task = kind(protocol)
            print(f"  {task.key}: {task.metrics[task.metric]['title']}; {source}")
        print(f"  languages: {' '.join(kind.languages)}")
