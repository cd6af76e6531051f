"""m-WildVision: 500 questions of people, translated into 23 languages, the model against another one."""

from .duels import Columns, Duels


class MWildVision(Duels):
    """Questions that people asked an arena of models."""

    name = "m_wildvision"
    title = "m-WildVision"
    repository = "CohereLabs/m-WildVision"
    columns = Columns("question_id", "instruction")
