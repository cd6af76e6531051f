"""`maya train`: run the stages of a recipe."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from .parser import add_set, add_trust, as_folder

EXAMPLES = """
maya train mini
maya train mini --set seed=1 stages.1.args.max_steps=500
maya train recipe.yaml --estimate --gpu h100
"""
# Values of a recipe's `kind` that train a base model.
KINDS = ("vision_tower", "contrastive", "language_model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe, e.g. mini")
    add_set(parser, "recipe keys to change, e.g. seed=1 stages.0.args.max_steps=10")
    parser.add_argument(
        "--output-dir",
        type=as_folder,
        help="the folder to write (default: the recipe's output_dir)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="first delete the files of an earlier run"
    )
    parser.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="start the processes with accelerate; CONFIG is an accelerate config file or one of "
        "ddp, fsdp2, zero2, zero3",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="only print the memory per process and the time of every stage",
    )
    parser.add_argument(
        "--gpu", help="estimate for this GPU: a100, h100, h200 or l4 (default: this machine)"
    )


def run(args: argparse.Namespace) -> None:
    if args.estimate:
        from ..run.estimate import estimate, format_estimate

        stages = estimate(
            args.recipe,
            args.overrides,
            gpu=args.gpu,
            accelerate=args.accelerate,
            trust_remote_code=args.trust_remote_code,
        )
        print(format_estimate(stages))
        return
    if args.gpu is not None:
        raise ValueError(
            "--gpu: expected --estimate, found none: add --estimate; a run uses the GPUs of its machine"
        )
    if args.accelerate is not None and "WORLD_SIZE" not in os.environ:
        from ..run.launch import relaunch

        options = [] if args.output_dir is None else ["--output-dir", args.output_dir]
        options += ["--trust-remote-code"] if args.trust_remote_code else []
        options += ["--restart"] if args.restart else []
        if code := relaunch(args.accelerate, args.recipe, args.overrides, options):
            sys.exit(code)
        return
    from ..common.schema import read_mapping
    from ..recipe import find_recipe

    path = find_recipe(args.recipe)
    values = read_mapping(path, args.overrides)
    kind = values.pop("kind", "maya")
    if kind in KINDS:
        folder = _train_base(kind, values, path, args.output_dir)
        print(f"saved to {folder}")
        return
    if kind == "dpo":
        from ..run.preference import train_preferences

        if args.restart:
            raise ValueError(
                "--restart: expected a recipe of kind maya, found kind dpo: delete its output_dir instead"
            )
        folder = train_preferences(
            args.recipe, args.overrides, args.output_dir, args.trust_remote_code
        )
        print(f"saved to {folder}")
        return
    if kind != "maya":
        kinds = ", ".join(map(repr, KINDS))
        raise ValueError(f"{path}: kind: expected 'maya', {kinds} or 'dpo', found {kind!r}")
    from maya_vlm.model_card.hub.training_push import TrainingPush

    from ..run.train import train

    folder = train(
        args.recipe,
        overrides=args.overrides,
        output_dir=args.output_dir,
        trust_remote_code=args.trust_remote_code,
        restart=args.restart,
        make_pusher=TrainingPush,
    )
    print(f"saved to {folder}")


def _train_base(kind: str, values: dict[str, Any], path: Path, output_dir: str | None) -> Path:
    """Train a base model. `values` are the recipe's, without its `kind`."""
    from ..common.paths import expand
    from ..common.schema import build, resolve_paths

    values = resolve_paths(values, path.resolve().parent)
    given = values.pop("output_dir", None)
    if output_dir is not None and not output_dir.strip():
        raise ValueError("--output-dir: expected a folder, found an empty text: name a folder")
    target = Path(expand(output_dir or given or f"runs/{path.stem}"))
    if kind == "vision_tower":
        from ..bases.vision_tower.recipe import VisionTowerRecipe
        from ..bases.vision_tower.train import train_vision_tower

        return train_vision_tower(build(VisionTowerRecipe, values, str(path)), target)
    if kind == "contrastive":
        from ..bases.contrastive.recipe import ContrastiveRecipe
        from ..bases.contrastive.train import train_contrastive

        return train_contrastive(build(ContrastiveRecipe, values, str(path)), target)
    from ..bases.language_model.recipe import LanguageModelRecipe
    from ..bases.language_model.train import train_language_model

    return train_language_model(build(LanguageModelRecipe, values, str(path)), target)
