"""A metric of the `evaluate` library: short answers, computed by scoring/short_answers.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import short_answers

TEXT = datasets.Value("string")


class ShortAnswers(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=short_answers.__doc__,
            citation="Pfeiffer et al., xGQA, arXiv 2109.06082; Changpinyo et al., MaXM, arXiv 2209.05401; Tang et al., MTVQA, arXiv 2405.11985; Liu et al., MaRVL, arXiv 2109.13238; Hudson and Manning, GQA, arXiv 1902.09506",
            inputs_description="predictions: raw answers. references: the right answers of each question. task: xgqa, maxm, mtvqa, marvl or gqa.",
            features=datasets.Features(
                {"predictions": TEXT, "references": datasets.Sequence(TEXT)}
            ),
            reference_urls=["https://github.com/neulab/Pangea"],
        )

    def _compute(self, predictions, references, task):
        rows = [
            short_answers.ShortAnswer(str(place), answer, golds)
            for place, (answer, golds) in enumerate(zip(predictions, references, strict=True))
        ]
        return short_answers.short_answer_score(rows, task)
