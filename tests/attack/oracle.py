"""The one judge of all attacks: what a command did, and which faults that has."""

from __future__ import annotations

import re
import unicodedata

from .case import Case, Fault, Outcome

LONGEST = 500  # characters of a line
MEMORY = 1024  # MiB above what the imported libraries have
SORTS = (
    "traceback",
    "killed by a signal",
    "hangs",
    "memory",
    "more than one line",
    "a long line",
    "control characters",
    "names nothing",
    "accepted in silence",
    "refused though good",
    "exit status",
    "writes outside of its folder",
    "reads another folder",
    "connects",
    "starts a program",
    "counts do not add up",
    "half-written",
)
_COUNTS = re.compile(r"([\d,]+) rows? read: ([\d,]+) good, ([\d,]+) refused")


def judge(case: Case, outcome: Outcome) -> list[Fault]:
    """Every fault of an outcome; an empty list for a good command."""
    faults = [
        *_ending(outcome),
        *_text(case, outcome),
        *_effects(outcome),
        *_counts(case, outcome),
        *outcome.found,
    ]
    if not _ended_well(outcome):
        return faults
    refused = outcome.code != 0
    if case.expect == "refused" and not refused:
        faults.append(Fault("accepted in silence", _tail(outcome.stdout)))
    if case.expect == "accepted" and refused:
        faults.append(Fault("refused though good", _tail(outcome.stderr or outcome.stdout)))
    said = outcome.stderr + outcome.stdout
    if refused and case.names and not any(name in said for name in case.names):
        faults.append(Fault("names nothing", _tail(outcome.stderr or said)))
    return faults


def _ended_well(outcome: Outcome) -> bool:
    return not (outcome.hang or outcome.crash or outcome.signal)


def _ending(outcome: Outcome) -> list[Fault]:
    faults = []
    if outcome.hang:
        faults.append(Fault("hangs", f"no end after {outcome.seconds:.0f} s"))
    elif outcome.crash:
        faults.append(Fault("traceback", outcome.crash[:300]))
    elif outcome.signal:
        faults.append(Fault("killed by a signal", f"signal {outcome.signal}"))
    elif outcome.code not in (0, 1, 2):
        faults.append(Fault("exit status", f"{outcome.code}: {_tail(outcome.stderr)}"))
    elif outcome.code == 2 and not outcome.stderr.strip():
        faults.append(Fault("exit status", "2 without a line that says why"))
    # The limit of the address space makes a MemoryError of what would take more.
    if outcome.peak > MEMORY or "MemoryError" in outcome.stderr:
        faults.append(Fault("memory", f"{outcome.peak:,.0f} MiB: {_tail(outcome.stderr)}"))
    return faults


def _text(case: Case, outcome: Outcome) -> list[Fault]:
    faults = []
    lines = [line for line in re.split(r"[\n\r]", outcome.stderr) if line.strip()]
    if lines and lines[0].startswith("usage: "):
        # Of arguments that do not fit, argparse shows the usage above its line.
        lines = lines[-1:]
    if "Traceback (most recent call last)" in outcome.stdout + outcome.stderr and not outcome.crash:
        faults.append(Fault("traceback", _tail(outcome.stderr)))
    elif len(lines) > 1 and _ended_well(outcome):
        beside = [line for line in lines if not line.startswith("maya ")] or lines[1:]
        faults.append(Fault("more than one line", f"{len(lines)} lines, one is {beside[0][:200]}"))
    shown = lines if case.answers else [*lines, *outcome.stdout.split("\n")]
    longest = max(shown, key=len, default="")
    if len(longest) > LONGEST:
        faults.append(Fault("a long line", f"{len(longest)} characters: {longest[:150]}"))
    for line in shown:
        bad = sorted({letter for letter in line if _controls(letter)})
        if bad:
            faults.append(Fault("control characters", f"{''.join(bad)!r} in {line[:200]!r}"))
            break
    return faults


def _controls(letter: str) -> bool:
    # Directions (Cf) can turn what a reader sees; joiners are part of scripts and emoji.
    if letter in "\t\u200c\u200d":
        return False
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _effects(outcome: Outcome) -> list[Fault]:
    effects = (
        ("writes outside of its folder", outcome.writes),
        ("reads another folder", outcome.reads),
        ("connects", outcome.connections),
        ("starts a program", outcome.programs),
        ("half-written", outcome.broken),
    )
    return [Fault(sort, ", ".join(found)[:300]) for sort, found in effects if found]


def _counts(case: Case, outcome: Outcome) -> list[Fault]:
    faults = []
    for found in _COUNTS.finditer(outcome.stdout):
        read, good, refused = (int(number.replace(",", "")) for number in found.groups())
        if good + refused != read or case.rows not in (None, read):
            faults.append(Fault("counts do not add up", f"{found[0]}; the file has {case.rows}"))
        # The first counts are for training, and the exit status is theirs; the second are for building.
        first = found.start() == _COUNTS.search(outcome.stdout).start()  # type: ignore[union-attr]
        if first and case.rows is not None and (refused > 0) != (outcome.code == 1):
            faults.append(Fault("counts do not add up", f"{found[0]}, exit {outcome.code}"))
    return faults


def _tail(text: str) -> str:
    return " ".join(text.split())[-300:]
