"""Pushes to the Hub during training, for stages with `push_to_hub` in their args.

The fields have their meaning in transformers' Trainer: `hub_model_id` (default: the name of the recipe's
output_dir), `hub_private_repo`, `hub_revision`, `hub_token`, `hub_always_push` and `hub_strategy`.
`every_save` pushes every checkpoint and the finished stage, `end` only the finished stage. Other strategies
would push the optimizer's state, which is a pickle, and are refused.

The pusher that `maya train` passes to `run.train` decides which files are sent and how.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..common.files import write_json
from ..common.reading import read_json_mapping
from ..recipe import Recipe, StageRecipe
from .checkpoints import PREFIX
from .manifest import is_local

# File of the pushed stages: name -> commit.
PUSHED = "pushed.json"
EVERY_SAVE, END = "every_save", "end"


class Pusher(Protocol):
    """Sends folders of models to one branch of one repository."""

    def open(self) -> None:
        """Create the repository and the branch if they do not exist.

        Raises:
            ValueError: the repository does not accept the push.
            OSError: the Hub cannot be reached.
        """

    def send(self, folder: Path, progress: str, recipe: Path) -> bool:
        """Start to send a checkpoint in the background, and return whether it was started.

        Args:
            folder: the checkpoint's folder, which may be deleted after this call.
            progress: progress of the run, for the card and the commit message.
            recipe: the run's recipe.yaml.
        """

    def finish(self, folder: Path, progress: str | None, recipe: Path) -> str:
        """Wait for the current push, send a finished stage, and return its commit.

        Args:
            folder: the folder of the stage's model or adapter.
            progress: progress of the run; None at the end of the run.
            recipe: the run's recipe.yaml.

        Raises:
            OSError: the push failed; one line.
        """


class MakePusher(Protocol):
    """Function that makes a pusher.

    scratch: a folder for copies of the files being sent.
    base: the repository of an adapter's base model; None for whole models.
    """

    def __call__(
        self,
        repo_id: str,
        *,
        private: bool,
        revision: str | None,
        token: str | None,
        always: bool,
        scratch: Path,
        base: str | None,
    ) -> Pusher: ...


def pushes(stage: StageRecipe) -> bool:
    """Return whether a stage has push_to_hub."""
    return bool(stage.args.get("push_to_hub"))


class Pushing:
    """All pushes of a run. Only rank 0 has this object."""

    def __init__(self, recipe: Recipe, work: Path, make: MakePusher | None):
        self.recipe, self.work = recipe, work
        self.pushers: dict[str, Pusher] = {}
        for stage in recipe.stages:
            if not pushes(stage):
                continue
            if make is None:
                raise ValueError(
                    f"stage {stage.name}: args.push_to_hub: expected a pusher, which `maya train` hands to train(), "
                    "found none: use the command, or leave push_to_hub out"
                )
            args = stage.args
            self.pushers[stage.name] = make(
                args.get("hub_model_id") or Path(recipe.output_dir).resolve().name,
                private=bool(args.get("hub_private_repo")),
                revision=args.get("hub_revision"),
                # HF_TOKEN takes precedence.
                token=None if os.environ.get("HF_TOKEN") else args.get("hub_token"),
                always=bool(args.get("hub_always_push")),
                scratch=work / "push" / stage.name,
                base=None if stage.adapter is None else self._base(stage),
            )

    def _base(self, stage: StageRecipe) -> str:
        """Return the repository of an adapter's base. Raise ValueError if the base is not on the Hub."""
        base = self.recipe.model.checkpoint
        if stage is not self.recipe.stages[0] or base is None or is_local(base):
            found = "the stage before" if stage is not self.recipe.stages[0] else base
            raise ValueError(
                f"stage {stage.name}: args.push_to_hub: expected the base of the adapter on the Hub, as "
                f"model.checkpoint: user/name, found {found}: publish the base and name it there, or leave "
                "push_to_hub out"
            )
        return base

    def open(self) -> None:
        """Check every repository before the training starts. Errors are those of `Pusher.open`."""
        for pusher in self.pushers.values():
            pusher.open()

    def on_save(self, stage: StageRecipe, steps: int) -> Callable[[int], None] | None:
        """Return the function to call after every save of a stage, or None.

        Args:
            stage: the stage in progress.
            steps: number of steps of the whole stage.

        Returns:
            A function of the number of finished steps, or None if saves are not pushed.
        """
        if stage.name not in self.pushers or stage.args.get("hub_strategy", EVERY_SAVE) == END:
            return None
        pusher, recipe = self.pushers[stage.name], self.work.parent / "recipe.yaml"

        def send(step: int) -> None:
            folder = self.work / stage.name / f"{PREFIX}{step}"
            place = f"step {step:,} of {steps:,} of stage {self._number(stage)}"
            if not pusher.send(folder, place, recipe):
                print(
                    f"step {step}: not pushed, because the previous push is still running",
                    flush=True,
                )

        return send

    def finish(self, stage: StageRecipe, folder: Path) -> None:
        """Push a finished stage, unless it was pushed before. Errors are those of `Pusher.finish`.

        Args:
            stage: the finished stage.
            folder: the folder of its model.
        """
        done = self._done()
        if stage.name not in self.pushers or stage.name in done or self._replaced(stage, done):
            return
        last = stage is self.recipe.stages[-1]
        progress = None if last else f"the end of stage {self._number(stage)}"
        adapter = folder / "adapter"
        sent = adapter if stage.adapter is not None else folder
        commit = self.pushers[stage.name].finish(sent, progress, folder / "recipe.yaml")
        write_json(self.work / PUSHED, {**done, stage.name: commit})

    def _replaced(self, stage: StageRecipe, done: dict[str, Any]) -> bool:
        """Return whether a later stage was already pushed to the same branch."""
        later = self.recipe.stages[self.recipe.stages.index(stage) + 1 :]
        return any(each.name in done and _branch(each) == _branch(stage) for each in later)

    def _number(self, stage: StageRecipe) -> str:
        number = self.recipe.stages.index(stage) + 1
        return f"{stage.name} ({number} of {len(self.recipe.stages)})"

    def _done(self) -> dict[str, Any]:
        path = self.work / PUSHED
        return read_json_mapping(path) if path.is_file() else {}


def _branch(stage: StageRecipe) -> tuple[str | None, str]:
    """Return the repository and the branch that a stage pushes to."""
    return stage.args.get("hub_model_id"), stage.args.get("hub_revision") or "main"
