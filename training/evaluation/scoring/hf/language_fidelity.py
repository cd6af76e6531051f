"""A metric of the `evaluate` library: language fidelity, computed by scoring/fidelity.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import fidelity

TEXT = datasets.Value("string")


class LanguageFidelity(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=fidelity.__doc__,
            citation="Geigle et al., Centurio: On Drivers of Multilingual Ability of Large Vision-Language Model, arXiv 2501.05122",
            inputs_description="predictions: raw answers. references: the requested language, BCP-47. questions: the text of each question, or an empty text.",
            features=datasets.Features(
                {"predictions": TEXT, "references": TEXT, "questions": TEXT}
            ),
            reference_urls=["https://github.com/pemistahl/lingua-py"],
        )

    def _compute(self, predictions, references, questions):
        columns = zip(references, predictions, questions, strict=True)
        answers = [fidelity.Answer(str(place), *values) for place, values in enumerate(columns)]
        return fidelity.fidelity(answers)
