"""Run a step of a build in the test's process."""

from typing import Any

from maya_vlm.training.data.engine.units import run_units


def run_step(step: Any, **options: Any) -> None:
    """Run the units of all rounds, one after the other.

    Args:
        step: a ToxicityStep or a VerificationStep.
        options: options of the step's `rounds`.
    """
    for units in step.rounds(**options):
        for name, pairs in units.items():
            run_units(step.worker(name), pairs)
