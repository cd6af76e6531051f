"""Trainer callback that decides when a stage logs, evaluates, saves and stops.

For Trainer, the whole plan of a stage is one epoch. Here an epoch is one pass over the data, as in a
recipe, so `logging_strategy`, `eval_strategy` and `save_strategy` may be `epoch`.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from transformers.trainer_callback import TrainerCallback


def is_better(value: float, than: float, greater: bool) -> bool:
    """Return whether a metric improved. greater: whether larger values are better."""
    return value > than if greater else value < than


def is_exhausted(values: Sequence[float], greater: bool, patience: int, threshold: float) -> bool:
    """Return whether `patience` evaluations in a row brought no improvement.

    The rule is that of transformers' EarlyStoppingCallback.

    Args:
        values: the metric at every evaluation so far.
        greater: whether larger values are better.
        patience: number of evaluations without improvement that ends the stage.
        threshold: least difference that counts as an improvement.
    """
    best, count = None, 0
    for value in values:
        improved = best is None or (
            is_better(value, best, greater) and abs(value - best) > threshold
        )
        count = 0 if improved else count + 1
        if best is None or is_better(value, best, greater):
            best = value
        if count >= patience:
            return True
    return False


class Schedule(TrainerCallback):
    """Replacement for transformers' DefaultFlowCallback.

    Decisions depend only on the step and on the logged metrics, not on other state. So a resumed run
    decides exactly like an uninterrupted run.

    Args:
        save: args.save_strategy; `best` saves when the metric improves.
        per_step: groups per step.
        groups: groups in the stage.
        per_epoch: groups in one pass over the data.
        metric: log key of args.metric_for_best_model.
        greater: whether larger values of the metric are better.
        patience: early stopping after this many evaluations without improvement; None for no early stopping.
        threshold: least difference that counts as an improvement.
    """

    def __init__(
        self,
        *,
        save: Literal["no", "steps", "epoch", "best"],
        per_step: int,
        groups: int,
        per_epoch: int,
        metric: str | None = None,
        greater: bool = False,
        patience: int | None = None,
        threshold: float = 0.0,
    ):
        self.save = save
        self.per_step, self.groups, self.per_epoch = per_step, groups, per_epoch
        self.metric, self.greater = metric, greater
        self.patience, self.threshold = patience, threshold
        # Whether the recipe asks to save this step, as opposed to a request to stop.
        self.saves = False

    def epochs(self, step: int) -> float:
        """Return the number of passes over the data after a step."""
        return min(step * self.per_step, self.groups) / self.per_epoch

    def stops_early(self, history: Sequence[dict[str, Any]]) -> bool:
        """Return whether the evaluations in Trainer's `log_history` trigger early stopping."""
        if self.patience is None or self.metric is None:
            return False
        values = [line[self.metric] for line in history if self.metric in line]
        return is_exhausted(values, self.greater, self.patience, self.threshold)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A checkpoint restores logging, evaluation and save steps of an earlier command: set the current ones.
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        state.epoch = self.epochs(step)
        last = step >= state.max_steps
        passed = last or math.floor(state.epoch) > math.floor(self.epochs(step - 1))

        def due(strategy: str, every: float) -> bool:
            return passed if strategy == "epoch" else strategy == "steps" and step % every == 0

        if due(args.logging_strategy, state.logging_steps) or (
            step == 1 and args.logging_first_step
        ):
            control.should_log = True
        delayed = (state.epoch if args.eval_strategy == "epoch" else step) < args.eval_delay
        evaluates = last and args.eval_strategy != "no"
        if not delayed and (evaluates or due(args.eval_strategy, state.eval_steps)):
            control.should_evaluate = True
        self.saves = due(self.save, state.save_steps) or (last and self.save == "steps")
        if self.saves:
            control.should_save = True
        if last:
            control.should_training_stop = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        value = (metrics or {}).get(self.metric)
        if value is None:
            return
        if self.save == "best" and (
            state.best_metric is None or is_better(value, state.best_metric, self.greater)
        ):
            self.saves = control.should_save = True
        if self.stops_early(state.log_history):
            control.should_training_stop = True
