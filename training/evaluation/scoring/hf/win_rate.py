"""A metric of the `evaluate` library: win rates, computed by scoring/pairwise.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import pairwise

TEXT = datasets.Value("string")


class WinRate(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=pairwise.__doc__,
            citation="Dash et al., Aya Vision: Advancing the Frontier of Multilingual Multimodality, arXiv 2505.08751",
            inputs_description="predictions: judgements with the model shown as A. references: judgements with the model shown as B. languages: language of each question. orders: both or one.",
            features=datasets.Features(
                {"predictions": TEXT, "references": TEXT, "languages": TEXT}
            ),
            reference_urls=["https://huggingface.co/datasets/CohereLabs/AyaVisionBench"],
        )

    def _compute(self, predictions, references, languages, orders="both"):
        read = pairwise.VERDICT_PARSER
        columns = zip(languages, predictions, references, strict=True)
        duels = [
            pairwise.Duel(str(place), language, read(first or ""), read(second or ""))
            for place, (language, first, second) in enumerate(columns)
        ]
        return {**pairwise.win_rate(duels, orders), "parser": read.id}
