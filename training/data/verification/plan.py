"""Section `verification` of a plan."""

from dataclasses import dataclass, field

from ...common.schema import Bounds
from ..checks.plan import CheckPlan
from .back_translation import BackTranslationPlan
from .quality import QualityPlan


@dataclass
class VerificationPlan:
    """Section `verification` of a plan.

    checks: hard checks and thresholds; the translator retries by the same checks.
    calibrate: measure lengths on the build's own rows, for languages with at least `calibration_rows`;
        other languages use the defaults of `checks`.
    mine: find starts and ends that many rows share although their sources do not.
    survey_rows: rows per language that both of these read, evenly spaced.
    quality: quality estimation by a model; None for none.
    back_translation: back-translation of a sample; None for none.
    review_rows: rows per language in a review sheet.
    seed: seed of the samples.
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
