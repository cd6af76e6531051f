"""The judge finds every fault: a good outcome has none, and each bad one has its own."""

import os
import socket
import subprocess
import sys
import time

import pytest

from maya_vlm.training import cli

from .cards import card_faults
from .case import Case, Fault, Outcome, Place
from .child import attempt
from .oracle import SORTS, judge
from .world import World

REFUSED = Case("", lambda place: [], "refused", ("rows.json",))
LINE = "maya data: error: rows.json: expected a list\n"
COUNTS = "{} rows read: {} good, {} refused\n"


def sorts(case, **fields):
    return [fault.sort for fault in judge(case, Outcome(**fields))]


def test_good_outcomes_have_no_fault():
    assert sorts(REFUSED, code=2, stderr=LINE) == []
    assert sorts(REFUSED, code=1, stdout="rows.json[3]: bad\n" + COUNTS.format(5, 4, 1)) == []
    accepted = Case("", lambda place: [], "accepted", rows=5)
    assert sorts(accepted, code=0, stdout=COUNTS.format(5, 5, 0)) == []


@pytest.mark.parametrize(
    ("sort", "fields"),
    [
        ("traceback", {"code": 1, "crash": "KeyError: 'a' [x.py:1 in y]"}),
        ("traceback", {"code": 2, "stderr": "Traceback (most recent call last)\n" + LINE}),
        ("killed by a signal", {"code": None, "signal": 9}),
        ("hangs", {"code": None, "hang": True}),
        ("memory", {"peak": 5000.0, "code": 2, "stderr": LINE}),
        ("more than one line", {"code": 2, "stderr": "a warning\n" + LINE}),
        ("a long line", {"code": 2, "stderr": LINE.strip() + "x" * 500}),
        ("control characters", {"code": 2, "stderr": LINE.strip() + "\x1b[2J"}),
        ("control characters", {"code": 2, "stderr": LINE.strip() + "\u202e"}),
        ("names nothing", {"code": 2, "stderr": "maya data: error: expected a list"}),
        ("accepted in silence", {"code": 0}),
        ("exit status", {"code": 3, "stderr": LINE}),
        ("exit status", {"code": 2, "stdout": "rows.json"}),
        ("writes outside of its folder", {"code": 2, "stderr": LINE, "writes": ["/etc/x"]}),
        ("reads another folder", {"code": 2, "stderr": LINE, "reads": ["/etc/x"]}),
        ("connects", {"code": 2, "stderr": LINE, "connections": ["10.0.0.1:80"]}),
        ("starts a program", {"code": 2, "stderr": LINE, "programs": ["gs"]}),
        ("half-written", {"code": 2, "stderr": LINE, "broken": ["config.json"]}),
        ("counts do not add up", {"code": 1, "stdout": "rows.json" + COUNTS.format(5, 3, 1)}),
    ],
)
def test_every_fault_is_found(sort, fields):
    assert sort in SORTS
    assert sorts(REFUSED, **fields) == [sort]


def test_faults_that_hang_on_the_case():
    good = Case("", lambda place: [], "accepted", rows=5)
    assert sorts(good, code=2, stderr=LINE) == ["refused though good"]
    assert sorts(good, code=0, stdout=COUNTS.format(4, 4, 0)) == ["counts do not add up"]
    either = Case("", lambda place: [], rows=5)
    assert sorts(either, code=0, stdout=COUNTS.format(5, 4, 1)) == ["counts do not add up"]
    assert sorts(either, found=[Fault("memory", "")]) == ["memory"]


@pytest.mark.parametrize(
    ("name", "sort"),
    [
        ("<img src=x>", "a name becomes markup of a card"),
        ("[x](javascript:alert(1))", "a name becomes markup of a card"),
        ("`a` <script>", "a name becomes markup of a card"),
        ("\x1b[2J", "control characters"),
    ],
)
def test_cards_are_looked_at(name, sort):
    assert [fault.sort for fault in card_faults(f"---\nlicense: mit\n---\n# {name}\n")] == [sort]
    assert card_faults("---\nlicense: mit\n---\n# `<img src=x>`\n") == []
    assert card_faults("---\na: 'x\n---\n# a\n")[0].sort == "a card's head is no YAML"
    stolen = "---\nname: a\nlicense: stolen\n---\n# a\n"
    assert card_faults(stolen)[0].sort == "a card's head is not its own"


# ------------------------------------------------------------------------------ what a child sees


def refuses(place):
    raise ValueError("rows.json: expected a list")


def hangs(place):
    time.sleep(60)


def eats(place):
    bytearray(2 * 2**30)[:: 2**12] = b"1" * 2**19
    refuses(place)


def connects(place):
    with pytest.raises(OSError):
        socket.create_connection(("10.0.0.1", 80))
    refuses(place)


def looks_up(place):
    with pytest.raises(OSError):
        socket.getaddrinfo("example.org", 80)
    refuses(place)


def starts(place):
    with pytest.raises(OSError):
        subprocess.run(["true"])
    refuses(place)


def writes(place):
    (place.input / "other.txt").write_text("x")
    refuses(place)


def escapes(place):
    place.output.mkdir()
    (place.output / "link").symlink_to(place.input / "other.txt")
    (place.output / "link").write_text("x")
    refuses(place)


def makes_folder(place):
    os.mkdir(place.root / "escaped")
    refuses(place)


def reads(place):
    place.secret.read_bytes()
    refuses(place)


def half(place):
    place.output.mkdir()
    (place.output / "config.json").write_text('{"a": ')
    refuses(place)


def dies(place):
    os.kill(os.getpid(), 9)


def exits(place):
    os._exit(0)


def crashes(place):
    raise KeyError("rows.json")


def warns(place):
    print("a warning", file=sys.stderr)
    refuses(place)


def keeps_to_its_folder(place):
    place.output.mkdir()
    (place.output / ".config.tmp").write_text('{"a": ')
    (place.output / "config.json").write_text("{}")
    (place.scratch / "x").write_text("x")
    refuses(place)


@pytest.mark.parametrize(
    ("command", "sort"),
    [
        (refuses, None),
        (keeps_to_its_folder, None),
        (hangs, "hangs"),
        (eats, "memory"),
        (connects, "connects"),
        (looks_up, "connects"),
        (starts, "starts a program"),
        (writes, "writes outside of its folder"),
        (escapes, "writes outside of its folder"),
        (makes_folder, "writes outside of its folder"),
        (reads, "reads another folder"),
        (half, "half-written"),
        (dies, "killed by a signal"),
        (exits, "traceback"),
        (crashes, "traceback"),
        (warns, "more than one line"),
    ],
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_is_watched(command, sort, tmp_path, monkeypatch):
    place = Place(tmp_path / "case", World(tmp_path / "world"))
    monkeypatch.setattr(cli.env, "run", lambda args: command(place))
    seconds = 1.0 if command is hangs else 30.0
    case = Case("", lambda place: ["env"], "refused", ("rows.json",), seconds=seconds)
    found = [fault.sort for fault in judge(case, attempt(case, place))]
    assert found == ([] if sort is None else [sort])
