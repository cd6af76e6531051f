"""`maya publish`: push a model, a dataset or a demo page to the Hub."""

import argparse

from .parser import add_trust, as_place

EXAMPLES = """
maya publish runs/mini user/maya-mini --private
maya publish runs/data/captions/dataset user/captions --kind dataset
maya publish user/maya-mini user/ask-maya --kind space --trust-remote-code
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "folder",
        type=as_place,
        help="the folder to publish; for a Space, the repository of the model",
    )
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--kind", choices=["model", "dataset", "space"], default="model")
    parser.add_argument(
        "--private",
        action="store_true",
        help="publish only to a private repository; a new repository becomes private",
    )
    parser.add_argument(
        "--overwrite-card",
        action="store_true",
        help="replace a README.md that somebody wrote or edited on the Hub",
    )
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of a model, e.g. apache-2.0, if its base models do not determine it",
    )
    parser.add_argument("--message", help="commit message (models only)")
    parser.add_argument(
        "--create-pr", action="store_true", help="open a pull request (models only)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="run all checks and print what would be sent"
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the check that a model answers in a fresh process before and after the upload",
    )
    parser.add_argument(
        "--tag", help="tag of a dataset's commit (default: build-HASH, a hash of its content)"
    )
    parser.add_argument(
        "--only",
        choices=["projector"],
        help="send a model without decoder and tower, which the run must have left as they were",
    )
    parser.add_argument(
        "--base-model", help="with --only: the decoder's repository (default: that of the recipe)"
    )
    parser.add_argument(
        "--vision-tower", help="with --only: the tower's repository (default: that of the recipe)"
    )


def run(args: argparse.Namespace) -> None:
    if args.kind == "space":
        names = (
            "overwrite_card", "revision", "license", "message", "create_pr", "dry_run", "tag", "only",
            "base_model", "vision_tower",
        )  # fmt: skip
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
        if given:
            raise ValueError(
                f"{given[0]}: expected a model or a dataset, found --kind space: leave the option out; nothing was sent"
            )
        from maya_vlm.model_card.space.send import publish_space

        url = publish_space(
            args.folder,
            args.repo_id,
            private=args.private,
            trust_remote_code=args.trust_remote_code,
        )
        print(f"published to {url}")
        return
    from maya_vlm.model_card.hub.publish import publish

    url = publish(
        args.folder,
        args.repo_id,
        kind=args.kind,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        overwrite_card=args.overwrite_card,
        message=args.message,
        create_pr=args.create_pr,
        dry_run=args.dry_run,
        verify=not args.no_verify,
        trust_remote_code=args.trust_remote_code,
        licence=args.license,
        only=args.only,
        base_model=args.base_model,
        vision_tower=args.vision_tower,
    )
    print(f"published to {url}")
