"""Streamed data: the same groups as in memory, each once, found from a step's number alone."""

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.joined import Filters, GroupedTables
from maya_vlm.training.batches.open import open_groups
from maya_vlm.training.batches.streaming import StreamedGroups
from maya_vlm.training.recipe import DataRecipe, Rule, StageRecipe, load_recipe
from maya_vlm.training.rows.tables import ParquetTable, StorageError, find_files
from tests.helpers.hub_server import HubServer
from tests.helpers.image_groups import image_groups
from tests.helpers.tiny_processing import tiny_processor

from ..run.tiny_run import make_recipe, write
from .test_packing import share, targets
from .tiny_stream import README, caption_rows, make_rows, make_tables, path_of, png, write_shards

ROOT = Path(__file__).parents[2]
MINI = ROOT / "training" / "data" / "mini"


def stream(path: Path, buffer: int = 16, **fields) -> StreamedGroups:
    recipe = DataRecipe(str(path), streaming=True, **fields)
    stage = StageRecipe("s", [recipe], [Rule(".*", 1.0)], shuffle_buffer=buffer)
    data = open_groups(stage, seed=0)
    assert isinstance(data, StreamedGroups)
    return data


def names(data, part) -> list[tuple[str, str]]:
    found = [data.conversation(int(i)) for i in part]
    return [(c.id, c.language) for c in found]


def epoch(data, size: int = 8, step: int = 4, seed: int = 0, number: int = 0) -> list[list]:
    """Return the groups of an epoch, step by step, as lists of (row id, language)."""
    once = len(data.plan(None, size, seed))
    plan = data.plan((number + 1) * once, size, seed)
    groups = []
    for start in range(number * once, (number + 1) * once, step):
        for at, part in plan[start : min(start + step, (number + 1) * once)]:
            assert at == number
            groups.append(names(data, part))
    return groups


