"""Every command meets bad inputs of every kind, drawn from a fixed seed, and has no fault.

    python tests/attack/run.py --cases 500 --seed 1

tries more of them. The inputs are tried by a process of its own, which imports everything once.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .run import KINDS, drawn

SEED = 0
# Few where a case trains or loads a model.
CASES = {"images": 24, "rows": 20, "recipes": 20, "plans": 14, "datasets": 12, "names": 16}
FEW = {"configs": 10, "weights": 8, "checkpoints": 4, "answers": 10, "results": 12, "scored": 12}


@pytest.fixture(scope="module")
def attacker():
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_bad_input_has_a_fault(kind, attacker):
    cases = {**CASES, **FEW}[kind]
    attacker.stdin.write(f"{kind} {SEED} {cases}\n")
    attacker.stdin.flush()
    answer = json.loads(attacker.stdout.readline())
    assert answer["tried"] == cases
    assert answer["faults"] == 0, answer["report"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_cases(kind):
    one, same, other = (
        [(case.about, case.expect) for case, _ in zip(drawn(kind, seed), range(40), strict=False)]
        for seed in (1, 1, 2)
    )
    assert one == same != other
    assert len(set(one)) > 15
