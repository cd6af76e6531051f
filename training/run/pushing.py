"""Push the models of a run to the Hub while it trains, as `push_to_hub` in a stage's args asks.

The fields mean what they mean in transformers' Trainer: `hub_model_id` (default: the name of the recipe's
output_dir), `hub_private_repo`, `hub_revision`, `hub_token`, `hub_always_push`, and `hub_strategy`:
every_save pushes every checkpoint and the end of the stage, end only the end. Other strategies push the
optimizer's state, which is a pickle, and are refused.

What is sent, and how, is decided by the pusher that `maya train` hands to `run.train`.
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

# Stages whose end was pushed, with the commit.
PUSHED = "pushed.json"
EVERY_SAVE, END = "every_save", "end"


class Pusher(Protocol):
    """Sends folders of models to one branch of one repository."""

    def open(self) -> None:
        """Create the repository and the branch if they do not exist.

        Raises ValueError or OSError, in one line, if it cannot be pushed to.
        """

    def send(self, folder: Path, progress: str, recipe: Path) -> bool:
        """Begin to send a checkpoint in the background, and return whether it was begun.

        Args:
            folder: of the checkpoint, which may be deleted as soon as this returns.
            progress: how far the run is, for the card and the commit's message.
            recipe: the run's recipe.yaml.
        """

    def finish(self, folder: Path, progress: str | None, recipe: Path) -> str:
        """Wait for the push in progress, send the end of a stage, and return its commit.

        Args:
            folder: of the stage's model, or of its adapter.
            progress: None at the end of the run.
            recipe: the run's recipe.yaml.

        Raises OSError, in one line.
        """


class MakePusher(Protocol):
    """Makes a pusher.

    scratch: a folder for copies of the files being sent. base: the repository of the model that an adapter
    belongs to; None for whole models.
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
    """Return whether a stage asks for pushes."""
    return bool(stage.args.get("push_to_hub"))


class Pushing:
    """The pushes of a run; only its first process has one."""

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
                # The environment's token comes first.
                token=None if os.environ.get("HF_TOKEN") else args.get("hub_token"),
                always=bool(args.get("hub_always_push")),
                scratch=work / "push" / stage.name,
                base=None if stage.adapter is None else self._base(stage),
            )

    def _base(self, stage: StageRecipe) -> str:
        """Return the repository of an adapter's base; ValueError if the base is not on the Hub."""
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
        """Check every repository before anything is trained. Raises as `Pusher.open`."""
        for pusher in self.pushers.values():
            pusher.open()

    def on_save(self, stage: StageRecipe, steps: int) -> Callable[[int], None] | None:
        """Return what to call with the number of steps after every save of a stage; None for nothing.

        Args:
            stage: in progress.
            steps: of the whole stage.
        """
        if stage.name not in self.pushers or stage.args.get("hub_strategy", EVERY_SAVE) == END:
            return None
        pusher, recipe = self.pushers[stage.name], self.work.parent / "recipe.yaml"

        def send(step: int) -> None:
            folder = self.work / stage.name / f"{PREFIX}{step}"
            place = f"step {step:,} of {steps:,} of stage {self._number(stage)}"
            if not pusher.send(folder, place, recipe):
                print(
                    f"step {step}: not pushed, as the push before is still on its way", flush=True
                )

        return send

    def finish(self, stage: StageRecipe, folder: Path) -> None:
        """Push the end of a finished stage, unless that has been done. Raises as `Pusher.finish`.

        Args:
            stage: finished.
            folder: of its model.
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
        """Return whether the end of a later stage was pushed to the same branch."""
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
