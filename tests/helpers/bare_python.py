"""A Python environment with only torch, transformers and pillow, like that of a new user."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

# The packages that the README requires to load a Maya, and pillow and numpy for images.
LOADERS = ("torch", "transformers", "pillow", "numpy")


def _closure(names: tuple[str, ...]) -> set[str]:
    """Return the names of the installed distributions that `names` need, including `names`."""
    waiting, found = list(names), set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def make_site(folder: Path, names: tuple[str, ...] = LOADERS) -> Path:
    """Fill `folder` with links to the installed packages that `names` need."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _closure(names):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            target = folder / top
            if source.exists() and not target.exists():
                target.symlink_to(source, target_is_directory=source.is_dir())
    return folder


def run_bare(
    code: str, site: Path, cwd: Path, env: dict[str, str] | None = None, timeout: int = 1200
) -> subprocess.CompletedProcess:
    """Run `code` with imports only from `site` and the standard library, and without standard input."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "VIRTUAL"))}
    prelude = f"import sys; sys.path.append({str(site)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", prelude + code],
        cwd=cwd,
        env={
            **kept,
            "HF_HOME": str(cwd / "hf_home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
