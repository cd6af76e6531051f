"""A metric of the `evaluate` library: VQA accuracy, computed by scoring/vqa.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import vqa

TEXT = datasets.Value("string")


class VqaAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=vqa.__doc__,
            citation="Antol et al., VQA: Visual Question Answering, arXiv 1505.00468; Singh et al., Towards VQA Models That Can Read, arXiv 1904.08920",
            inputs_description="predictions: raw answers. references: the annotators' answers of each question. question_types, answer_types: types of each question and answer. protocol: official or evalai.",
            features=datasets.Features(
                {
                    "predictions": TEXT,
                    "references": datasets.Sequence(TEXT),
                    "question_types": TEXT,
                    "answer_types": TEXT,
                }
            ),
            reference_urls=["https://github.com/GT-Vision-Lab/VQA"],
        )

    def _compute(self, predictions, references, question_types, answer_types, protocol="official"):
        columns = zip(predictions, references, question_types, answer_types, strict=True)
        rows = [vqa.VqaRow(str(place), *values) for place, values in enumerate(columns)]
        return vqa.vqa_score(rows, protocol)