# ------------------------------------------------------------------------------ the same data


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("buffer", [1, 16, 1000])
def test_every_group_once_and_whole(tmp_path, size, buffer):
    data = stream(make_tables(tmp_path), buffer)
    assert len(data) == 57
    found = epoch(data, size)
    assert Counter(row for group in found for row in group) == Counter(
        (f"{n:05}", language)
        for n in range(20)
        for language in ("en", "fr", "hi")
        if (n, language) not in ((4, "fr"), (7, "en"), (7, "fr"))
    )
    assert all(len({identity for identity, _ in group}) == 1 for group in found)
    # As many groups as the images need; no group is split.
    expected = [-(-sum(r[0] == f"{n:05}" for g in found for r in g) // size) for n in range(20)]
    assert len(found) == sum(expected)


@pytest.mark.parametrize("built", [False, True])
def test_captions_come_with_their_image(tmp_path, built):
    data = stream(make_tables(tmp_path, built=built))
    plan = data.plan(None, 8, 0)
    for start in range(0, len(plan), 4):
        for _, part in plan[start : start + 4]:
            for one in map(data.conversation, part.tolist()):
                assert one.messages[1]["content"].endswith(f" {int(one.id)}")
                (key,) = one.images
                expected = np.asarray(load(png(int(one.id))))
                assert np.array_equal(np.asarray(data.load_image(0, key, one.id)), expected)


def load(content: bytes):
    from maya_vlm.training.common.images import load_image

    return load_image(content)


@pytest.mark.parametrize("built", [False, True])
def test_as_in_memory(tmp_path, built):
    """Both hold the same rows, so training learns the same."""
    path = make_tables(tmp_path, missing=(), built=built)
    streamed = stream(path)
    whole = GroupData([DataRecipe(str(path), image_folder=str(tmp_path))])
    options = {"batch_size": 20}
    found = []
    for data in (streamed, whole):
        plan = data.plan(None, 3, seed=0)
        assert len(plan) == 20
        collator = GroupCollator(data, tiny_processor(), plan=plan, **options)
        encoded = [collator.encode(int(i)) for _, part in plan[:] for i in part]
        assert data.load_image(0, encoded[0].images[0], encoded[0].id).size == (12, 12)
        found.append(Counter((e.id, e.ids.tobytes(), e.trained.tobytes()) for e in encoded))
    assert found[0] == found[1]


@pytest.mark.skipif(not (MINI / "texts").is_dir(), reason="the mini dataset is not built here")
def test_the_mini_dataset():
    """Texts are sorted by id, images by path; ids of two tables interleave."""
    fields = {"config": "instruct_bn", "split": "validation"}
    data = stream(MINI, 300, **fields)
    whole = GroupData([DataRecipe(str(MINI), **fields)])
    assert len(data) == len(whole)
    assert sorted(data.tasks) == sorted(whole.tasks)
    plan = data.plan(None, 8, 0)
    assert len(plan) == len(whole.plan(None, 8, 0))
    for _, part in plan[:8]:
        (key,) = {c.images for c in map(data.conversation, part.tolist())}
        assert data.load_image(0, key[0], "?").size == (64, 64)


# ------------------------------------------------------------------------------ order


def test_the_order_follows_from_the_seed_and_the_epoch(tmp_path):
    path = make_tables(tmp_path)
    one = epoch(stream(path))
    assert one == epoch(stream(path))
    assert one != epoch(stream(path), seed=1)
    assert one != epoch(stream(path), number=1)
    assert sorted(map(sorted, one)) == sorted(map(sorted, epoch(stream(path), number=1)))
    numbers = [int(group[0][0]) for group in one]
    assert numbers != sorted(numbers)
    # A buffer as large as the data shuffles everything; a buffer of one image shuffles only blocks.
    assert epoch(stream(path, 1)) != one
    data = stream(path)
    stored = data.plan(None, 8, 0, shuffled=False)
    assert [names(data, p)[0][0] for _, p in stored[:]] == [f"{n:05}" for n in range(20)]


def test_any_step_can_be_read_alone(tmp_path):
    """A resumed process or a worker starts at any step without reading earlier steps."""
    path = make_tables(tmp_path)
    straight = epoch(stream(path), step=4) + epoch(stream(path), step=4, number=1)
    assert len(straight) == 40
    for step in (9, 0, 5, 6, 2):
        data = stream(path)
        plan = data.plan(40, 8, 0)
        groups = [names(data, part) for _, part in plan[step * 4 : step * 4 + 4]]
        assert groups == straight[step * 4 : step * 4 + 4]


def test_workers_and_ranks_compute_what_one_process_does(tmp_path):
    data = stream(make_tables(tmp_path))
    plan = data.plan(24, 2, seed=0)
    options = {"plan": plan, "batch_size": 6}
    alone = GroupCollator(data, tiny_processor(), **options)
    steps = [targets(share(alone, step, 0)["rows"]) for step in range(4)]
    many = GroupCollator(data, tiny_processor(), ranks=3, max_length=80, **options)
    for step in (3, 1):
        rows = [row for rank in range(3) for row in share(many, step, rank)["rows"]]
        assert targets(rows) == steps[step]
    items = [{"step": step, "rank": 0} for step in range(4)]
    workers = DataLoader(items, batch_size=1, collate_fn=alone, num_workers=2)
    assert [targets(found["rows"]) for found in workers] == steps
    # Processes that are not forked receive the data by pickling.
    again = pickle.loads(pickle.dumps(data))
    assert len(again._windows) == 0
    fresh = GroupCollator(again, tiny_processor(), batch_size=6, plan=again.plan(24, 2, seed=0))
    assert targets(share(fresh, 2, 0)["rows"]) == steps[2]


def test_memory_is_bounded(tmp_path, monkeypatch):
    """At most two windows are in memory; an epoch reads each row group of images about once."""
    data = stream(make_tables(tmp_path, images=160), buffer=32)
    read: Counter = Counter()
    original = ParquetTable._read

    def count(self, group, columns, ahead=False):
        if "image" in columns and "caption" not in columns:
            read[group] += 1
        return original(self, group, columns, ahead)

    monkeypatch.setattr(ParquetTable, "_read", count)
    plan = data.plan(None, 8, 0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=12)
    for step in range(len(plan) // 12):
        share(collator, step, 0)
        assert len(data._windows) <= 2
        assert sum(len(w.place) for w in data._windows.values()) <= 2 * 3 * 33
        assert len(collator._encoded) <= 12 * 3
    assert len(read) == 40
    assert max(read.values()) <= 3
    assert sum(read.values()) <= 80


# ------------------------------------------------------------------------------ what is read


def test_languages_and_limit(tmp_path):
    path = make_tables(tmp_path)
    data = stream(path, languages=["hi", "fr"], limit=6)
    found = [row for group in epoch(data) for row in group]
    assert {language for _, language in found} == {"fr", "hi"}
    assert sorted({identity for identity, _ in found}) == [f"{n:05}" for n in range(6)]
    assert len(found) == len(data) == 11
    report = " ".join(data.report)
    assert "rows dropped by the recipe's languages and tasks: en 6" in report
    assert "limit 6: the first 6 images" in report
    with pytest.raises(
        ValueError,
        match="languages: expected values in the data, found 'xx': use some of en, fr, hi",
    ):
        stream(path, languages=["xx"])


def test_rows_that_hold_their_images(tmp_path):
    data = stream(make_rows(tmp_path / "rows.parquet"), buffer=3)
    found = epoch(data, step=1)
    assert Counter(row for group in found for row in group) == Counter(
        (f"{n}-{t}", ("en", "fr")[t]) for n in range(6) for t in range(2)
    )
    assert all(len(group) == 1 for group in found), "rows' images cannot be compared"
    assert "images: each row holds its own image bytes, so no image is shared" in data.report[0]
    plan = data.plan(None, 8, 0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=len(plan))
    (row,) = share(collator, 0, 0)["rows"]
    assert len(row["pixel_values"]) == 10 + 2
    assert len(row["image_index"]) == 10 + 2


@pytest.mark.parametrize("large", [False, True])
def test_lists_of_paths_are_grouped_as_in_memory(tmp_path, large):
    cells = [[0], [0], [0], [1, 2], [1, 2], [2, 1], [3], [], None, [3]]
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [
        {
            "id": f"{i:02}",
            "images": None if cell is None else [f"{n}.png" for n in cell],
            "messages": [
                {"role": "user", "content": "What?"},
                {"role": "assistant", "content": f"No. {i}"},
            ],
        }
        for i, cell in enumerate(cells)
    ]
    table = pa.Table.from_pylist(rows)
    if large:
        kind = pa.large_list(pa.large_string())
        table = table.set_column(1, "images", table["images"].cast(kind))
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=4)
    found = []
    for data in (stream(path, 100), GroupData([DataRecipe(str(path))])):
        plan = data.plan(None, 8, 0)
        found.append(sorted(sorted(i for i, _ in names(data, part)) for _, part in plan[:]))
        collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=len(plan))
        (row,) = share(collator, 0, 0)["rows"]
        assert len(row["pixel_values"]) == 4
        assert len(row["image_index"]) == 1 + 2 + 2 + 1
    assert found[0] == found[1]
    assert len(found[0]) == 6
    assert stream(path, limit=2).report[-1].endswith("limit 2: the first 2 images")
    assert len(stream(path, limit=1)) == 3
    several = list(image_groups(str(path)))
    assert [g.image for g in several[:3]] == ["0.png", "1.png\0002.png", "2.png\0001.png"]
    assert [len(g.rows) for g in several] == [3, 2, 1, 2, 1, 1]


def test_an_empty_name_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]
    rows = [
        {"id": str(i), "image": name, "messages": turns}
        for i, name in enumerate(["", "", "a.png", "a.png", "", ""])
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    memory = GroupData([DataRecipe(str(path))])
    assert len(stream(path).plan(None, 8, 0)) == len(memory.plan(None, 8, 0)) == 5
    assert len(stream(path, limit=1)) == len(GroupData([DataRecipe(str(path), limit=1)])) == 2


def test_lists_of_one_length_keep_all_their_images(tmp_path):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "These."}]
    pictures = [{"bytes": png(n), "path": None} for n in range(2)]
    table = pa.Table.from_pylist([{"id": "0", "messages": turns, "images": pictures}])
    kind = pa.list_(table.schema.field("images").type.value_type, 2)
    table = table.set_column(2, "images", pa.array([pictures], kind))
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    assert pa.types.is_fixed_size_list(pq.read_schema(path).field("images").type)
    for data in (stream(path), GroupData([DataRecipe(str(path))])):
        plan = data.plan(None, 1, 0)
        collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=1)
        (row,) = share(collator, 0, 0)["rows"]
        assert len(row["pixel_values"]) == 2


