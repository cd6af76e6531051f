"""A metric of the `evaluate` library: MMBench, computed by scoring/mmbench.py."""

import datasets
import evaluate

from maya_vlm.training.evaluation.scoring import mmbench

TEXT = datasets.Value("string")
NUMBER = datasets.Value("int64")


class Mmbench(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=mmbench.__doc__,
            citation="Liu et al., MMBench: Is Your Multi-modal Model an All-around Player?, arXiv 2307.06281",
            inputs_description="predictions: parsed letters, None if unparsable. references: right letters. indexes: indexes of the rows. options: number of options of each row.",
            features=datasets.Features(
                {"predictions": TEXT, "references": TEXT, "indexes": TEXT, "options": NUMBER}
            ),
            reference_urls=["https://github.com/open-compass/MMBench"],
        )

    def _compute(self, predictions, references, indexes, options):
        columns = zip(indexes, options, predictions, references, strict=True)
        return mmbench.mmbench_score(mmbench.MmbenchRow(*values) for values in columns)
