"""`maya data validate`: name every bad row of sources."""

import argparse
import sys

from ..parser import as_place

EXAMPLES = """
maya data validate rows.json --images images.zip
maya data validate user/dataset --language en
maya data validate captions.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        type=as_place,
        help="JSON files, folders, Hub datasets, or plans (.yaml)",
    )
    parser.add_argument("--images", type=as_place, help="folder or zip of the pictures")
    parser.add_argument("--language", help="BCP-47 code of rows without one")
    parser.add_argument(
        "--data-files",
        metavar="FILE",
        help="the one file of a folder or Hub dataset that has the rows, such as LLaVA's JSON",
    )


def run(args: argparse.Namespace) -> None:
    from ...data.validate import validate_sources

    options = {"images": args.images, "language": args.language, "data_files": args.data_files}
    if validate_sources(args.sources, **options):
        sys.exit(1)
