"""Public parsers of yes and no, which read an answer as their scripts do, mistakes included.

All of them know only English: POPE's script reads every answer without the exact words No, not or no
as yes, and MME's reads "Known" and "Non" as no.
"""

from __future__ import annotations

from .parsed import Parser
from .vqa import without_marks
from .yes_no import OURS, YesNo


def pope_official(response: str) -> YesNo | None:
    """Parse as POPE's and LLaVA's scripts: the words No, not or no before the first full stop, else yes."""
    found = response.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(found) else "yes"


def mme_official(response: str) -> YesNo | None:
    """Parse as MME's tool: yes, then no, in the first four characters in lower case."""
    beginning = response.lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else None


def lmms_eval_mme(response: str) -> YesNo | None:
    """Parse as lmms-eval's MME: as the tool, without full stops and outer spaces, and y or n alone."""
    response = response.lower().strip().replace(".", "")
    if len(response) == 1:
        return "yes" if response == "y" else "no" if response == "n" else None
    return mme_official(response)


def lmms_eval_pope(response: str) -> YesNo | None:
    """Parse as lmms-eval's POPE: the answer is exactly yes or no; "Yes." is neither."""
    response = response.lower().strip()
    return "yes" if response == "yes" else "no" if response == "no" else None


def vlmevalkit(response: str) -> YesNo | None:
    """Parse as VLMEvalKit: exactly one of the words yes and no, after VQA's punctuation rule."""
    found = without_marks(response.lower()).split()
    if ("yes" in found) == ("no" in found):
        return None
    return "yes" if "yes" in found else "no"


YES_NO_PARSERS: dict[str, Parser[YesNo | None]] = {
    parser.name: parser
    for parser in (
        OURS,
        Parser(
            "yes_no_pope", 1, "POPE (2305.10355), evaluate.py; LLaVA, eval_pope.py", pope_official
        ),
        Parser("yes_no_mme", 1, "MME (2306.13394), eval_tool/calculation.py", mme_official),
        Parser("yes_no_lmms_eval_mme", 1, "lmms-eval 0.7.3, tasks/mme/utils.py", lmms_eval_mme),
        Parser("yes_no_lmms_eval_pope", 1, "lmms-eval 0.7.3, tasks/pope/utils.py", lmms_eval_pope),
        Parser(
            "yes_no_vlmevalkit", 1, "VLMEvalKit e8e78f0, vlmeval/dataset/utils/yorn.py", vlmevalkit
        ),
    )
}
