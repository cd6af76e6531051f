"""When a stage logs, evaluates, saves and stops.

Trainer's one epoch is the whole plan of a stage. Here an epoch is what a recipe means by it, a pass over
the data, so `logging_strategy`, `eval_strategy` and `save_strategy` may be `epoch`.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from transformers.trainer_callback import TrainerCallback


def is_better(value: float, than: float, greater: bool) -> bool:
    """Whether a metric has improved; greater: larger values are better ones."""
    return value > than if greater else value < than


def is_exhausted(values: Sequence[float], greater: bool, patience: int, threshold: float) -> bool:
    """Whether evaluations came to an end of `patience`, as transformers' EarlyStoppingCallback counts.

    Args:
        values: the metric at every evaluation so far. threshold: what an improvement must exceed.
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
    """Takes the place of transformers' DefaultFlowCallback.

    Nothing of it is kept between steps: what is due follows from the step, and early stopping from the
    logged metrics, so a continued run decides as the uninterrupted one.

    Args:
        save: args.save_strategy; `best` saves when the metric has improved.
        per_step: groups of a step. groups: of the stage. per_epoch: of one pass over the data.
        metric: the logged name of args.metric_for_best_model. greater: whether larger is better.
        patience, threshold: of early stopping; None for none.
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
        # Whether this step is saved by the recipe, not because the run is asked to stop.
        self.saves = False

    def epochs(self, step: int) -> float:
        """Passes over the data after a step."""
        return min(step * self.per_step, self.groups) / self.per_epoch

    def stops_early(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether the evaluations in Trainer's `log_history` end the stage."""
        if self.patience is None or self.metric is None:
            return False
        values = [line[self.metric] for line in history if self.metric in line]
        return is_exhausted(values, self.greater, self.patience, self.threshold)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A checkpoint brings the numbers of steps of the command that wrote it.
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
