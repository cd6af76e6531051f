"""The languages that tests and benchmarks take, by their BCP-47 codes."""

# Of the paper and its pretraining data.
PAPER = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar")
# Of the mini dataset and models.
MINI = (*PAPER, "bn", "ur")
