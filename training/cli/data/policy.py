"""`maya data policy`: reapply a toxicity policy to stored verdicts and reviews; no model runs."""

import argparse

from ..parser import as_path, as_place

EXAMPLES = """
maya data policy runs/data/captions
maya data policy runs/data/captions --policy paper
maya data policy runs/data/captions --policy strict.yaml --sheets
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=as_path, help="the plan's output_dir")
    parser.add_argument(
        "--policy",
        type=as_place,
        help="a YAML file, `default` or `paper` (default: the plan's policy)",
    )
    parser.add_argument(
        "--sheets", action="store_true", help="also write review sheets with blurred pictures"
    )


def run(args: argparse.Namespace) -> None:
    from ...data.reviews import apply_policy
    from ...data.toxicity.decisions import format_summary

    summary, sheets = apply_policy(args.folder, args.policy, sheets=args.sheets)
    print(format_summary(summary))
    for sheet in sheets:
        print(f"{sheet.rows:,} rows to review: {sheet.csv} and {sheet.html}")
