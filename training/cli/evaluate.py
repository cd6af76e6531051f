"""`maya evaluate`: score a model per language."""

import argparse
from typing import TYPE_CHECKING

from .parser import add_languages, add_trust, as_new_folder, as_path, as_place

if TYPE_CHECKING:
    from ..evaluation.judges.plan import JudgePlan

SUMMARY = "score a model per language"
EXAMPLES = """
maya evaluate user/name@v1 --tasks mini --languages hi zh --limit 100
maya evaluate runs/mini --tasks llava_bench --judge http://localhost:8000/v1 --judge-model qwen
maya evaluate --rejudge answers.jsonl --tasks llava_bench --judge runs/judge --output scores
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model",
        nargs="?",
        type=as_place,
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument("--list", action="store_true", help="print the tasks and end")
    parser.add_argument(
        "--tasks", nargs="+", action="extend", metavar="TASK", help="see --list (default: mini)"
    )
    parser.add_argument(
        "--data", type=as_place, help="a folder or repository with the task's dataset"
    )
    parser.add_argument(
        "--output", type=as_new_folder, help="where results go (default: beside the model)"
    )
    parser.add_argument("--split", help="default: the task's own")
    add_languages(parser, "BCP-47 codes")
    parser.add_argument("--limit", type=int, help="only this many pictures a task")
    parser.add_argument("--no-baselines", action="store_true", help="skip blind and shuffled runs")
    parser.add_argument("--seed", type=int, default=0)
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
    judge.add_argument("--judge-model", metavar="NAME", help="how the server calls the model")
    judge.add_argument("--judge-revision", help="commit of the judge's weights")
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
    from ..evaluation.run import evaluate
    from ..evaluation.tasks import TASKS

    if args.list:
        for task in TASKS.values():
            for protocol, source in task.protocols.items():
                print(f"{task(protocol).key}: {task.title} ({source})")
        return
    plan = _judge_plan(args)
    if args.rejudge is not None:
        from ..evaluation.rejudge import rejudge

        if len(args.tasks or []) != 1 or args.output is None or args.limit is not None:
            raise ValueError("--rejudge: expected one of --tasks, --output, and no --limit")
        rejudge(
            args.rejudge,
            args.tasks[0],
            args.output,
            data=args.data,
            split=args.split,
            languages=args.languages,
            judge=plan,
            model=args.model,
            seed=args.seed,
        )
        return
    if args.model is None:
        raise ValueError("expected a model folder or Hub repository, or --list")
    evaluate(
        args.model,
        args.tasks or ["mini"],
        data=args.data,
        output=args.output,
        split=args.split,
        languages=args.languages,
        limit=args.limit,
        baselines=() if args.no_baselines else ("blind", "shuffled"),
        trust_remote_code=args.trust_remote_code,
        seed=args.seed,
        revision=args.revision,
        judge=plan,
    )


def _judge_plan(args: argparse.Namespace) -> "JudgePlan | None":
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
