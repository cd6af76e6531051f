"""A metric of the `evaluate` library: multiple choice, computed by scoring/choices.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import choices
from maya_vlm.training.evaluation.scoring.choices_public import CHOICE_PARSERS
from maya_vlm.training.evaluation.scoring.parsed import chosen, tally

TEXT = datasets.Value("string")


class MultipleChoice(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=choices.__doc__,
            citation="The parsers name their sources; the default is this package's.",
            inputs_description="predictions: raw answers. references: the right letter. options: the texts of A, B, C, ... parser: name of a parser of multiple choice.",
            features=datasets.Features(
                {"predictions": TEXT, "references": TEXT, "options": datasets.Sequence(TEXT)}
            ),
            reference_urls=["https://github.com/open-compass/VLMEvalKit"],
        )

    def _compute(self, predictions, references, options, parser="choice"):
        read = chosen(CHOICE_PARSERS, parser)
        columns = zip(predictions, references, options, strict=True)
        rows = [
            (str(place), answer, read(answer, choices.letters_for(texts)).letter, right)
            for place, (answer, right, texts) in enumerate(columns)
        ]
        return tally(rows, metric="multiple_choice@1", parser=read.id)
