"""`maya data review`: write review sheets of translations, and read the filled sheets."""

import argparse

from ..parser import add_languages, as_path

EXAMPLES = """
maya data review runs/data/captions
maya data review runs/data/captions --languages hi zh --rows 100 --blur
maya data review runs/data/captions --read filled-hi.csv filled-zh.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=as_path, help="the plan's output_dir")
    parser.add_argument(
        "--read",
        type=as_path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="read filled sheets of translations or of toxicity",
    )
    add_languages(parser)
    parser.add_argument(
        "--rows", type=int, help="number of rows per sheet (default: the plan's number)"
    )
    parser.add_argument("--blur", action="store_true", help="blur each picture until it is clicked")


def run(args: argparse.Namespace) -> None:
    from ...data.reviews import format_read_back, read_review, write_reviews

    if args.read is not None:
        for path in args.read:
            print(format_read_back(read_review(args.folder, path)))
        return
    for sheet in write_reviews(
        args.folder, languages=args.languages, rows=args.rows, blur=args.blur
    ):
        print(f"{sheet.rows:,} rows to review: {sheet.csv} and {sheet.html}")
