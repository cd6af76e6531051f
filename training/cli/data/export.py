"""`maya data export`: write a dataset in the format of another trainer."""

import argparse

from ..parser import add_languages, as_new_folder, as_path

EXAMPLES = """
maya data export runs/data/captions --output llava
maya data export runs/data/captions --format messages --output rows
maya data export runs/data/captions --output llava --languages hi zh --toxicity-free
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=as_path,
        help="a build's output_dir, its dataset folder, or the mini dataset's folder",
    )
    parser.add_argument("--output", type=as_new_folder, required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        choices=["llava", "messages"],
        default="llava",
        help="llava: LLaVA's JSON and a folder of pictures (default); messages: parquet with the columns "
        "`messages` and `images` and embedded pictures, for TRL",
    )
    add_languages(parser)
    parser.add_argument(
        "--images",
        type=as_path,
        metavar="FOLDER_OR_ZIP",
        help="folder or zip of the pictures, if the dataset does not contain them",
    )
    parser.add_argument(
        "--no-images", action="store_true", help="write only the texts (--format llava)"
    )
    parser.add_argument(
        "--requests",
        type=as_path,
        help="YAML file: language -> list of prompts that ask for a caption (default: English prompts for "
        "llava, prompts in the row's language for messages)",
    )
    parser.add_argument(
        "--toxicity-free", action="store_true", help="leave out the rows marked as toxic"
    )


def run(args: argparse.Namespace) -> None:
    from ...data.dataset.export import export_llava, export_messages

    common = {
        "languages": args.languages,
        "toxicity_free": args.toxicity_free,
        "requests": args.requests,
        "images": args.images,
    }
    if args.format == "llava":
        done = export_llava(args.folder, args.output, **common, with_images=not args.no_images)
    elif args.no_images:
        raise ValueError(
            "--no-images: expected --format llava, found messages, which embeds the pictures: leave "
            "--no-images out"
        )
    else:
        done = export_messages(args.folder, args.output, **common)
    for path, rows in done.files.items():
        print(f"{path}: {rows:,} rows")
    print(f"{done.pictures:,} different pictures")
