"""`maya serve`: serve a model to OpenAI's clients."""

import argparse

from .parser import add_trust, as_place

EXAMPLES = """
maya serve runs/mini
maya serve user/name@v1 --host 0.0.0.0 --port 8080 --no-urls
maya serve runs/lora/finetune/adapter --name my-maya
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model",
        type=as_place,
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--name", help="of the model, for clients (default: the folder's, or the id)"
    )
    parser.add_argument("--host", default="localhost", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--no-urls", action="store_true", help="fetch no pictures from addresses that clients name"
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="fetch pictures from addresses of private and local networks too",
    )


def run(args: argparse.Namespace) -> None:
    from ..inference.serve import serve

    serve(
        args.model,
        args.name,
        args.host,
        args.port,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
        allow_urls=not args.no_urls,
        allow_private=args.allow_private,
    )
