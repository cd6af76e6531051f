"""Make or raise constraints.txt: the exact versions that the README's commands install.

    python tests/compatibility/constraints.py              # raise everything to the newest releases
    python tests/compatibility/constraints.py --keep       # change only what setup.py's bounds require
    python tests/compatibility/constraints.py --torch 2.14.1
    python tests/compatibility/constraints.py --installed  # list installed packages of other versions

uv resolves the versions for all extras of setup.py together, for Python 3.11 and newer on every system, so one
file is enough. Nothing is installed. torch keeps the version in the file unless `--torch` gives another. After a
raise, run `.ci/run`: only then the versions count as tested.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
HEADER = """\
# The exact versions that this state of the package was tested with. Used by the README's commands:
#     pip install -c constraints.txt -e ".[train,eval]"
# Made and raised by `python tests/compatibility/constraints.py`; not edited by hand.
"""


def resolve(*arguments: str) -> list[str]:
    """Return uv's lines `name==version ; marker` for setup.py. Raise ValueError with uv's reason."""
    command = ["uv", "pip", "compile", "setup.py", "--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", "--quiet", "--system-certs", *arguments]
    uv = Path(sys.executable).with_name("uv")
    command[0] = str(uv) if uv.exists() else "uv"
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise ValueError(" ".join(done.stderr.split()))
    return done.stdout.splitlines()


def versions(lines: list[str]) -> dict[str, set[str]]:
    """Return package -> versions; a package may have one version per Python version or system."""
    found: dict[str, set[str]] = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        if match:
            found.setdefault(match[1].lower().replace("_", "-"), set()).add(match[2])
    return found


def make(torch: str | None = None, keep: bool = False) -> list[str]:
    """Write constraints.txt, and return a line for every package whose versions changed."""
    old = versions(CONSTRAINTS.read_text().splitlines()) if CONSTRAINTS.exists() else {}
    torch = torch or next(iter(old.get("torch", {"2.13.0"})))
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.txt"
        kept = CONSTRAINTS.read_text() if keep and old else ""
        kept = "".join(line for line in kept.splitlines(True) if not line.startswith("torch=="))
        given.write_text(f"torch=={torch}\n{kept}")
        lines = resolve("--all-extras", "--constraint", str(given))
    CONSTRAINTS.write_text(HEADER + "\n".join(lines) + "\n")
    new = versions(lines)
    return [
        f"{name}: {' '.join(sorted(old.get(name, ['-'])))} -> {' '.join(sorted(new.get(name, ['-'])))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def differences() -> list[str]:
    """Return the installed packages whose version is not the one in constraints.txt."""
    pinned = versions(CONSTRAINTS.read_text().splitlines())
    found = []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        # A build of torch has a suffix for the CPU or CUDA release in its version.
        version = distribution.version.partition("+")[0]
        if name in pinned and version not in pinned[name] and name != "setuptools":
            wanted = " or ".join(sorted(pinned[name]))
            found.append(
                f"{name}: {distribution.version} is installed, constraints.txt says {wanted}"
            )
    return sorted(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", help="version of torch")
    parser.add_argument("--keep", action="store_true", help="keep every version that still fits")
    parser.add_argument("--installed", action="store_true", help="only compare with what is here")
    options = parser.parse_args()
    if options.installed:
        if found := differences():
            sys.exit("\n".join(found))
        sys.exit()
    print("\n".join(make(options.torch, options.keep)) or "nothing changed")
