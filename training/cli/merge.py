"""`maya merge`: merge an adapter into its base model, or average a Maya's decoder with its base."""

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
        "model", help="folder or Hub repository of an adapter; with --alpha, of a Maya"
    )
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument(
        "--base",
        help="base model of the adapter, if the adapter's own reference to it does not work here; "
        "with --alpha, the language model",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="average the decoders' weights: alpha * Maya + (1 - alpha) * --base, from 0 to 1",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model's repository")
    parser.add_argument(
        "--dtype",
        help="dtype of a merged adapter, e.g. bfloat16 (default: the base model's dtype)",
    )


def run(args: argparse.Namespace) -> None:
    if args.alpha is not None:
        from ..inference.mix import mix

        if args.base is None or args.dtype is not None:
            raise ValueError(
                "--alpha: expected --base, the language model, and no --dtype: correct these options"
            )
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
