"""`maya evaluate`: score a model per language."""

import argparse

from .parser import add_languages, add_trust, as_new_folder, as_place

EXAMPLES = """
maya evaluate runs/mini
maya evaluate user/name@v1 --tasks mini --languages hi zh --limit 100
maya evaluate --list
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


def run(args: argparse.Namespace) -> None:
    from ..evaluation.run import evaluate
    from ..evaluation.tasks import TASKS

    if args.list:
        for task in TASKS.values():
            for protocol, source in task.protocols.items():
                print(f"{task(protocol).key}: {task.title} ({source})")
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
    )