def test_limits_count_what_they_can(tmp_path):
    """Without image names, a limit counts rows; rows without an image are dropped, as in memory."""
    path = make_rows(tmp_path / "rows.parquet")
    rows = pq.read_table(path).to_pylist()
    for number in (1, 4):
        rows[number]["images"] = []
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    for limit, expected in ((1, ["0-0"]), (2, ["0-0", "1-0"]), (5, ["0-0", "1-0", "1-1", "2-1", "3-0"])):  # fmt: skip
        data = stream(path, buffer=17, limit=limit)
        assert f"limit {limit}: the first {limit} rows with images" in data.report[-1]
        assert sorted(i for group in epoch(data) for i, _ in group) == expected
    assert len(stream(path, limit=100)) == sum(map(len, epoch(stream(path, limit=100)))) == 9
    french = stream(path, buffer=17, limit=2, languages=["fr"])
    assert sorted(i for group in epoch(french) for i, _ in group) == ["1-1", "2-1"]
    # Named images, with rows between them that name none.
    rows = [row | {"images": [f"{row['id'][0]}.png"] if row["images"] else None} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    for limit in (2, 100):
        data = stream(path, buffer=17, limit=limit)
        found = [i for group in epoch(data) for i, _ in group]
        assert len(found) == len(data) == {2: 3, 100: 9}[limit]
    # No images, with and without an image column.
    for bare in (
        [row | {"images": None} for row in rows],
        [{k: v for k, v in row.items() if k != "images"} for row in rows],
    ):
        pq.write_table(pa.Table.from_pylist(bare), path)
        for read in (stream, lambda path, limit: GroupData([DataRecipe(str(path), limit=limit)])):
            with pytest.raises(ValueError, match=r"rows.parquet: limit: expected rows with images"):
                read(path, limit=2)


def test_rows_that_stand_together_and_name_one_image_are_a_group(tmp_path):
    for n in range(4):
        (tmp_path / path_of(n)).parent.mkdir(exist_ok=True)
        (tmp_path / path_of(n)).write_bytes(png(n))
    rows = [row for n in (2, 0, 3, 1) for lang in ("en", "fr") for row in caption_rows([n], lang)]
    write_shards(tmp_path / "data" / "all", "rows", rows, 2, 3)
    (tmp_path / "README.md").write_text(README)
    data = stream(tmp_path / "data" / "all" / "rows-00000-of-00002.parquet")
    assert len(data) == 4
    assert sorted(map(len, epoch(data))) == [2, 2]
    everything = DataRecipe(str(tmp_path), streaming=True)
    both = StreamedGroups([everything], [find_files(str(tmp_path))], 2)
    assert sorted(map(len, epoch(both))) == [2, 2, 2, 2]
    (key,) = both.conversation(int(both.plan(None, 8, 0)[0][1][0])).images
    assert both.load_image(0, key, "?").size == (12, 12)


def test_several_streams(tmp_path):
    first, second = make_tables(tmp_path / "a", images=9), make_rows(tmp_path / "b" / "r.parquet")
    recipes = [DataRecipe(str(p), streaming=True) for p in (first, second)]
    stage = StageRecipe("s", recipes, [Rule(".*", 1.0)], shuffle_buffer=16)
    found = epoch(open_groups(stage, 0))
    assert len(found) == 9 + 12
    kinds = ["-" in group[0][0] for group in found]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True)), "one dataset after the other"


