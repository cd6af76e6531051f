"""Versions: constraints.txt, the bounds of setup.py, and the report of `maya env`."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from maya_vlm.training.cli import main
from maya_vlm.training.common import versions
from maya_vlm.training.common.versions import Installed

from .constraints import CONSTRAINTS, REPOSITORY, resolve
from .constraints import versions as read_versions

REQUIREMENTS = [Requirement(line) for line in importlib.metadata.requires("maya-vlm") or []]
EXTRAS = importlib.metadata.metadata("maya-vlm").get_all("Provides-Extra") or []


def test_the_constraints_fit_every_bound_of_setup():
    pinned = read_versions(CONSTRAINTS.read_text().splitlines())
    for requirement in REQUIREMENTS:
        found = pinned[requirement.name.lower()]
        assert all(version in requirement.specifier for version in found), (requirement, found)


def test_every_command_that_installs_uses_the_constraints():
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "pip install" in line and "-e " in line]
        assert all("-c constraints.txt" in line for line in lines), name
    for name in ("README.md", ".github/workflows/ci.yml"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert text.count("pip install -c constraints.txt -e") >= 2


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_extra_can_be_installed(extra):
    """Check every supported Python; only metadata is downloaded."""
    try:
        lines = resolve(*(["--extra", extra] if extra else []))
    except ValueError as error:
        if "No solution found" in str(error) or "because" in str(error):
            raise
        pytest.skip(f"the package index cannot be read: {str(error)[:200]}")
    assert "torch" in read_versions(lines)


def test_an_extra_that_cannot_be_installed_is_found(tmp_path):
    """Check that the test above fails for two contradictory bounds."""
    (tmp_path / "demo.txt").write_text("pillow>=13\ngradio>=6,<6.32\n")
    command = ["uv", "pip", "compile", str(tmp_path / "demo.txt"), "--system-certs", "--quiet"]
    command[0] = str(Path(sys.executable).with_name("uv"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "No solution found" not in done.stderr:
        pytest.skip(f"the package index cannot be read: {done.stderr[:200]}")
    assert done.returncode


def test_python_is_what_the_classifiers_and_the_ci_say():
    metadata = importlib.metadata.metadata("maya-vlm")
    classifiers = [line for line in metadata.get_all("Classifier") if "Python :: 3." in line]
    known = [line.rpartition(" ")[2] for line in classifiers]
    assert metadata["Requires-Python"] == f">={known[0]}"
    assert all(f"{version}.0" in SpecifierSet(metadata["Requires-Python"]) for version in known)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in known


# The command line


def test_env_names_versions_ranges_and_no_path_or_host(capsys):
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    for name in versions.SHOWN:
        assert f"- {name}: " in told
    assert f"- transformers: {importlib.metadata.version('transformers')} (tested: >=" in told
    assert "OUTSIDE" not in told
    assert str(Path.home()) not in told
    assert str(REPOSITORY) not in told
    assert os.uname().nodename not in told


def test_version_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"maya-vlm {importlib.metadata.version('maya-vlm')}, python 3.")
    assert f"transformers {importlib.metadata.version('transformers')}" in line


@pytest.fixture
def newer(monkeypatch):
    """Pretend that an untested transformers is installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        return "9.1.0" if name == "transformers" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_outside_of_the_tested_range_is_said(newer, capsys):
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    assert "- transformers: 9.1.0 (tested: >=5.6,<5.25), OUTSIDE OF THE TESTED RANGE" in told
    assert told.rstrip().endswith("pip install 'transformers>=5.6,<5.25'")


def test_an_error_with_an_untested_version_is_one_line_that_names_it(newer, capsys, monkeypatch):
    def renamed(*args, **kwargs):
        raise TypeError("got an unexpected keyword argument 'cache'")

    monkeypatch.setattr("maya_vlm.training.cli.chat.run", renamed)
    assert main(["chat", "a.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "maya chat: error: TypeError: got an unexpected keyword argument 'cache'; outside of the tested "
        "versions: transformers 9.1.0 (tested: >=5.6,<5.25); pip install 'transformers>=5.6,<5.25'; "
        "maya --traceback shows more"
    )


def test_an_error_with_tested_versions_keeps_its_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a fault of ours")

    monkeypatch.setattr("maya_vlm.training.cli.chat.run", broken)
    with pytest.raises(TypeError, match="a fault of ours"):
        main(["chat", "a.png"])


@pytest.mark.parametrize(
    ("version", "tested", "outside"),
    [
        ("5.24.0", ">=5.6,<5.25", False),
        ("5.25.0", ">=5.6,<5.25", True),
        ("5.5.4", ">=5.6,<5.25", True),
        ("2.13.0+cpu", ">=2.7", False),
        ("5.25.0.dev0", ">=5.6,<5.25", True),
        (None, ">=1", False),
        ("1", "", False),
        ("unknown", ">=1", False),
    ],
)
def test_outside(version, tested, outside):
    assert Installed("x", version, tested).outside is outside


# Installed names


SHADOWS = """
import sys
from pathlib import Path
import maya_vlm.model_card.cards.model, maya_vlm.training.recipe, modeling_maya, processing_maya
import training, model_card
assert training.MINE and model_card.MINE
print(maya_vlm.training.recipe.find_recipe("mini"), processing_maya.load_chat_template("maya")[:3])
"""


def run_beside_folders_of_the_same_name(
    folder: Path, *command: str, env: dict | None = None
) -> str:
    for name in ("training", "model_card"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text("MINE = True\n")
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_folder_of_a_user_hides_the_installed_package(tmp_path):
    (tmp_path / "script.py").write_text(SHADOWS)
    found = run_beside_folders_of_the_same_name(tmp_path, sys.executable, "script.py")
    assert "mini.yaml" in found
    maya = Path(sys.executable).with_name("maya")
    assert "mini" in run_beside_folders_of_the_same_name(tmp_path, str(maya), "train", "--help")


@pytest.mark.slow
def test_a_wheel_has_the_same_names_and_every_file(tmp_path):
    """Build outside the checkout, whose build folder may be old, and install only the wheel into a folder."""
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns(".*", "build", "runs", "__pycache__", "*.egg-info", "tests")
    shutil.copytree(REPOSITORY, source, ignore=unwanted)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "dist"), "."],
        cwd=source,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    assert {path.name for path in site.iterdir()} >= {
        "maya_vlm",
        "modeling_maya",
        "processing_maya",
    }
    assert not {"training", "model_card", "tests"} & {path.name for path in site.iterdir()}
    shipped = {
        path.relative_to(REPOSITORY)
        for room in ("training", "model_card", "modeling_maya", "processing_maya")
        for path in (REPOSITORY / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.parent.name != "pictures"
    }
    there = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    there |= {Path(*path.parts[1:]) for path in there if path.parts[0] == "maya_vlm"}
    assert shipped - there == set()
    script = SHADOWS + "\nassert 'site' in maya_vlm.training.recipe.__file__\n"
    (tmp_path / "script.py").write_text(script)
    run_beside_folders_of_the_same_name(
        tmp_path, sys.executable, "script.py", env={"PYTHONPATH": str(site)}
    )
