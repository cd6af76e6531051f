"""The benchmarks, one file each. A new one is listed here.

mini.py: the mini dataset of this package, ten languages
pope.py, mme.py: yes or no
short_answers.py: what tasks of short answers share
people.py: what tasks share that compare with the answers of ten people
vqav2.py, textvqa.py, vizwiz.py: short answers, compared with those of ten people
gqa.py: short answers
xgqa.py, maxm.py, mtvqa.py: short answers in several languages
marvl.py: true or false, about two pictures
scienceqa.py, mmbench.py, cvqa.py, xmmmu.py, m3exam.py, kaleidoscope.py: multiple choice
kaleidoscope_thinking.py: the instruction of one of its protocols, in 18 languages
xm3600.py: captions
judged.py: what tasks share whose answers a model grades
llava_bench.py, mm_vet.py, alm_bench.py: open answers, graded by a judge
duels.py: what tasks share that compare the model with another one
aya_vision_bench.py, m_wildvision.py: open answers in 23 languages, the model against another one
safety.py: refusals, and refusals that are wrong, ten languages
"""

from ..protocol import Task
from .alm_bench import AlmBench
from .aya_vision_bench import AyaVisionBench
from .cvqa import Cvqa
from .gqa import Gqa
from .kaleidoscope import Kaleidoscope
from .llava_bench import LlavaBench
from .m3exam import M3Exam
from .m_wildvision import MWildVision
from .marvl import MaRvl
from .maxm import MaXm
from .mini import Mini
from .mm_vet import MmVet
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
        LlavaBench,
        MmVet,
        AyaVisionBench,
        MWildVision,
        AlmBench,
        Safety,
    )
}
# Other names of tasks.
ALIASES = {"palo": "llava_bench"}


def task(name: str) -> Task:
    """The task `NAME` or `NAME:PROTOCOL`; ValueError, naming the known ones, for another."""
    name, _, protocol = name.partition(":")
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name](protocol or None)
