"""`maya serve`: serve a model over an OpenAI-compatible HTTP API."""

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
        help="folder or Hub repository (user/name or user/name@revision) of a model or adapter",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--name",
        help="the model's name for clients (default: the folder's name or the repository's id)",
    )
    parser.add_argument(
        "--host", default="localhost", help="address to listen on (default: localhost)"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-urls", action="store_true", help="refuse requests with image URLs")
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="allow image URLs in private and local networks",
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
