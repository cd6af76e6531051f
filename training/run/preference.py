"""`maya train` for recipes of kind `dpo`: run TRL's DPO script on a Maya.

The recipe's keys are the options of `trl dpo`. This module sets only the output folder, trust_remote_code
and the checkpoint to resume from.
"""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..common.schema import read_mapping, resolve_paths, unknown_key
from ..common.telling import one_line
from ..recipe import find_recipe

# Options that `maya train` sets itself.
OWN = ("trust_remote_code", "resume_from_checkpoint")


def train_preferences(
    recipe: str,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Run a recipe of kind `dpo` with TRL's DPO script, from its newest checkpoint if there is one.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        overrides: `key=value` changes.
        output_dir: the folder to write; default: the recipe's output_dir.
        trust_remote_code: allow the Python code in the model's repository to run. A Maya does not need it.

    Returns:
        The folder of the trained model, or of its adapter.

    Raises:
        ValueError: TRL rejects an option; one line with the recipe and TRL's reason.
        OSError: a file cannot be read or written.
    """
    from transformers.trainer_utils import get_last_checkpoint
    from trl.scripts import dpo

    # Register Maya's classes with transformers.
    import modeling_maya  # noqa: F401
    import processing_maya  # noqa: F401

    # TRL and transformers warn about their own defaults.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    path = find_recipe(recipe)
    values = resolve_paths(read_mapping(path, overrides), path.resolve().parent)
    values.pop("kind", None)
    if given := sorted(set(OWN) & set(values)):
        raise ValueError(
            f"{path}: {given[0]}: expected another key, found one that `maya train` sets itself: leave it out"
        )
    output = Path(output_dir or values.get("output_dir") or f"runs/{path.stem}")
    values["output_dir"] = str(output)
    script, training, model, mixture = _parse(dpo.make_parser(prog="maya train"), values, path)
    training.trust_remote_code = trust_remote_code
    if output.is_dir():
        training.resume_from_checkpoint = get_last_checkpoint(str(output))
    dpo.main(script, training, model, mixture)
    # Delete a pickle that nothing reads and that may contain a token.
    (output / "training_args.bin").unlink(missing_ok=True)
    return output


def _parse(parser: Any, values: dict[str, Any], path: Path) -> tuple[Any, ...]:
    """Return TRL's dataclasses for the options. Raise ValueError if TRL's parser rejects one."""
    known = [item.name for kind in parser.dataclass_types for item in fields(kind)]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: {unknown_key(str(name), str(name), known)}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            return tuple(
                parser.parse_args_and_config(["--config", str(file)], fail_with_unknown_args=True)
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {one_line(str(error), 300)}") from None
