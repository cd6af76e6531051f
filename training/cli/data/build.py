"""`maya data build`: build a dataset from a plan."""

import argparse

from ..parser import add_set, add_trust, as_path

EXAMPLES = """
maya data build captions.yaml
maya data build captions.yaml --set executor.workers=4
maya data build captions.yaml --steps translate --retry-failed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "plan", type=as_path, help="a YAML file; repeat the command to continue a stopped build"
    )
    add_set(parser, "plan keys to change, e.g. executor.workers=4")
    parser.add_argument(
        "--steps",
        nargs="+",
        action="extend",
        metavar="STEP",
        help="run only these steps, e.g. source translate",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="retry the rows whose requests failed"
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="allow the functions and programs that the plan names to run",
    )


def run(args: argparse.Namespace) -> None:
    from ...data.build import build_dataset

    folder = build_dataset(
        args.plan,
        args.overrides,
        steps=args.steps,
        retry_failed=args.retry_failed,
        trust_remote_code=args.trust_remote_code,
        allow_code=args.allow_code,
    )
    if (folder / "dataset" / "manifest.json").is_file():
        from maya_vlm.model_card.cards.dataset import write_dataset_card

        print(f"dataset card: {write_dataset_card(folder / 'dataset')}")
    print(f"built in {folder}")
