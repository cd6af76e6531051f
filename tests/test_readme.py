"""The README says what is so: its commands are the ones CI runs, its figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import learning_by_group_size, main_job

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["main", "tests"])
def test_a_set_up_command_is_one_line(name):
    block = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len(block.group(1).strip().splitlines()) == 1


def test_figures_are_those_of_the_results_files():
    study = learning_by_group_size
    sections = re.findall(r"<!-- ([\w-]+):begin -->", README)
    assert study.RESULT.stem in sections
    for name in sections:
        of_study = name == study.RESULT.stem
        file = study.RESULT if of_study else main_job.results_file(name)
        record = json.loads(file.read_text(encoding="utf-8"))
        section = study.render(record) if of_study else main_job.render(record)
        assert main_job.readme_with(section, name, README) == README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
