"""`maya chat`: ask a model about an image."""

import argparse
import sys

from .parser import add_trust, as_place

EXAMPLES = """
maya chat picture.png --language hi
maya chat picture.png "What is this?" --model runs/mini
maya chat https://example.org/picture.jpg "What is this?" --model user/name --interactive
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument("image", type=as_place, help="an image file or an http(s) URL")
    parser.add_argument(
        "question", nargs="?", help="default: ask for the name of the pictured thing in --language"
    )
    parser.add_argument("--language", help="BCP-47 code of the answer, such as hi or pt-BR")
    parser.add_argument(
        "--model",
        type=as_place,
        default="runs/mini",
        help="folder or Hub repository (user/name or user/name@revision) of a model or adapter",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="then read more questions from the standard input, one per line, until it ends",
    )
    parser.add_argument(
        "--allow-private",
        action="store_true",
        help="allow an image URL in a private or local network",
    )


def run(args: argparse.Namespace) -> None:
    from ..inference.chat import chat

    chat(
        args.model,
        args.image,
        args.question,
        language=args.language,
        max_new_tokens=args.max_new_tokens,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
        allow_private=args.allow_private,
        further=sys.stdin if args.interactive else (),
    )
