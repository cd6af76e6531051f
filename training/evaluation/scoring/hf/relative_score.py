"""A metric of the `evaluate` library: LLaVA-Bench's relative score, computed by scoring/reviews.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import reviews
from maya_vlm.training.evaluation.scoring.parsed import chosen

TEXT = datasets.Value("string")


class RelativeScore(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=reviews.__doc__,
            citation="Liu et al., Visual Instruction Tuning, arXiv 2304.08485; Maaz et al., PALO, arXiv 2402.14818",
            inputs_description="predictions: judges' reviews. references: the category of each question. parser: name of a parser of reviews. as_published: whether a failed judgement counts as -1.",
            features=datasets.Features({"predictions": TEXT, "references": TEXT}),
            reference_urls=["https://github.com/haotian-liu/LLaVA"],
        )

    def _compute(self, predictions, references, parser="review", as_published=False):
        read = chosen(reviews.REVIEW_PARSERS, parser)
        rows = [
            reviews.Review(str(place), category, read(review))
            for place, (review, category) in enumerate(zip(predictions, references, strict=True))
        ]
        score = reviews.summary_as_published(rows) if as_published else reviews.summary(rows)
        return {**score, "parser": read.id}
