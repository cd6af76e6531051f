"""`maya merge`: merge an adapter into its base, or a Maya's decoder with its language model."""

import argparse
from pathlib import Path

from .parser import add_trust

EXAMPLES = """
maya merge runs/lora/finetune/adapter merged
maya merge user/adapter@v1 merged --dtype bfloat16
maya merge runs/maya-8b merged --base CohereForAI/aya-23-8B --alpha 0.6
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "model", help="a folder or Hub repository of an adapter, or, with --alpha, of a Maya"
    )
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument(
        "--base",
        help="the base of an adapter that names none that is here; with --alpha, the language model",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="merge a Maya's decoder with that of --base: alpha * Maya + (1 - alpha) * base, from 0 to 1",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument("--dtype", help="of a merged adapter, e.g. bfloat16 (default: as the base)")


def run(args: argparse.Namespace) -> None:
    if args.alpha is not None:
        from ..inference.mix import mix

        if args.base is None or args.dtype is not None:
            raise ValueError("--alpha: expected --base, the language model, and no --dtype")
        folder = mix(args.model, args.output, args.base, args.alpha, revision=args.revision)
        print(f"merged into {folder}")
        return
    from ..inference.merge import merge

    folder = merge(
        args.model,
        args.output,
        args.base,
        revision=args.revision,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    print(f"merged into {folder}")