ROWS = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(ROWS, min_size=2, max_size=4), st.integers(1, 5), st.integers(1, 40))
def test_any_tables(tmp_path_factory, tables, group, block):
    """Missing and repeated rows, with any cuts of shards and row groups: all rows are read, each once."""
    folder = tmp_path_factory.mktemp("tables")
    for number, images in enumerate(tables):
        rows = caption_rows(sorted(images), "en")
        for i, row in enumerate(rows):
            row |= {"id": f"{row['id']}-{i}", "image": row["id"]}
        write_shards(folder / f"t{number}", "rows", rows, 1 + number, group)
    joined = GroupedTables(str(folder), find_files(str(folder)), block=block)
    rows = joined.read(range(len(joined)), ["id"])
    assert joined.conversations == len(rows.number) == sum(map(len, tables))
    assert len(set(rows.number.tolist())) == len(rows.number)
    for number in range(len(joined)):
        alone = joined.read([number], ["id"])
        sizes = np.unique(alone.key, return_counts=True)[1]
        counts = joined.multiplicity[number]
        assert np.array_equal(np.bincount(sizes, minlength=len(counts))[1:], counts[1:])
    # All rows of an image are in one block.
    where = set(zip(rows.table["image"].to_pylist(), rows.block.tolist(), strict=True))
    assert len(where) == len({n for images in tables for n in images})


