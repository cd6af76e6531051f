"""Section `verification` of a plan."""

from dataclasses import dataclass, field

from ...common.schema import Bounds
from ..checks.plan import CheckPlan
from .back_translation import BackTranslationPlan
from .quality import QualityPlan


@dataclass
class VerificationPlan:
    """Section `verification` of a plan.

    checks: which checks are hard, and their thresholds; the translator retries by the same ones.
    calibrate: lengths are measured on the build's own rows, where a language has
        `calibration_rows`; else the defaults of `checks` stay.
    mine: look for starts and ends that many rows share though their sources do not.
    survey_rows: rows of a language that are surveyed for both, evenly taken from all.
    review_rows: rows of each language in a review sheet.
    seed: of the samples.
    """

    checks: CheckPlan = field(default_factory=CheckPlan)
    calibrate: bool = True
    calibration_rows: int = 200
    mine: bool = True
    survey_rows: int = 50_000
    quality: QualityPlan | None = None
    back_translation: BackTranslationPlan | None = None
    review_rows: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration_rows", "survey_rows", "review_rows"):
            Bounds(least=1).check(getattr(self, name), "verification", name)
