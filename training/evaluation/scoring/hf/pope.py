"""A metric of the `evaluate` library: POPE, computed by scoring/pope.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import pope
from maya_vlm.training.evaluation.scoring.parsed import chosen
from maya_vlm.training.evaluation.scoring.yes_no_public import YES_NO_PARSERS

TEXT = datasets.Value("string")


class Pope(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=pope.__doc__,
            citation="Li et al., Evaluating Object Hallucination in Large Vision-Language Models, arXiv 2305.10355",
            inputs_description="predictions: raw answers. references: yes or no. parser: name of a parser of yes and no.",
            features=datasets.Features({"predictions": TEXT, "references": TEXT}),
            reference_urls=["https://github.com/AoiDragon/POPE"],
        )

    def _compute(self, predictions, references, parser="yes_no"):
        read = chosen(YES_NO_PARSERS, parser)
        rows = [
            pope.PopeRow(str(place), read(answer), label, answer)
            for place, (answer, label) in enumerate(zip(predictions, references, strict=True))
        ]
        return {**pope.pope_score(rows), "parser": read.id}
