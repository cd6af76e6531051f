"""`maya data validate`: print every bad row of the given sources."""

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
    parser.add_argument("--language", help="BCP-47 code of rows that have none")
    parser.add_argument(
        "--data-files",
        metavar="FILE",
        help="the file with the rows in a folder or Hub dataset, e.g. LLaVA's JSON",
    )


def run(args: argparse.Namespace) -> None:
    from ...data.validate import validate_sources

    options = {"images": args.images, "language": args.language, "data_files": args.data_files}
    if validate_sources(args.sources, **options):
        sys.exit(1)
