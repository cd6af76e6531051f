"""A metric of the `evaluate` library: MM-Vet, computed by scoring/mmvet.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import mmvet

TEXT = datasets.Value("string")


class Mmvet(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=mmvet.__doc__,
            citation="Yu et al., MM-Vet: Evaluating Large Multimodal Models for Integrated Capabilities, arXiv 2308.02490",
            inputs_description="predictions: grades from 0 to 1 of each answer, one for each run, None if judging failed. references: the capabilities of each question. failed: left_out or zero.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(TEXT),
                }
            ),
            reference_urls=["https://github.com/yuweihao/MM-Vet"],
        )

    def _compute(self, predictions, references, failed="left_out"):
        columns = zip(references, predictions, strict=True)
        rows = [mmvet.MmvetRow(str(place), *values) for place, values in enumerate(columns)]
        return mmvet.mmvet_score(rows, failed)
