"""The benchmarks: one file for each, plus files that hold code which several benchmarks share.

A new benchmark is one file that is added to TASKS below.

mini.py: the mini dataset of this package, in ten languages
pope.py, mme.py: yes-or-no questions
short_answers.py: base class of the tasks that compare a short answer with reference answers
people.py: base class of the tasks that compare an answer with the answers of ten annotators
vqav2.py, textvqa.py, vizwiz.py: short answers, compared with those of ten annotators
gqa.py: short answers in English
xgqa.py, maxm.py, mtvqa.py: short answers in several languages
marvl.py: true or false, about two pictures
scienceqa.py, mmbench.py, cvqa.py, xmmmu.py, m3exam.py, kaleidoscope.py: multiple choice
kaleidoscope_thinking.py: Kaleidoscope's chain-of-thought prompt in 18 languages
xm3600.py: captions
judged.py: base class of the tasks whose answers a judge model grades
llava_bench.py, mm_vet.py, alm_bench.py: open answers, graded by a judge
duels.py: base class of the tasks in which a judge compares two models' answers
aya_vision_bench.py, m_wildvision.py: open answers in 23 languages, compared with another model's
safety.py, safety.yaml: harmful requests to refuse and harmless ones to answer, in ten languages
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
# Alternative names of tasks.
ALIASES = {"palo": "llava_bench"}


def task(name: str) -> Task:
    """Return the task for `NAME` or `NAME:PROTOCOL`.

    Raises:
        ValueError: the task or its protocol is unknown; the message lists the known ones.
    """
    name, _, protocol = name.partition(":")
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(sorted(TASKS))}, found {name!r}")
    return TASKS[name](protocol or None)
