"""Languages of tests and benchmarks, as BCP-47 codes."""

# Languages of the paper and its pretraining data.
PAPER = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar")
# Languages of the mini dataset and models.
MINI = (*PAPER, "bn", "ur")
