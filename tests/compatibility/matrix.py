"""Load a saved Maya in minimal environments with many releases of transformers, and compare the results.

    python tests/compatibility/matrix.py                    # floor, every fourth minor release, newest
    python tests/compatibility/matrix.py --releases all     # the newest patch of every minor release
    python tests/compatibility/matrix.py --releases 5.6.0 newest --pythons 3.11 3.13
    python tests/compatibility/matrix.py --releases newest --training
    python tests/compatibility/matrix.py --readme           # only write the table of docs/load.md again

pip makes every environment new: torch, transformers and pillow, with `--training` also TRL, peft and datasets.
`checks.py` runs there on tiny Mayas that the present environment saves. Its values (tokens, logits, losses) must
equal those of the present environment, floats within 1e-4 of their size. Exits with 1 if a value differs. With
`--write` the results go to tests/benchmarks/results/compatibility.json, which keeps rows that were not run, and
from there into docs/load.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))
CHECKS = Path(__file__).with_name("checks.py")
RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "compatibility.json"
FLOOR = "5.6.0"
TORCH, PILLOW = "2.13.0", "pillow"
TRAINING = ("trl", "peft", "accelerate", "datasets")
TOLERANCE = 1e-4
# Folders: decoder, tower, kind of projector, and the checks to run (all checks of checks.py on the first folder).
FOLDERS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("cohere", "siglip", "mlp", ()),
    ("cohere2", "siglip", "gated_cross_attention", ("generation", "training", "saving")),
    ("llama", "clip", "q_former", ("generation", "training", "saving")),
    ("qwen3", "siglip2", "mlp", ("generation", "training", "saving")),
)


def run(*command: str | Path, timeout: int = 3600, **kwargs: Any) -> subprocess.CompletedProcess:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, **kwargs
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1500:]}")
    return done


def known_releases() -> list[str]:
    """Return the releases of transformers on the package index from the oldest supported one, oldest first."""
    # Scripts may set PIP_QUIET, with which pip would print nothing.
    loud = {name: value for name, value in os.environ.items() if name != "PIP_QUIET"}
    told = run(sys.executable, "-m", "pip", "index", "versions", "transformers", env=loud).stdout
    lines = [line for line in told.splitlines() if line.startswith("Available versions:")]
    if not lines:
        raise RuntimeError(f"pip index versions transformers: expected versions, found {told!r}")
    found = [text.strip() for text in lines[0].partition(":")[2].split(",")]
    floor = Version(FLOOR)
    return sorted((text for text in found if Version(text) >= floor), key=Version)


def choose(wanted: list[str]) -> list[str]:
    """Return the wanted releases: numbers, `floor`, `newest`, `some` (every fourth minor), `all` (every minor)."""
    known = known_releases()
    minors = list({Version(text).release[:2]: text for text in known}.values())
    named = {
        "floor": [FLOOR],
        "newest": known[-1:],
        "all": [FLOOR, *minors],
        "some": [FLOOR, *minors[::4], minors[-1]],
    }
    chosen = [release for name in wanted for release in named.get(name, [name])]
    return sorted(dict.fromkeys(chosen), key=Version)


def find_python(version: str) -> str:
    """Return an interpreter of this minor version, on the PATH or installed by pyenv."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    places = [f"python{version}"]
    places += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    for place in places:
        try:
            found = run(place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout
        except (OSError, RuntimeError):
            continue
        if found.strip() == version:
            return place
    raise FileNotFoundError(f"no Python {version}: expected python{version} on the path")


def make_environment(folder: Path, python: str, release: str, torch: str, training: bool) -> Path:
    """Make a virtual environment with torch, transformers and pillow, and return its interpreter."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = [f"torch=={torch}", f"transformers=={release}", PILLOW]
    run(*install, *packages, *(TRAINING if training else ()))
    return inside


def run_checks(python: str | Path, folders: list[Path], scratch: Path) -> dict[str, Any]:
    """Return the reports of checks.py on every folder: {versions, warnings, checks: {folder/check: ...}}."""
    report: dict[str, Any] = {"checks": {}, "warnings": set()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "VIRTUAL"))}
    environment = {
        **kept,
        "HF_HOME": str(scratch / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for folder, (decoder, tower, _, names) in zip(folders, FOLDERS, strict=True):
        output = scratch / "report.json"
        output.unlink(missing_ok=True)
        run(python, CHECKS, folder, output, *names, cwd=scratch, env=environment)
        found = json.loads(output.read_text())
        report.update({name: found[name] for name in ("python", "transformers", "torch")})
        report["warnings"] |= set(found["warnings"])
        for name, result in found["checks"].items():
            report["checks"][f"{decoder}+{tower}: {name}"] = result
    report["warnings"] = sorted(report["warnings"])
    return report


def equal(one: Any, other: Any) -> bool:
    """Return whether two values of a check are equal, floats up to float32 rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE * (1 + abs(one))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return all(equal(one[name], other[name]) for name in one.keys() & other.keys())
    return bool(one == other)


def compare(report: dict[str, Any], reference: dict[str, Any]) -> tuple[dict, dict]:
    """Return (failed checks with reasons, absent checks with reasons)."""
    failed, absent = {}, {}
    for name, result in report["checks"].items():
        expected = reference["checks"][name]
        if "error" in result:
            failed[name] = result["error"].strip().splitlines()[-1][:300]
        elif "absent" in result:
            absent[name] = result["absent"]
        elif "values" in expected and not equal(expected["values"], result["values"]):
            failed[name] = "other values than in the reference"
    return failed, absent


def main(arguments: argparse.Namespace) -> int:
    from tests.helpers.tiny import PROJECTORS
    from tests.helpers.tiny_maya import save_tiny_maya

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folders = [
            save_tiny_maya(scratch / f"{decoder}-{tower}", decoder, tower, **PROJECTORS[kind])
            for decoder, tower, kind, _ in FOLDERS
        ]
        reference = run_checks(sys.executable, folders, scratch)
        failed, _ = compare(reference, reference)
        for name, reason in failed.items():
            print(f"this environment: {name}: {reason}", flush=True)
        for version in arguments.pythons:
            python = find_python(version)
            for release in choose(arguments.releases):
                started = time.monotonic()
                try:
                    with tempfile.TemporaryDirectory() as place:
                        inside = make_environment(
                            Path(place) / "env",
                            python,
                            release,
                            arguments.torch,
                            arguments.training,
                        )
                        report = run_checks(inside, folders, scratch)
                    wrong, absent = compare(report, reference)
                except RuntimeError as error:
                    report = {"python": version, "transformers": release, "torch": arguments.torch}
                    wrong, absent = {"environment": str(error)[:500]}, {}
                row = {
                    **{name: report[name] for name in ("python", "transformers", "torch")},
                    "training": arguments.training,
                    "verdict": "fails" if wrong else "same",
                    "failed": wrong,
                    "absent": absent,
                    "seconds": round(time.monotonic() - started),
                }
                rows.append(row)
                print(
                    f"python {row['python']}, transformers {row['transformers']}, torch {row['torch']}: "
                    f"{row['verdict']} ({row['seconds']} s)",
                    *(f"\n  {name}: {reason}" for name, reason in wrong.items()),
                    flush=True,
                )
    if arguments.write:
        write(rows, reference)
    return int(bool(failed) or any(row["failed"] for row in rows))


# Results


def key(row: dict[str, Any]) -> tuple:
    python = re.match(r"\d+\.\d+", row["python"])
    torch = row["torch"].partition("+")[0]
    return (Version(row["transformers"]), python and python[0], torch, row["training"])


def write(rows: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    from maya_vlm.training.common.provenance import provenance

    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    known = {key(row): row for row in [*old, *rows]}
    content = {
        **provenance(),
        "reference": {name: reference[name] for name in ("python", "transformers", "torch")},
        "tolerance": TOLERANCE,
        "rows": [known[place] for place in sorted(known, key=str)],
    }
    content["rows"].sort(key=lambda row: (Version(row["transformers"]), row["python"]))
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    write_readme()


# Explanations of `absent` in a row, for docs/load.md.
ABSENT = {
    "image_processor": "AutoImageProcessor alone (needs torchvision there)",
    "trainers": "TRL's loss on answers only",
}


def table(content: dict[str, Any]) -> str:
    """Return the table, with one line for consecutive releases with equal results."""
    lines = [
        "| transformers | Python | torch | loads and answers | peft and TRL | not there |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = content["rows"]
    releases = list(dict.fromkeys(row["transformers"] for row in rows))
    groups: list[tuple[list[str], tuple[str, ...]]] = []
    for release in releases:
        cells = _cells([row for row in rows if row["transformers"] == release])
        if groups and groups[-1][1] == cells:
            groups[-1][0].append(release)
        else:
            groups.append(([release], cells))
    lines += [f"| {', '.join(names)} | {' | '.join(cells)} |" for names, cells in groups]
    return "\n".join(lines)


def _cells(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    def told(name: str) -> str:
        return ", ".join(sorted({row[name].partition("+")[0] for row in rows}, key=Version))

    def verdict(training: bool) -> str:
        part = [row for row in rows if row["training"] == training]
        wrong = sorted({name for row in part for name in row["failed"]})
        return f"fails: {', '.join(wrong)}" if wrong else "same" if part else "not run"

    absent = {
        name.partition(": ")[2]
        for row in rows
        for name in row["absent"]
        if row["training"] or not name.endswith(("adapters", "trainers"))
    }
    told_absent = ", ".join(sorted(ABSENT.get(name, name.replace("_", " ")) for name in absent))
    return (told("python"), told("torch"), verdict(False), verdict(True), told_absent or "-")


def render(content: dict[str, Any]) -> str:
    """Return the section of docs/load.md: the table and its source."""
    reference = content["reference"]
    return (
        f"{table(content)}\n\n"
        f"`same`: every token equals that of transformers {reference['transformers']}, every logit and "
        f"loss within {content['tolerance']:g} of its size. From "
        f"`{RESULTS.relative_to(REPOSITORY)}`, written by `python tests/compatibility/matrix.py "
        f"--releases all --write`."
    )


def write_readme() -> None:
    from tests.benchmarks.main_job import DOCS, put

    put(DOCS / "load.md", "compatibility", render(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", default=["some"])
    parser.add_argument(
        "--pythons", nargs="+", default=[f"{sys.version_info.major}.{sys.version_info.minor}"]
    )
    parser.add_argument("--torch", default=TORCH)
    parser.add_argument("--training", action="store_true", help="with TRL, peft and datasets")
    parser.add_argument(
        "--write", action="store_true", help="keep the results, and in docs/load.md"
    )
    parser.add_argument(
        "--readme", action="store_true", help="only write the table of docs/load.md again"
    )
    given = parser.parse_args()
    if given.readme:
        write_readme()
    else:
        sys.exit(main(given))
