"""The benchmarks, one file each. A new one is listed here.

mini.py: the mini dataset of this package, ten languages
pope.py, mme.py: yes or no
short_answers.py: what tasks of short answers share
gqa.py, vqav2.py, textvqa.py, vizwiz.py: short answers
xgqa.py, maxm.py, mtvqa.py: short answers in several languages
marvl.py: true or false, about two pictures
scienceqa.py, mmbench.py, cvqa.py, xmmmu.py, m3exam.py, kaleidoscope.py: multiple choice
xm3600.py: captions
safety.py: refusals, and refusals that are wrong, ten languages
"""

from ..protocol import Task
from .cvqa import Cvqa
from .gqa import Gqa
from .kaleidoscope import Kaleidoscope
from .m3exam import M3Exam
from .marvl import MaRvl
from .maxm import MaXm
from .mini import Mini
from .mmbench import MmBench
from .mme import Mme
from .mtvqa import MtVqa
from .pope import Pope
from .safety import Safety
from .scienceqa import ScienceQa
from .textvqa import TextVqa
from .vizwiz import VizWiz
from .vqav2 import VqaV2
from .xgqa import XGqa
from .xm3600 import Xm3600
from .xmmmu import Xmmmu

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Mini,
        Pope,
        Mme,
        Gqa,
        ScienceQa,
        VqaV2,
        TextVqa,
        VizWiz,
        MmBench,
        Cvqa,
        XGqa,
        MaXm,
        MaRvl,
        Xm3600,
        MtVqa,
        Kaleidoscope,
        Xmmmu,
        M3Exam,
        Safety,
    )
}


def task(name: str) -> Task:
    """The task `NAME` or `NAME:PROTOCOL`; ValueError, naming the known ones, for another."""
    name, _, protocol = name.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name](protocol or None)
