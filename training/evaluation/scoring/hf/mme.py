"""A metric of the `evaluate` library: MME, computed by scoring/mme.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import mme
from maya_vlm.training.evaluation.scoring.parsed import chosen
from maya_vlm.training.evaluation.scoring.yes_no_public import YES_NO_PARSERS

TEXT = datasets.Value("string")


class Mme(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=mme.__doc__,
            citation="Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, arXiv 2306.13394",
            inputs_description="predictions: raw answers. references: yes or no. images, categories: image and category of each question. parser: name of a parser of yes and no.",
            features=datasets.Features(
                {"predictions": TEXT, "references": TEXT, "images": TEXT, "categories": TEXT}
            ),
            reference_urls=["https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"],
        )

    def _compute(self, predictions, references, images, categories, parser="yes_no"):
        read = chosen(YES_NO_PARSERS, parser)
        columns = zip(predictions, references, images, categories, strict=True)
        rows = [
            mme.MmeRow(str(place), image, category, read(answer), label.strip().lower(), answer)
            for place, (answer, label, image, category) in enumerate(columns)
        ]
        return {**mme.mme_score(rows), "parser": read.id}
