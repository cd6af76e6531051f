"""AyaVisionBench: 135 open questions in each of 23 languages, the model against another one."""

from .duels import Columns, Duels


class AyaVisionBench(Duels):
    """Nine kinds of questions with fifteen pictures each."""

    name = "aya_vision_bench"
    title = "AyaVisionBench"
    repository = "CohereLabs/AyaVisionBench"
    columns = Columns("index", "question")
