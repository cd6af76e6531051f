"""`maya data export`: a dataset as other trainers read it."""

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
        help="a build's output_dir, its dataset folder, or the mini dataset's",
    )
    parser.add_argument("--output", type=as_new_folder, required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        choices=["llava", "messages"],
        default="llava",
        help="LLaVA's JSON with the pictures beside it (default), or parquet of `messages` + `images` "
        "with the pictures embedded, for TRL",
    )
    add_languages(parser)
    parser.add_argument(
        "--images",
        type=as_path,
        metavar="FOLDER_OR_ZIP",
        help="where the pictures are, if the dataset does not hold them",
    )
    parser.add_argument("--no-images", action="store_true", help="only the texts (--format llava)")
    parser.add_argument(
        "--requests",
        type=as_path,
        help="YAML: language -> list of what is asked for a caption (default: English for llava, "
        "the row's language for messages)",
    )
    parser.add_argument("--toxicity-free", action="store_true", help="only clean rows")


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
            "the option out"
        )
    else:
        done = export_messages(args.folder, args.output, **common)
    for path, rows in done.files.items():
        print(f"{path}: {rows:,} rows")
    print(f"{done.pictures:,} different pictures")