def test_the_helper_for_readers(tmp_path):
    path = make_tables(tmp_path)
    found = list(image_groups(str(path)))
    assert [group.rows[0]["id"] for group in found] == [f"{n:05}" for n in range(20)]
    assert [group.image for group in found] == [png(n) for n in range(20)]
    assert [row["lang"] for row in found[4].rows] == ["en", "hi"]
    only = list(image_groups(str(path), config="en", filters=Filters(limit=3)))
    assert [len(group.rows) for group in only] == [1, 1, 1]


# ------------------------------------------------------------------------------ faults


def shuffle_rows(path: Path) -> None:
    file = path / "data" / "hi" / "clean-00001-of-00003.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take(pa.array([1, 0, *range(2, len(table))])), file)


def break_file(path: Path) -> None:
    file = path / "data" / "hi" / "clean-00001-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:-40])


def rename_column(path: Path) -> None:
    file = path / "data" / "hi" / "clean-00001-of-00003.parquet"
    table = pq.read_table(file)
    pq.write_table(table.rename_columns(["id", "image", "language", "caption"]), file)


def no_names(path: Path) -> None:
    rows = [{"number": n, "picture": png(n)} for n in range(20)]
    for file in (path / "images").glob("*.parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shuffle_rows, r"hi/clean-00000.*: row 8: id '00007' comes after '00008': .*to be sorted by image or by id"),
        (break_file, r"hi/clean-00001-of-00003.parquet: cannot be read as a parquet file: "),
        (rename_column, r"hi/clean-00001-of-00003.parquet: expected the column 'lang', which .*hi/clean-00000"),
        (no_names, r"images/part-.*expected a column of image bytes and a column of image names"),
    ],
)  # fmt: skip
def test_damaged_tables(tmp_path, damage, message):
    path = make_tables(tmp_path)
    damage(path)
    with pytest.raises((ValueError, StorageError), match=message) as error:
        stream(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "{}/none"}, FileNotFoundError, "none: expected a dataset folder or file, found nothing"),
        ({"split": "test"}, ValueError, "config 'all' has no 'test'; found train"),
        ({"config": "xx"}, ValueError, "config: expected one in the dataset card, found 'xx': use one of all, en"),
        ({"path": "{}/README.md"}, ValueError, "expected parquet files, the only format that can be streamed, found .*README.md"),
        ({"path": "{}/columns.parquet"}, ValueError, "expected columns messages, conversations, prompt"),
    ],
)  # fmt: skip
def test_bad_sources(tmp_path, change, error, message):
    make_tables(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "columns.parquet")
    fields = {"path": str(tmp_path), **change}
    fields["path"] = fields["path"].format(tmp_path)
    with pytest.raises(error, match=message) as found:
        stream(**fields)
    assert "\n" not in str(found.value)


def card(*lines: str) -> str:
    """Write a dataset card with one config of these YAML lines."""
    return "\n".join(["---", "configs:", "- config_name: all", *lines, "---", "Captions."])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        ['  data_files: "data/*/*.parquet"'],
        ["  data_files:", "  - data/en/*.parquet", "  - data/fr/*.parquet", "  - data/hi/*.parquet"],
        ["  data_dir: data"],
    ],
)  # fmt: skip
def test_cards_that_leave_splits_to_datasets(tmp_path, monkeypatch, files, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = make_tables(tmp_path / "data", images=4, missing=())
    (folder / "README.md").write_text(card(*files))
    data = stream(folder) if streaming else GroupData([DataRecipe(str(folder))])
    assert len(data) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\nconfigs: [\n---\n", "YAML front matter: not YAML: while parsing"),
        ("---\nconfigs\n---\n", "YAML front matter: expected a mapping, found str"),
        ("---\nconfigs: all\n---\n", "configs: expected a list of mappings with config_name"),
        ("---\nconfigs:\n- data_files: x\n---\n", "configs: expected a list of mappings"),
        (card("  data_files:", "  - split: train"), "config 'all': data_files: expected items with"),
        (card("  data_files:", "  - split: train", "    path: /x.parquet"), "data_files: .*/x.parquet"),
        (card("  data_files: ../x.parquet"), r"expected files below .*, found '\.\./x"),
        (card("  data_files:", "  - split: train", "    path: [a.parquet, data/../../x]"), "expected files below"),
        (card("  data_dir: /x"), "expected files below .*, found '/x'"),
    ],
)  # fmt: skip
def test_damaged_cards(tmp_path, text, message):
    folder = make_tables(tmp_path, images=4)
    (folder / "README.md").write_text(text)
    for read in (stream, lambda path: GroupData([DataRecipe(str(path))])):
        with pytest.raises(ValueError, match=rf"README.md: .*{message}") as error:
            read(folder)
        assert "\n" not in str(error.value)


