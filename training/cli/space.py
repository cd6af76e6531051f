"""`maya space`: run a model's demo page on this machine."""

import argparse

from .parser import add_trust, as_place

EXAMPLES = """
maya space runs/mini
maya space user/name@v1 --port 7861
maya space runs/lora/finetune/adapter --host 0.0.0.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model",
        type=as_place,
        help="folder or Hub repository (user/name or user/name@revision) of a model or adapter",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=7860)


def run(args: argparse.Namespace) -> None:
    from maya_vlm.model_card.space.start import start

    start(args.model, args.host, args.port, args.trust_remote_code, args.revision)
