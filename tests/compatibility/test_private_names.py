"""Table of private names: complete, correct for the installed libraries, and bounded in setup.py."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from .constraints import CONSTRAINTS, versions
from .private_names import TABLE

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("modeling_maya", "processing_maya", "training", "model_card")
PACKAGES = ("modeling_maya", "processing_maya", "maya_vlm.training", "maya_vlm.model_card")
# Names of the standard library, or names that it adds to every class.
STANDARD = {"_exit", "_abc_impl", "_is_protocol", "_backward_cls"}
# Module -> the separately installed library that it imports.
APART = {
    "maya_vlm.training.evaluation.lmms_eval_maya": "lmms_eval",
    "maya_vlm.model_card.space.app": "gradio",
}


def is_private(name: str | None) -> bool:
    return bool(name) and name.startswith("_") and not name.startswith("__") and name != "_"


def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(REPOSITORY)): ast.parse(path.read_text(encoding="utf-8"))
        for room in ROOMS
        for path in sorted((REPOSITORY / room).rglob("*.py"))
    }


def defined_here(sources: dict[str, ast.Module]) -> set[str]:
    """Return the private names that the source defines as functions, classes, variables or attributes."""
    found = set()
    for tree in sources.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("self", "cls")
            ):
                found.add(node.attr)
    return set(filter(is_private, found))


def used_of_others() -> dict[str, set[str]]:
    """Return name -> files of private names that the source reads, passes or imports but does not define."""
    sources = trees()
    own = defined_here(sources)
    found: dict[str, set[str]] = defaultdict(set)
    for file, tree in sources.items():
        for node in ast.walk(tree):
            names: list[str | None] = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.keyword):
                names = [node.arg]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            for name in filter(is_private, names):
                if name not in own and name not in STANDARD:
                    found[str(name)].add(file)
    return found


def set_on_self(owner: type) -> set[str]:
    """Return the private attributes that the methods of a class set on `self`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner))))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and is_private(node.attr)
    }


def mentions(base: type, name: str) -> bool:
    """Return whether a library's class has a private name, or sets or reads it on `self`."""
    if name in vars(base):
        return True
    try:
        return f"self.{name}" in inspect.getsource(base)
    except (OSError, TypeError):  # a built-in class
        return False


def overridden() -> dict[str, set[str]]:
    """Return name -> files of private names in our classes that a library's base class also uses."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module_info in pkgutil.walk_packages(root.__path__, f"{package}."):
            if importlib.util.find_spec(APART.get(module_info.name, package)) is None:
                continue
            module = importlib.import_module(module_info.name)
            for _, owner in inspect.getmembers(module, inspect.isclass):
                if owner.__module__ != module.__name__:
                    continue
                others = [
                    base for base in owner.__mro__[1:-1] if not base.__module__.startswith(PACKAGES)
                ]
                if not others:
                    continue
                for name in {*filter(is_private, vars(owner)), *set_on_self(owner)} - STANDARD:
                    if any(mentions(base, name) for base in others):
                        file = Path(inspect.getfile(owner)).relative_to(REPOSITORY)
                        found[name].add(str(file))
    # `register_for_auto_class` sets it on classes that do not declare it.
    found.pop("_auto_class", None)
    return found


def test_every_use_is_in_the_table():
    listed: dict[str, set[str]] = defaultdict(set)
    for entry in TABLE:
        listed[entry.name].update(entry.files)
    found = used_of_others()
    for name, files in overridden().items():
        found[name] |= files
    unlisted = {name: sorted(files - listed[name]) for name, files in found.items()}
    assert {name: files for name, files in unlisted.items() if files} == {}
    declared = {entry.name for entry in TABLE if entry.name == "_auto_class"}
    assert {name for name in listed if name not in found} - declared == set()


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: f"{entry.library}-{entry.name}")
def test_the_installed_library_has_it(entry):
    problem = entry.problem()
    version = importlib.metadata.version(entry.library)
    files = " and ".join(entry.files)
    assert problem is None, (
        f"{entry.library} {version}: {problem}; {files} needs it: {entry.why}. Mend the use, then "
        f"raise the bound in setup.py."
    )


def test_a_name_that_is_gone_is_told():
    entry = TABLE[0]
    gone = type(entry)("_no_such", "transformers:Trainer", "use", ("a.py",), "why")
    assert gone.problem() == "transformers:Trainer has no _no_such"
    nowhere = type(entry)("_x", "transformers:NoTrainer", "use", ("a.py",), "why")
    assert "transformers:NoTrainer is gone" in str(nowhere.problem())
    other = type(entry)("_save", "transformers:Trainer", "override", ("a.py",), "why", ("folder",))
    assert other.problem() == "transformers:Trainer._save takes no folder"


def requirements() -> dict[str, list[Requirement]]:
    """Return name -> requirements of setup.py, from the installed metadata."""
    found: dict[str, list[Requirement]] = defaultdict(list)
    for line in importlib.metadata.requires("maya-vlm") or []:
        requirement = Requirement(line)
        found[requirement.name].append(requirement)
    return found


def test_libraries_with_private_names_have_a_ceiling_below_their_next_minor():
    declared = requirements()
    for library in {entry.library for entry in TABLE if entry.kind != "declare"} - {"torch"}:
        ceilings = {
            specifier.version
            for requirement in declared[library]
            for specifier in requirement.specifier
            if specifier.operator == "<"
        }
        assert ceilings, f"{library}: private names are used, and setup.py has no upper bound"
        (tested,) = versions(CONSTRAINTS.read_text().splitlines())[library]
        (ceiling,) = map(Version, ceilings)
        release = Version(tested)
        assert (ceiling.major, ceiling.minor) == (release.major, release.minor + 1)
