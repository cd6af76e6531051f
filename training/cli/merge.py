"""`maya merge`: merge an adapter of peft into its base."""

import argparse
from pathlib import Path

from .parser import add_trust

EXAMPLES = """
maya merge runs/lora/finetune/adapter merged
maya merge user/adapter@v1 merged --dtype bfloat16
maya merge adapter merged --base user/name
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument("adapter", help="a folder or Hub repository with an adapter_config.json")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--base", help="the base, where the adapter does not name one that is here")
    parser.add_argument("--revision", help="branch, tag or commit of the adapter's repository")
    parser.add_argument("--dtype", help="e.g. bfloat16 (default: as the base is stored)")


def run(args: argparse.Namespace) -> None:
    from ..inference.merge import merge

    folder = merge(
        args.adapter,
        args.output,
        args.base,
        revision=args.revision,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    print(f"merged into {folder}")
