"""The pages of docs/: they build without a warning or a dead link, and no key is missing."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.training.ablation.study import Study
from maya_vlm.training.data.plan import Plan
from maya_vlm.training.evaluation.tasks import TASKS
from maya_vlm.training.recipe import Recipe, find_recipe
from tests.docs.blocks import inline
from tests.docs.site_links import dead_links

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
sys.path.insert(0, str(DOCS))
import reference  # noqa: E402


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.pages()


@pytest.mark.parametrize(
    ("page", "cls"), [("recipes", Recipe), ("plans", Plan), ("studies", Study)]
)
def test_no_key_is_missing(generated, page, cls):
    text = generated[page]
    found = list(reference.sections(cls))
    assert len(found) > 2
    for place, kind in found:
        section = text.split(f"## {f'`{place}`' if place else 'Top level'}\n")[1].split("\n## ")[0]
        for item in dataclasses.fields(kind):
            assert not item.init or f"\n| `{item.name}` |" in section, f"{place}.{item.name}"


def test_every_key_of_a_recipe_is_explained():
    for place, kind in reference.sections(Recipe):
        told = reference.explanations(kind)
        assert {item.name for item in dataclasses.fields(kind)} <= set(told), place


def test_every_command_and_task_has_its_section(generated):
    for name in reference.commands():
        assert f"## `maya {name}`\n" in generated["commands"]
    for name in TASKS:
        assert f"## `{name}`: " in generated["tasks"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            path = DOCS / target
            assert path.exists() or path.stem in reference.pages(), target
    for include in re.findall(r"\{include\} (\S+)", text):
        assert (DOCS / include).is_file()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for heading in re.findall(r'(?:start-after|end-before): "(.+)"', text):
        assert f"\n{heading}\n" in readme


def test_files_and_recipes_in_the_text_exist():
    folders = "training|tests|model_card|modeling_maya|processing_maya|docs|.ci|.github"
    paths = {code for _, code in inline() if re.fullmatch(rf"({folders})/[\w./-]*", code)}
    recipes = {code for _, code in inline() if re.fullmatch(r"(maya-8b|bases)/[\w-]+", code)}
    assert len(paths) > 20
    assert len(recipes) >= 7
    for path in paths:
        assert (ROOT / path).exists(), path
    for recipe in recipes:
        assert find_recipe(recipe).is_file()


def test_the_table_of_tasks_is_whole():
    page = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`.*? \|.*\| (.*) \|$", page, re.M)
    assert sorted(name for name, _ in rows) == sorted(TASKS)
    for name, others in rows:
        for task, protocol in re.findall(r"`(\w+):(\w+)`", others):
            assert task == name
            assert protocol in TASKS[name].protocols, f"{task}:{protocol}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built pages."""
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", DOCS, folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.docs
def test_the_pages_build_without_a_warning(site):
    built = (site / "generated" / "recipes.html").read_text(encoding="utf-8")
    assert "projector_num_layers" in built
    # A part of the README comes along.
    assert "without the picture" in (site / "index.html").read_text("utf-8")


@pytest.mark.docs
def test_every_link_of_the_built_pages_leads_somewhere(site):
    assert list(dead_links(site)) == []
    # Files of the repository are copied onto the site, Markdown that is no page too.
    copied = {path.name for path in (site / "_downloads").glob("*/*")}
    assert {"README.md", "recipe.py", "maya.ipynb"} <= copied


def test_dead_links_are_found(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.html").write_text('<h1 id="here">b</h1><a href="../../c.html">c</a>')
    (tmp_path / "a.html").write_text(
        '<a href="inner/b.html#here"></a><a href="#top"></a><a href="https://example.org/x"></a>'
        '<a href="inner/b.html#away"></a><a href="#away"></a><img src="away.png"><a href="inner"></a>'
    )
    (tmp_path.parent / "c.html").write_text("outside of the site")
    assert list(dead_links(tmp_path)) == [
        *(f"a.html: {link}" for link in ("inner/b.html#away", "#away", "away.png", "inner")),
        "inner/b.html: ../../c.html",
    ]
