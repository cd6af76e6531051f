"""`maya data status`: print the progress of a running or stopped build."""

import argparse

from ..parser import as_path

EXAMPLES = """
maya data status runs/data/captions
maya data status runs/data/captions > progress.txt
watch -n 60 maya data status runs/data/captions
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=as_path, help="the plan's output_dir")


def run(args: argparse.Namespace) -> None:
    from ...data.engine.progress import build_status, format_status

    print("\n".join(format_status(build_status(args.folder))))
