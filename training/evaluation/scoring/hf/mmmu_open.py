"""A metric of the `evaluate` library: MMMU's open answers, computed by scoring/mmmu.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import mmmu

TEXT = datasets.Value("string")


class MmmuOpen(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=mmmu.__doc__,
            citation="Yue et al., MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark, arXiv 2311.16502",
            inputs_description="predictions: raw answers. references: the right answers of each question.",
            features=datasets.Features(
                {"predictions": TEXT, "references": datasets.Sequence(TEXT)}
            ),
            reference_urls=["https://github.com/MMMU-Benchmark/MMMU"],
        )

    def _compute(self, predictions, references):
        return mmmu.open_score(zip(predictions, references, strict=True))
