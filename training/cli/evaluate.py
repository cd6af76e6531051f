"""`maya evaluate`: score a model per language."""

import argparse

from .parser import add_languages, add_trust, as_new_folder, as_path, as_place

SUMMARY = "score a model per language"
EXAMPLES = """
maya evaluate runs/mini
maya evaluate user/name@v1 --tasks mini --languages hi zh --limit 100
maya evaluate --compare runs/mini runs/other
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
    parser.add_argument(
        "--toxicity",
        type=as_place,
        metavar="MODEL",
        help="a text-classification model, user/name@revision too, that tells toxic answers",
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


def run(args: argparse.Namespace) -> None:
    from ..evaluation.report.compare import compare, comparison_text
    from ..evaluation.report.evaluations import read_evaluation
    from ..evaluation.report.page import write_report
    from ..evaluation.run import evaluate
    from ..evaluation.scoring.toxicity import Toxicity
    from ..evaluation.tasks import TASKS

    if args.list:
        for task in TASKS.values():
            for protocol, source in task.protocols.items():
                print(f"{task(protocol).key}: {task.title} ({source})")
        return
    if args.compare:
        first, second = map(read_evaluation, args.compare)
        print(comparison_text(first, second, compare(first, second, args.seed)))
        return
    if args.report:
        print(f"written to {write_report(args.report, args.output)}")
        return
    if args.model is None:
        raise ValueError(
            "expected a model folder or Hub repository, or one of --list, --compare, --report"
        )
    given = [args.toxicity, args.toxic_labels, args.toxic_activation]
    if any(given) and not all(given):
        raise ValueError(
            "--toxicity, --toxic-labels and --toxic-activation: expected all three or none: models "
            "seldom say which labels mean toxic and whether they exclude each other"
        )
    toxicity = Toxicity(*given, trust_remote_code=args.trust_remote_code) if args.toxicity else None
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
        toxicity=toxicity,
    )
