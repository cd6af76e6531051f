"""Versions that matter: what is installed, what was tested, and how to install what is missing.

The tested ranges are those of setup.py, read from the installed package's metadata.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

PACKAGE = "maya-vlm"
# In the order of a bug report; those of the first line load a Maya, the others train and build.
SHOWN = (
    *("torch", "transformers", "pillow", "numpy", "tokenizers", "safetensors", "huggingface-hub"),
    *("trl", "peft", "accelerate", "datasets", "pyarrow", "bitsandbytes", "deepspeed"),
    *("datatrove", "sacrebleu"),
)


@dataclass(frozen=True)
class Installed:
    """A package: its version (None: not installed) and the range that was tested ("" where any)."""

    name: str
    version: str | None
    tested: str

    @property
    def outside(self) -> bool:
        """Whether the installed version is outside of the tested range."""
        if self.version is None or not self.tested:
            return False
        try:
            return Version(self.version) not in SpecifierSet(self.tested, prereleases=True)
        except InvalidVersion:
            return False

    def line(self) -> str:
        """For a list in a bug report."""
        found = self.version or "not installed"
        tested = f" (tested: {self.tested})" if self.tested else ""
        return f"- {self.name}: {found}{tested}{', OUTSIDE OF THE TESTED RANGE' if self.outside else ''}"


def version_of(name: str) -> str | None:
    """The version of an installed package, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_ranges() -> dict[str, str]:
    """Package -> its bounds; empty where this package is not installed.

    Those of the extras count where TRL is installed: loading a Maya is tested with more releases than
    training one.
    """
    if version_of(PACKAGE) is None:
        return {}
    lines = importlib.metadata.requires(PACKAGE) or []
    if version_of("trl") is None:
        lines = [line for line in lines if "extra ==" not in line]
    found: dict[str, set[str]] = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        bounds = {str(specifier) for specifier in requirement.specifier}
        found.setdefault(requirement.name.lower(), set()).update(bounds)
    return {name: _narrowest(bounds) for name, bounds in found.items()}


def _narrowest(bounds: set[str]) -> str:
    """The highest lower and the lowest upper bound, `>=a,<b`."""
    low = sorted((b for b in bounds if b.startswith(">=")), key=lambda b: Version(b[2:]))
    high = sorted((b for b in bounds if b.startswith("<")), key=lambda b: Version(b.lstrip("<=")))
    return ",".join([*low[-1:], *high[:1]])


def installed() -> list[Installed]:
    """The packages that matter, in the order of `SHOWN`."""
    ranges = tested_ranges()
    return [Installed(name, version_of(name), ranges.get(name, "")) for name in SHOWN]


def own_version() -> str:
    """Of this package, `unknown` where it is not installed."""
    return version_of(PACKAGE) or "unknown"


def checkout() -> Path | None:
    """The checkout that this package is installed from, None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "setup.py").is_file() else None


def how_to_install(extra: str) -> str:
    """The command that brings the packages of an extra, in the versions that were tested."""
    folder = checkout()
    if folder is None:
        return f"pip install '{PACKAGE}[{extra}]'"
    return f"pip install -c {folder / 'constraints.txt'} -e '{folder}[{extra}]'"


def warn_of_versions() -> str | None:
    """One sentence on the installed packages that are outside of the tested ranges, None without any."""
    outside = [package for package in installed() if package.outside]
    if not outside:
        return None
    named = ", ".join(f"{p.name} {p.version} (tested: {p.tested})" for p in outside)
    wanted = " ".join(f"'{p.name}{p.tested}'" for p in outside)
    return f"outside of the tested versions: {named}; pip install {wanted}"


def report() -> str:
    """What a bug report needs: the versions, the tested ranges, the machine without its name."""
    lines = [
        f"- {PACKAGE}: {own_version()}{' (checkout)' if checkout() else ''}",
        f"- python: {platform.python_version()}",
        f"- system: {platform.system()} {platform.machine()}",
        *(package.line() for package in installed()),
    ]
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        cuda = f"{torch.version.cuda}, {', '.join(names)}" if names else "no GPU"
    except Exception as error:  # a torch that cannot be imported is worth reporting too
        cuda = f"torch cannot be imported: {' '.join(str(error).split())[:200]}"
    lines.append(f"- CUDA: {cuda}")
    told = warn_of_versions()
    return "\n".join([*lines, *([f"\n{told}"] if told else [])])
