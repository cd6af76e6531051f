"""A metric of the `evaluate` library: ScienceQA, computed by scoring/scienceqa.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import choices, scienceqa
from maya_vlm.training.evaluation.scoring.choices_public import CHOICE_PARSERS
from maya_vlm.training.evaluation.scoring.parsed import chosen

TEXT = datasets.Value("string")


class ScienceQa(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=scienceqa.__doc__,
            citation="Lu et al., Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering, arXiv 2209.09513",
            inputs_description="predictions: raw answers. references: the right letter. options: the texts of A, B, C, ... has_image: whether each question has an image. parser: name of a parser of multiple choice.",
            features=datasets.Features(
                {
                    "predictions": TEXT,
                    "references": TEXT,
                    "options": datasets.Sequence(TEXT),
                    "has_image": datasets.Value("bool"),
                }
            ),
            reference_urls=["https://github.com/lupantech/ScienceQA"],
        )

    def _compute(self, predictions, references, options, has_image, parser="choice"):
        read = chosen(CHOICE_PARSERS, parser)
        columns = zip(predictions, references, options, has_image, strict=True)
        rows = [
            scienceqa.ScienceQaRow(
                str(place), read(answer, choices.letters_for(texts)).letter, right, pictured, answer
            )
            for place, (answer, right, texts, pictured) in enumerate(columns)
        ]
        return scienceqa.scienceqa_score(rows, read.id)
