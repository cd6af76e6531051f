"""m-WildVision: 500 user questions, translated into 23 languages, the model against another one."""

from .duels import Columns, Duels


class MWildVision(Duels):
    """Questions that users asked in an arena of models."""

    name = "m_wildvision"
    title = "m-WildVision"
    repository = "CohereLabs/m-WildVision"
    columns = Columns("question_id", "instruction")
