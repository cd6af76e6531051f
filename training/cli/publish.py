"""`maya publish`: push a model or dataset to the Hub."""

import argparse

from .parser import as_path

EXAMPLES = """
maya publish runs/mini user/maya-mini
maya publish runs/mini user/maya-mini --private --revision trial
maya publish runs/data/captions/dataset user/captions --kind dataset
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=as_path)
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--kind", choices=["model", "dataset"], default="model")
    parser.add_argument(
        "--private",
        action="store_true",
        help="only into a private repository; a new one is private",
    )
    parser.add_argument(
        "--overwrite-card",
        action="store_true",
        help="replace a README.md that somebody wrote on the Hub",
    )
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument("--tag", help="of a dataset's commit (default: build-HASH of its content)")


def run(args: argparse.Namespace) -> None:
    from maya_vlm.model_card.hub.publish import publish

    url = publish(
        args.folder,
        args.repo_id,
        kind=args.kind,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        overwrite_card=args.overwrite_card,
    )
    print(f"published to {url}")
