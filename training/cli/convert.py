"""`maya convert`: convert the original Maya's weights, join a projector, or export a Maya to another format."""

import argparse

from .parser import add_trust, as_path, as_place

EXAMPLES = """
maya convert user/original maya --dry-run
maya convert runs/mini original --to llava_cohere
maya convert runs/mini mini-gguf --to gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "source",
        type=as_place,
        help="folder or repository of a llava_cohere checkpoint, a Maya's projector or a Maya",
    )
    parser.add_argument("output", type=as_path, nargs="?", help="the folder to write")
    parser.add_argument(
        "--base-model",
        type=as_place,
        help="the decoder, for projector-only and LoRA sources (default: what the source names)",
    )
    parser.add_argument(
        "--vision-tower", type=as_place, help="folder or Hub repository of the vision tower"
    )
    parser.add_argument(
        "--tower-source",
        choices=["checkpoint", "hub"],
        default="checkpoint",
        help="which vision tower to write: the checkpoint's copy, or the one on the Hub "
        "(default: checkpoint)",
    )
    parser.add_argument(
        "--to",
        choices=["maya", "llava_cohere", "llava", "gguf"],
        default="maya",
        help="output format (default: maya); llava: transformers' LLaVA, which loads without remote code; "
        "gguf: files for llama.cpp",
    )
    parser.add_argument("--dtype", help="e.g. bfloat16 (default: as stored)")
    parser.add_argument("--revision", help="branch, tag or commit of the source repository")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be written")


def run(args: argparse.Namespace) -> None:
    from modeling_maya.llava_cohere.convert import convert

    from ..common.revisions import split_revision

    source, revision = split_revision(args.source, args.revision)
    convert(
        source,
        args.output,
        base_model=args.base_model,
        vision_tower=args.vision_tower,
        tower_source=args.tower_source,
        to=args.to,
        dry_run=args.dry_run,
        dtype=args.dtype,
        revision=revision,
        max_shard_size=args.max_shard_size,
        trust_remote_code=args.trust_remote_code,
    )