def test_recipes(tmp_path):
    recipe = make_recipe(tmp_path)
    first, second = {"path": "x", "streaming": True}, {"path": "y"}
    recipe["stages"][0]["data"] = [first, second]
    with pytest.raises(ValueError, match=r"stages\[0\].data\[1\].streaming: expected true as for"):
        load_recipe(write(recipe, tmp_path / "r.yaml"))
    recipe["stages"][0]["data"] = [first | {"tasks": {"name": 0.5}}]
    with pytest.raises(ValueError, match=r"stages\[0\].data\[0\].tasks.name: expected 1.0"):
        load_recipe(write(recipe, tmp_path / "r.yaml"))
    recipe["stages"][0] |= {"data": [first], "shuffle_buffer": 0}
    with pytest.raises(ValueError, match=r"stages\[0\].shuffle_buffer: expected 1 or more"):
        load_recipe(write(recipe, tmp_path / "r.yaml"))


@pytest.fixture
def damaged(tmp_path) -> Path:
    """A dataset with a truncated image (3), a missing image (5), and an empty caption (9, fr)."""
    path = make_tables(tmp_path, images=12, missing=(), picture=lambda n: png(n)[: 40 if n == 3 else None])  # fmt: skip
    for file in (path / "images").glob("*.parquet"):
        table = pq.read_table(file)
        keep = [i for i, name in enumerate(table["id"].to_pylist()) if name != "00005"]
        pq.write_table(table.take(pa.array(keep)), file, row_group_size=4)
    for file in (path / "data" / "fr").glob("*.parquet"):
        rows = pq.read_table(file).to_pylist()
        rows = [r | {"caption": None} if r["id"] == "00009" else r for r in rows]
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
    return path


def collate(path: Path, **policies):
    data = stream(path)
    plan = data.plan(None, 3, seed=0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=len(plan), **policies)
    return share(collator, 0, 0)


def test_bad_rows_stop_by_name(damaged):
    with pytest.raises(ValueError, match=r"row '(0000[35]'|00009' \(\w+\)) of .*"):
        collate(damaged)


def test_bad_rows_are_skipped_and_counted(damaged):
    found = collate(damaged, on_bad_row="skip")
    reasons = {row.id: row.reason for row in found["bad_rows"]}
    assert sorted(row.id for row in found["bad_rows"]) == sorted(["00003", "00005"] * 3 + ["00009"])
    assert "its image cannot be read: Cannot read image bytes" in reasons["00003"]
    assert "its image cannot be read: '00005' is not in the images of" in reasons["00005"]
    assert "row '00009'" in reasons["00009"]
    assert {row.path for row in found["bad_rows"]} == {str(damaged)}
    assert sum(len(row["pixel_values"]) for row in found["rows"]) == 10


