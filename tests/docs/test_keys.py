"""Keys of recipes that the text of the pages shows are keys, with values that a recipe may have."""

import dataclasses
import re
import typing

import pytest
import yaml
from trl import SFTConfig

from maya_vlm.training.common.schema import convert
from maya_vlm.training.recipe import AdapterRecipe, DataRecipe, ModelRecipe, Rule, StageRecipe
from tests.docs.blocks import ROOT, inline

CLASSES = {
    "model.": [ModelRecipe],
    "args.": [SFTConfig],
    "": [StageRecipe, ModelRecipe, DataRecipe, AdapterRecipe, Rule, SFTConfig],
}
# Pages that show keys of recipes; those of plans are on others.
PAGES = ("README.md", "migration.md", "train.md", "troubleshooting.md")
KEYS = [
    (page, code) for page, code in inline() if page in PAGES and re.match(r"[a-z_.]+: \S", code)
]


def check(code: str) -> None:
    """Raise AssertionError or ValueError unless `key: value` can be in a recipe."""
    ((name, value),) = yaml.safe_load(code).items()
    prefix = next(prefix for prefix in CLASSES if name.startswith(prefix))
    key = name.removeprefix(prefix)
    owners = [cls for cls in CLASSES[prefix] if key in {f.name for f in dataclasses.fields(cls)}]
    assert owners, f"{key} is no key of a recipe"
    if owners[0] is not SFTConfig:
        convert(typing.get_type_hints(owners[0])[key], value, "a page", key)


@pytest.mark.parametrize(("page", "code"), KEYS, ids=[f"{page}: {code}" for page, code in KEYS])
def test_a_key_and_its_value_fit(page, code):
    check(code)


def test_what_does_not_fit_is_found_out():
    assert len(KEYS) > 20
    for code in ("model.projector_layers: 2", "data: [{folder: x}]", "args.max_len: 3"):
        with pytest.raises((AssertionError, ValueError)):
            check(code)


def test_tables_of_keys_name_keys():
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    stage, model = (
        {field.name for field in dataclasses.fields(cls)} for cls in (StageRecipe, ModelRecipe)
    )
    tables = re.findall(r"\| key(?: of `model`)? \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    assert len(tables) == 2
    for table, known in zip(tables, (stage, model), strict=True):
        for cell in re.findall(r"^\| (.+?) \|", table, re.M):
            assert set(re.findall(r"`(\w+)`", cell)) <= known, cell
