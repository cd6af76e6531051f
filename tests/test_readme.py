"""The README says what is so: its commands are the ones CI runs, its figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import learning_by_group_size, main_job
from tests.compatibility import matrix

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["main", "tests"])
def test_a_set_up_command_is_one_line(name):
    block = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert len(block.group(1).strip().splitlines()) == 1


def test_figures_are_those_of_the_results_files():
    study = learning_by_group_size
    others = {
        study.RESULT.stem: (study.RESULT, study.render),
        matrix.RESULTS.stem: (matrix.RESULTS, matrix.render),
    }
    sections = re.findall(r"<!-- ([\w-]+):begin -->", README)
    assert set(others) < set(sections)
    for name in sections:
        file, render = others.get(name) or (main_job.results_file(name), main_job.render)
        section = render(json.loads(file.read_text(encoding="utf-8")))
        assert main_job.readme_with(section, name, README) == README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
