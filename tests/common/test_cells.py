"""Spreadsheet cells that would be run as formulas."""

import pytest

from maya_vlm.training.common.telling import inert, original

FORMULAS = [
    "=1+1", "+1", "-1", "@x", "\t=1", "\rx", "\tx", "＝1+1", "＋1", "－1", "＠x", " =1", "\u00a0=1", "\ufeff=1",
    '"=1"', "'=1", "''=1", "“=1", "\n=1", "\u200b=1", "\x00=1", "﹣1", " '\"@x", "'\tx",
]  # fmt: skip
OTHERS = ["", "a", "'", "'a", "''", "a=1", "1-1", "猫", "“a”", "\na", " a", "…", "'quoted' = x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_would_run_is_inert_and_comes_back(text):
    assert inert(text) == f"'{text}"
    assert original(inert(text)) == text
    assert original(inert(inert(text))) == inert(text)


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_stay(text):
    assert inert(text) == text == original(text)
