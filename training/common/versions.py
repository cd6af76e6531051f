"""Package versions: which are installed, which were tested, how to install missing ones.

The tested ranges come from setup.py, through the metadata of the installed package.
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
# In the order of a bug report. The first line's packages load a Maya, the others train and build data.
SHOWN = (
    *("torch", "transformers", "pillow", "numpy", "tokenizers", "safetensors", "huggingface-hub"),
    *("trl", "peft", "accelerate", "datasets", "pyarrow", "bitsandbytes", "deepspeed"),
    *("datatrove", "sacrebleu"),
)


@dataclass(frozen=True)
class Installed:
    """A package: installed version (None if missing) and tested range ("" if any version)."""

    name: str
    version: str | None
    tested: str

    @property
    def outside(self) -> bool:
        """Whether the installed version is outside the tested range."""
        if self.version is None or not self.tested:
            return False
        try:
            return Version(self.version) not in SpecifierSet(self.tested, prereleases=True)
        except InvalidVersion:
            return False

    def line(self) -> str:
        """Return the package's line in a bug report."""
        found = self.version or "not installed"
        tested = f" (tested: {self.tested})" if self.tested else ""
        return f"- {self.name}: {found}{tested}{', OUTSIDE OF THE TESTED RANGE' if self.outside else ''}"


def version_of(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_ranges() -> dict[str, str]:
    """Return package -> tested bounds; empty if this package is not installed.

    Bounds of the extras count only if TRL is installed: loading a Maya is tested with more releases
    than training one.
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
    """Return the highest lower and the lowest upper bound, `>=a,<b`."""
    low = sorted((b for b in bounds if b.startswith(">=")), key=lambda b: Version(b[2:]))
    high = sorted((b for b in bounds if b.startswith("<")), key=lambda b: Version(b.lstrip("<=")))
    return ",".join([*low[-1:], *high[:1]])


def installed() -> list[Installed]:
    """Return the packages in `SHOWN`, in that order."""
    ranges = tested_ranges()
    return [Installed(name, version_of(name), ranges.get(name, "")) for name in SHOWN]


def own_version() -> str:
    """Return this package's version, or `unknown` if it is not installed."""
    return version_of(PACKAGE) or "unknown"


def checkout() -> Path | None:
    """Return the checkout that this package is installed from, or None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "setup.py").is_file() else None


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of an extra in their tested versions."""
    folder = checkout()
    if folder is None:
        return f"pip install '{PACKAGE}[{extra}]'"
    return f"pip install -c {folder / 'constraints.txt'} -e '{folder}[{extra}]'"


def warn_of_versions() -> str | None:
    """Return one sentence on installed packages outside of the tested ranges, or None."""
    outside = [package for package in installed() if package.outside]
    if not outside:
        return None
    named = ", ".join(f"{p.name} {p.version} (tested: {p.tested})" for p in outside)
    wanted = " ".join(f"'{p.name}{p.tested}'" for p in outside)
    return f"outside of the tested versions: {named}; pip install {wanted}"


def report() -> str:
    """Return the facts for a bug report: versions, tested ranges, the machine without its host name."""
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
    except Exception as error:  # report any failure to import torch too
        cuda = f"torch cannot be imported: {' '.join(str(error).split())[:200]}"
    lines.append(f"- CUDA: {cuda}")
    told = warn_of_versions()
    return "\n".join([*lines, *([f"\n{told}"] if told else [])])
