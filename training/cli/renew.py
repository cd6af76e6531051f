"""`maya renew`: replace the code files in a saved or published Maya by this package's files."""

import argparse

from .parser import add_trust, as_place

EXAMPLES = """
maya renew runs/mini --dry-run
maya renew runs/mini
maya renew user/maya-mini --create-pr
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "source", type=as_place, help="a model folder, or a Hub repository (user/name)"
    )
    parser.add_argument("--revision", help="branch of the repository")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--dry-run", action="store_true", help="only print what would change")
    parser.add_argument(
        "--no-check", action="store_true", help="skip the comparison of logits before and after"
    )


def run(args: argparse.Namespace) -> None:
    from maya_vlm.model_card.hub.renew import renew

    done = renew(
        args.source,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        check=not args.no_check,
        dry_run=args.dry_run,
        create_pr=args.create_pr,
    )
    for line in done.checks:
        print(line)
    if not done.files:
        print("nothing to renew")
        return
    print(f"{'would renew' if args.dry_run else 'renewed'}: {', '.join(done.files)}")
    if done.address:
        print(done.address)
