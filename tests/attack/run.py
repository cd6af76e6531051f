"""Attack the commands with bad inputs that are drawn from a seed.

    python tests/attack/run.py --seed 1 --cases 200 --kinds images rows --json faults.json
    python tests/attack/run.py --seed 1 --only images:17

Prints for every kind how many inputs were tried and how many have a fault; of every sort of fault the
smallest input, with what repeats it. Ends with 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # The folder of this file has modules of common names; imports start at the repository.
    sys.path[0] = str(ROOT)

from tests.attack.case import Case, Fault, Place  # noqa: E402
from tests.attack.child import attempt  # noqa: E402
from tests.attack.oracle import judge  # noqa: E402
from tests.attack.world import World, warm  # noqa: E402

KINDS = (
    "images",
    "rows",
    "recipes",
    "plans",
    "configs",
    "weights",
    "checkpoints",
    "datasets",
    "names",
    "answers",
    "results",
    "scored",
)


@dataclass(frozen=True)
class Tried:
    """One input and its faults. size: of the files it consists of, in bytes."""

    kind: str
    number: int
    about: str
    size: int
    seconds: float
    faults: list[Fault]


def drawn(kind: str, seed: int) -> Iterator[Case]:
    """The cases of a kind, the same for the same seed."""
    module = importlib.import_module(f"tests.attack.{kind}")
    return module.cases(random.Random(f"{kind} {seed}"))


def attack(kind: str, seed: int, numbers: range, world: World, keep: bool = False) -> list[Tried]:
    """Try the cases of these numbers."""
    tried = []
    for number, case in enumerate(itertools.islice(drawn(kind, seed), numbers.stop)):
        if number not in numbers:
            continue
        place = Place(world.root / "cases" / f"{kind}-{number}", world)
        outcome = attempt(case, place)
        size = sum(p.lstat().st_size for p in place.input.rglob("*") if not p.is_dir())
        seconds = round(outcome.seconds, 2)
        faults = judge(case, outcome)
        tried.append(Tried(kind, number, printable(case.about), size, seconds, faults))
        if keep:
            print(f"{place.root}\n{outcome}")
        else:
            shutil.rmtree(place.root)
    return tried


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def smallest(tried: list[Tried]) -> list[tuple[str, str, int, Tried, str]]:
    """(kind, sort of fault, how often, the smallest input with it, an excerpt)."""
    found: dict[tuple[str, str], list[tuple[Tried, str]]] = {}
    for each in tried:
        for fault in each.faults:
            found.setdefault((each.kind, fault.sort), []).append((each, fault.shown))
    lines = []
    for (kind, sort), those in sorted(found.items()):
        least, shown = min(those, key=lambda one: (one[0].size, one[0].number))
        lines.append((kind, sort, len(those), least, printable(shown)))
    return lines


def report(tried: list[Tried], seed: int) -> str:
    """The table, and a line for every sort of fault."""
    lines = [f"{'kind':<14}{'tried':>7}{'faults':>8}"]
    for kind in dict.fromkeys(each.kind for each in tried):
        of_kind = [each for each in tried if each.kind == kind]
        lines.append(f"{kind:<14}{len(of_kind):>7}{sum(bool(t.faults) for t in of_kind):>8}")
    for kind, sort, times, least, shown in smallest(tried):
        lines.append(f"{kind}: {sort}, {times} times; --seed {seed} --only {kind}:{least.number}")
        lines.append(f"    {least.about}: {shown}")
    return "\n".join(lines)


def record(tried: list[Tried], seed: int, seconds: float) -> dict[str, Any]:
    """What the JSON file says."""
    try:
        common = importlib.import_module("maya_vlm.training.common.provenance")
        made_by: Any = common.provenance()
    except (ImportError, AttributeError, TypeError):
        from maya_vlm.training.evaluation import results

        made_by = {"package": results.package(), "versions": results.versions()}
    return {
        "provenance": made_by,
        "seed": seed,
        "seconds": round(seconds, 1),
        "tried": len(tried),
        "faults": sum(bool(each.faults) for each in tried),
        "cases": [
            {**asdict(each), "faults": [fault._asdict() for fault in each.faults]} for each in tried
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case; its folder is kept")
    parser.add_argument("--json", type=Path, help="write every case there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="maya-attack-"))
    world, began, tried = World(folder), time.monotonic(), []
    warm(world.home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if args.serve:
            serve(world)
            return 0
        if args.only:
            kind, _, number = args.only.partition(":")
            numbers = range(int(number), int(number) + 1)
            tried = attack(kind, args.seed, numbers, world, keep=True)
        else:
            for kind in args.kinds:
                for number in range(0, args.cases, 50):
                    numbers = range(number, min(number + 50, args.cases))
                    tried += attack(kind, args.seed, numbers, world)
                    seconds = time.monotonic() - began
                    faults = sum(bool(t.faults) for t in tried)
                    said = f"{kind}: {numbers.stop} tried, {faults} faults in all, {seconds:.0f} s"
                    print(said, file=sys.stderr, flush=True)
    finally:
        if not args.only:
            shutil.rmtree(folder)
    print(report(tried, args.seed))
    if args.json:
        made = record(tried, args.seed, time.monotonic() - began)
        args.json.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return 1 if any(each.faults for each in tried) else 0


def serve(world: World) -> None:
    """For the tests: answer lines `KIND SEED CASES` with a line of JSON until the input ends."""
    for line in sys.stdin:
        kind, seed, cases = line.split()
        tried = attack(kind, int(seed), range(int(cases)), world)
        faults = sum(bool(each.faults) for each in tried)
        answer = {"tried": len(tried), "faults": faults, "report": report(tried, int(seed))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())
