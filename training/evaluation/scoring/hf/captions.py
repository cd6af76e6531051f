"""A metric of the `evaluate` library: caption scores, computed by scoring/captions.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import captions
from maya_vlm.training.evaluation.scoring.parsed import no_duplicates

TEXT = datasets.Value("string")


class Captions(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=captions.__doc__,
            citation="Vedantam et al., CIDEr, arXiv 1411.5726; Post, A Call for Clarity in Reporting BLEU Scores, arXiv 1804.08771; Popović, chrF, W15-3049",
            inputs_description="predictions: captions. references: human captions of each image. images: names of the images. language: BCP-47. tokenizer: words, jieba, mecab, characters or as_given.",
            features=datasets.Features(
                {"predictions": TEXT, "references": datasets.Sequence(TEXT), "images": TEXT}
            ),
            reference_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(self, predictions, references, images, language, tokenizer=None):
        no_duplicates(captions.METRIC, "image", images)
        own = dict(zip(images, predictions, strict=True))
        gold = dict(zip(images, references, strict=True))
        return captions.caption_score(own, gold, language, tokenizer)