@pytest.mark.parametrize("codes", [["klingonish", "", "en", None, "tlh", "zh-Hant"], [7, None]])
def test_cells_that_are_no_language_follow_the_policy(tmp_path, codes):
    """Bad rows are handled as in memory, but found during training."""
    rows = [
        {"id": f"f{i}", "lang": code, "prompt": "q", "text": "a"} for i, code in enumerate(codes)
    ]
    path = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(
        ValueError, match=r"row 'f[01]' of .*r.parquet: lang: expected a language's"
    ):
        collate(path)
    data, whole = stream(path), GroupData([DataRecipe(str(path))], on_bad_row="skip")
    assert sorted(data.languages) == sorted(whole.languages)
    found = []
    for one in (data, whole):
        plan = one.plan(None, 3, seed=0)
        collator = GroupCollator(
            one, tiny_processor(), plan=plan, batch_size=len(plan), on_bad_row="skip"
        )
        (row,) = (batch := share(collator, 0, 0))["rows"]
        learned = Counter(one.languages[i] for i in row["language"].tolist())
        found.append((sorted((b.id, b.reason) for b in batch["bad_rows"]), learned))
    assert found[0] == found[1]
    assert [name for name, _ in found[0][0]] == [f"f{i}" for i in range(len(codes) // 3 or 1)]
    pq.write_table(pa.Table.from_pylist(rows[:1]), path)
    with pytest.raises(ValueError, match="lang: expected languages' BCP-47 codes"):
        stream(path)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_images_that_cannot_be_reached_are_no_bad_rows(tmp_path, monkeypatch, policy):
    """The connection breaks, or a file is truncated or rewritten, after the tables are opened."""
    path = make_tables(tmp_path, images=12)
    file = path / "images" / "part-00001-of-00002.parquet"
    whole = file.read_bytes()
    original = GroupedTables.read_images

    def breaking(damage):
        def read(self, names):
            damage()
            for table in (self.images, *self.tables):
                table._open.clear()
            return original(self, names)

        return read

    def refuse(self, group, columns, ahead=False):
        raise ConnectionError(f"{file}: cannot be fetched: broken; the same command continues")

    def rewrite():
        table = pq.read_table(file)
        names = [name if name == "id" else "other" for name in table.column_names]
        pq.write_table(table.rename_columns(names), file, row_group_size=4)

    for damage, message in (
        (lambda: monkeypatch.setattr(ParquetTable, "_read", refuse), "cannot be fetched: broken"),
        (lambda: file.write_bytes(whole[:-40]), "cannot be read as a parquet file"),
        (rewrite, "expected the column 'image', which "),
    ):
        with monkeypatch.context() as patched:
            file.write_bytes(whole)
            patched.setattr(ParquetTable, "_read", ParquetTable._read)
            patched.setattr(GroupedTables, "read_images", breaking(damage))
            with pytest.raises(OSError, match=rf"part-00001-of-00002.parquet: {message}"):
                collate(path, on_bad_row=policy)


# ------------------------------------------------------------------------------ the Hub

FROM_HUB = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from maya_vlm.training.recipe import DataRecipe, Rule, StageRecipe
from maya_vlm.training.batches.open import open_groups
folder, pinned = Path(sys.argv[1]), Path(sys.argv[2])
api = HfApi()
api.create_repo("user/captions", repo_type="dataset")
api.upload_folder(repo_id="user/captions", repo_type="dataset", folder_path=folder)
stage = StageRecipe("s", [DataRecipe("user/captions", streaming=True)], [Rule(".*", 1.0)], shuffle_buffer=16)
def read():
    data = open_groups(stage, 0, pinned)
    plan, found = data.plan(None, 8, 0), []
    for start in range(0, len(plan), 5):
        for _, part in plan[start : start + 5]:
            group = [data.conversation(int(i)) for i in part]
            picture = data.load_image(0, group[0].images[0], group[0].id)
            found.append([[(c.id, c.language) for c in group], list(picture.getpixel((0, 0)))])
    return found
one = read()
api.delete_folder("data/hi", repo_id="user/captions", repo_type="dataset")
two = read()
pinned.unlink()
print("FOUND", json.dumps([one, two, read()]))
"""


@pytest.mark.slow
def test_from_the_hub_at_the_commit_a_run_began_with(tmp_path):
    path = make_tables(tmp_path / "data")
    local = stream(path)
    plan = local.plan(None, 8, 0)
    expected = []
    for start in range(0, len(plan), 5):
        for _, part in plan[start : start + 5]:
            group = [local.conversation(int(i)) for i in part]
            picture = local.load_image(0, group[0].images[0], group[0].id)
            rows = [[c.id, c.language] for c in group]
            expected.append([rows, list(picture.getpixel((0, 0)))])
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB, str(path), str(tmp_path / "files.json")],
            env={**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        downloads = [r for r in hub.requests if r.startswith("GET") and ".parquet" in r]
    assert done.returncode == 0, done.stderr[-3000:]
    one, two, three = json.loads(done.stdout.split("FOUND")[1])
    assert one == two == expected
    assert {row[1] for group, _ in three for row in group} == {"en", "fr"}
    assert downloads
    assert not list((tmp_path / "hf").rglob("*.parquet")), "a stream leaves no copy"
