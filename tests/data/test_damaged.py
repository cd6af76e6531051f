"""Test damaged files of a build: they are made again, or reported in one line."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.data.engine.progress import build_status, format_status
from maya_vlm.training.data.reviews import apply_policy
from tests.data.tiny_build import make_plan, rows_of, translate, write_source

ODD = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "mapping": b"{}",
    "text": b'"\\u001b[2J"',
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_source(folder / "in", rows_of(25))
    plan = make_plan(folder, layout=LayoutPlan(images="bytes", shard_rows=9))
    translate(plan)
    assemble(plan, progress=False)
    return folder, plan


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def told(call):
    """Return the one-line error of a call, or None."""
    try:
        call()
    except (ValueError, OSError) as error:
        line = str(error)
    else:
        return None
    assert line.isprintable()
    return line


def again(built, damage, *arguments):
    """Run the steps of a damaged build; return its dataset, or its one-line error."""
    folder, plan = built
    whole = folder / "whole"
    if not whole.exists():
        shutil.copytree(plan.folder, whole)
    shutil.rmtree(plan.folder)
    shutil.copytree(whole, plan.folder)
    damage(plan.folder, *arguments)
    told(lambda: format_status(build_status(plan.folder)))

    def run():
        translate(plan)
        assemble(plan, progress=False)

    line = told(run)
    assert line is None or str(plan.folder) in line
    return line or files(plan.folder / "dataset")


NOTES = [
    "source/manifest.json",
    "translate/fr/00000.json",
    "toxicity/words/fr/00001.json",
    "toxicity/summary.json",
    "assemble/fr.json",
    "assemble/images.json",
    "assemble/messages.json",
    "assemble/audit.json",
    "dataset/manifest.json",
]


@pytest.mark.parametrize("name", NOTES)
def test_notes_of_another_shape_are_made_again(built, name):
    whole = again(built, lambda copy: None)
    good = json.loads((built[1].folder / name).read_bytes())
    changed = [{**good, key: value} for key in good for value in (None, [], "x", {"x": "y"})]
    contents = [
        *ODD.values(),
        *(json.dumps(each).encode() for each in changed[:: len(changed) // 6]),
    ]
    whole = again(built, lambda copy: None)
    for content in contents:
        made = again(built, lambda copy, content: (copy / name).write_bytes(content), content)
        assert made == whole, content[:60]


PARQUET = [
    "source/00000.parquet",
    "translate/fr/00000.parquet",
    "toxicity/inputs/words/fr/00000.parquet",
    "toxicity/words/fr/00000.parquet",
    "toxicity/decisions.parquet",
    "toxicity/audit.parquet",
    "dataset/data/fr/clean-00000.parquet",
    "dataset/images/part-00000.parquet",
]


@pytest.mark.parametrize("name", PARQUET)
def test_tables_of_another_shape_are_made_again_or_one_line(built, name):
    whole = again(built, lambda copy: None)

    def other(copy):
        pq.write_table(pa.table({"x": [1, 2], "id": [3, 4]}), copy / name)

    def cut(copy):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])

    def flipped(copy):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 3] ^= 0xFF
        (copy / name).write_bytes(content)

    for damage in (other, cut, flipped, lambda copy: (copy / name).write_bytes(b"")):
        made = again(built, damage)
        if isinstance(made, str):
            # Changed inputs are not judged again automatically.
            assert name.startswith("toxicity/inputs"), made
        else:
            assert made == whole


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
@pytest.mark.parametrize("name", ["toxicity/decisions.parquet", "review/overrides.parquet"])
def test_the_policy_of_a_damaged_build_is_one_line(built, tmp_path, content, name):
    from maya_vlm.training.data.plan import write_plan

    folder, plan = built
    copy = tmp_path / "copy"
    shutil.copytree(folder / "build", copy)
    write_plan(plan, copy / "plan.yaml")
    text = (copy / "plan.yaml").read_text().replace(str(folder / "build"), str(copy))
    (copy / "plan.yaml").write_text(text)
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(content)
    if name.startswith("toxicity"):
        apply_policy(copy, sheets=True)
        return
    with pytest.raises(
        ValueError, match=r"overrides.parquet: not a readable parquet file"
    ) as error:
        apply_policy(copy)
    assert str(error.value).isprintable()


def test_a_list_of_units_of_another_shape_is_one_line(built, tmp_path):
    shutil.copytree(built[0] / "build", tmp_path / "copy")
    (tmp_path / "copy" / "plan.yaml").write_text("{}")
    listed = tmp_path / "copy" / "translate" / "fr" / "units.json"
    for content in (*ODD.values(), b'{"worker": "x", "key": "k", "units": {"../../x": 3}}'):
        listed.write_bytes(content)
        with pytest.raises(ValueError, match=r"units\.json: ") as error:
            build_status(tmp_path / "copy")
        assert str(error.value).isprintable()
