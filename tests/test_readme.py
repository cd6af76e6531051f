"""The README says what is so: its commands are the ones CI runs, its figures are the measured ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from maya_vlm.training.evaluation.tasks import TASKS
from tests.benchmarks import learning_by_group_size, main_job
from tests.compatibility import matrix
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_maya import tiny_picture
from tests.modeling_maya.llava_cohere import tiny_original as original

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import prefix_picture  # noqa: E402

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
        main_job.SUMMARY: (main_job.results_file("mini"), main_job.render_summary),
    }
    found = []
    for page in (main_job.README, *sorted(main_job.DOCS.glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"<!-- ([\w-]+):begin -->", text):
            file, render = others.get(name) or (main_job.results_file(name), main_job.render)
            section = render(json.loads(file.read_text(encoding="utf-8")))
            assert main_job.readme_with(section, name, text) == text, f"{page.name}: {name}"
            found.append(name)
    assert sorted(found) == sorted([*others, "mini", "mini-apart", "mini-large"])


def test_the_picture_says_what_was_measured():
    """Its title in the README, the file, its words and its widths are those of the results file."""
    results = json.loads((ROOT / "tests/benchmarks/results/training_speed.json").read_text("utf-8"))
    case = results["cases"]["pretrain_15_60"]
    faster = case["times_faster"]["trl_supervised"]["step"]["ratio_of_medians"]
    tokens = case["decoder_tokens_per_sample"]
    apart, shared = tokens["trl_supervised"], tokens["maya"]
    image = case["shape"]["image_tokens"]
    numbers = prefix_picture.numbers()
    assert (numbers["apart"], numbers["shared"], numbers["image"]) == (apart, shared, image)
    assert numbers["faster"] == faster
    assert numbers["loss"] == case["loss"]["largest_relative_difference"] < 1e-6
    assert f": {faster:.0f} times as fast, with the same loss]" in README
    assert 0.2 < shared / apart < 0.3  # "about a quarter of the work"
    with Image.open(prefix_picture.PICTURE) as stored:
        assert json.loads(stored.text["Description"]) == numbers

    (axes,) = prefix_picture.drawing(numbers).axes
    words = "\n".join(text.get_text() for text in axes.texts)
    found = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", words)]
    assert found == [round(apart), round(shared), round(faster, 1)]
    # Rows of image, caption and padding, then one image with all captions.
    widths = [patch.get_width() for patch in axes.patches]
    rows, together = widths[:24], widths[24:]
    assert [sum(rows[start : start + 3]) for start in range(0, 24, 3)] == pytest.approx([apart] * 8)
    assert rows[::3] == [image] * 8 == [together[0]] * 8
    assert rows[1::3] == together[1:]
    assert sum(together) == pytest.approx(8 * shared)


def test_the_lines_that_ask_the_published_weights_work(tmp_path):
    """On a tiny checkpoint of the original's format, behind its name on a Hub of this machine."""
    (snippet,) = [part.split("```")[0] for part in README.split("```python\n")[1:]]
    assert len([line for line in snippet.splitlines() if line]) <= 6
    folder = tmp_path / "checkpoint"
    original.write_checkpoint(folder, mm_vision_tower="someone/tower")
    tiny_picture().save(tmp_path / "picture.png")
    with HubServer() as hub:
        hub.put("model", "maya-multimodal/maya", folder)
        hub.put("model", "someone/tower", tmp_path / "tower")
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_number_of_tasks_is_right():
    assert f"scores {len(TASKS)} benchmarks" in README


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 170


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), target
            headings = (
                re.findall(r"^#+ (.+)", (ROOT / path).read_text("utf-8"), re.M) if anchor else []
            )
            assert not anchor or anchor in [h.lower().replace(" ", "-") for h in headings], target
