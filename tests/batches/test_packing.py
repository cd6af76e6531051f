"""A step is divided among ranks and rows: every group once, no row too long, no rank waits."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.packing import balance_rows, pack_group
from maya_vlm.training.recipe import DataRecipe
from tests.helpers.tiny import IMAGE_TOKEN
from tests.helpers.tiny_processing import tiny_processor

from ..run.test_equality import conversations
from ..run.tiny_run import make_data, one_row


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("max_length", [None, 64, 200])
def test_every_group_once_and_no_row_too_long(ranks, max_length):
    random = np.random.default_rng(ranks)
    for count in (0, 1, 5, 40):
        lengths = random.integers(1, 65, count).tolist()
        shares = balance_rows(lengths, ranks, max_length)
        assert len(shares) == ranks
        assert len({len(rows) for rows in shares}) == 1
        rows = [row for share in shares for row in share]
        assert sorted(i for row in rows for i in row) == list(range(count))
        if max_length is not None:
            assert all(sum(lengths[i] for i in row) <= max_length for row in rows)


def test_ranks_get_nearly_the_same():
    lengths = np.random.default_rng(0).integers(100, 900, 64).tolist()
    for limit in (None, 2048):
        work = [
            sum(lengths[i] for row in share for i in row)
            for share in balance_rows(lengths, 8, limit)
        ]
        assert max(work) / np.mean(work) < 1.05
        assert len(balance_rows(lengths, 8, limit)[0]) == (1 if limit is None else 3)


def test_a_group_that_fits_nowhere():
    with pytest.raises(ValueError, match="groups of at most max_length 64 tokens, found one of 65"):
        balance_rows([3, 65], 2, 64)


def test_long_groups_become_several_trees():
    group = conversations(6, 1, 1)
    whole = pack_group(group, IMAGE_TOKEN)[0]
    prefix = len(whole.prefix)
    limit = prefix + max(map(len, whole.branches)) + 4
    trees = pack_group(group, IMAGE_TOKEN, limit)
    assert len(trees) > 1
    assert all(len(tree) <= limit for tree in trees)
    assert [e.id for tree in trees for e in tree.encoded] == [e.id for e in group]
    assert pack_group(group, IMAGE_TOKEN, len(whole))[0].encoded == group


def share(collator, step: int, rank: int) -> dict:
    return collator([{"step": step, "rank": rank}])


def targets(rows: list[dict]) -> Counter:
    """Return the learned pairs (predicted token, language), in whatever row they are."""
    return Counter(
        pair
        for row in rows
        for pair in zip(row["labels"].tolist(), row["language"].tolist(), strict=True)
    )


def test_the_same_work_on_any_number_of_ranks(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=7)))])
    plan = data.plan(14, 2, seed=0)
    options = {"plan": plan, "batch_size": 7}
    alone = GroupCollator(data, tiny_processor(), **options)
    for ranks, limit in ((2, None), (3, 80), (5, 60)):
        many = GroupCollator(data, tiny_processor(), ranks=ranks, max_length=limit, **options)
        for step in range(2):
            rows = [row for rank in range(ranks) for row in share(many, step, rank)["rows"]]
            assert targets(rows) == targets(share(alone, step, 0)["rows"])
            assert len({len(share(many, step, rank)["rows"]) for rank in range(ranks)}) == 1
            if limit is not None:
                assert max(row["input_ids"].numel() for row in rows) <= limit
            assert all(row["padding"] == 0 for row in rows)


def test_a_rank_without_work_takes_part(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=2)))])
    plan = data.plan(1, 3, seed=0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=1, ranks=2)
    idle = min(
        (share(collator, 0, rank)["rows"][0] for rank in (0, 1)), key=lambda r: len(r["labels"])
    )
    assert len(idle["labels"]) == 0
    assert idle["input_ids"].shape == (1, 1)
    assert "pixel_values" not in idle


def test_a_distinct_image_is_encoded_once(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=2)))])
    plan = data.plan(None, 1, seed=0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=len(plan))
    (row,) = share(collator, 0, 0)["rows"]
    assert len(plan) == 6
    assert len(row["pixel_values"]) == 2
    assert sorted(row["image_index"].tolist()) == [0, 0, 0, 1, 1, 1]
    blocks = row["image_index"].repeat_interleave(tiny_processor().image_seq_length)
    assert len(blocks) == int((row["input_ids"] == tiny_processor().image_token_id).sum())


@pytest.fixture
def damaged(tmp_path):
    """Rows of which one has a truncated image, one no answer, and one too many tokens."""
    path = make_data(tmp_path, images=4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    picture = tmp_path / rows[0]["images"][0]
    picture.write_bytes(picture.read_bytes()[:60])
    rows[3]["messages"][1]["content"] = ""
    rows[6]["messages"][1]["content"] = "long " * 200
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path, [row["id"] for row in rows]


def collate_all(path, **policies):
    data = GroupData([DataRecipe(str(path))])
    plan = data.plan(None, 3, seed=0, shuffled=False)
    collator = GroupCollator(
        data, tiny_processor(), max_length=120, plan=plan, batch_size=len(plan), **policies
    )
    return share(collator, 0, 0)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"on_bad_row": "skip"}, r"row '2-en' .*expected at most max_length 120 tokens"),
        ({"on_long_row": "skip"}, r"row '(0-en|1-en)'"),
    ],
)
def test_stop_names_the_row(damaged, policies, message):
    with pytest.raises(ValueError, match=message):
        collate_all(damaged[0], **policies)


def test_skipped_rows_are_counted_by_name(damaged):
    path, ids = damaged
    found = collate_all(path, on_bad_row="skip", on_long_row="skip")
    # All three conversations about the truncated image are skipped.
    skipped = {row.id for row in found["bad_rows"]}
    assert skipped == {*ids[0:3], ids[3], ids[6]}
    assert {row.action for row in found["bad_rows"]} == {"skipped"}
    assert {row.path for row in found["bad_rows"]} == {str(path)}
    for row in found["bad_rows"]:
        image = row.id in ids[0:3]
        assert ("its image cannot be read" if image else repr(row.id)) in row.reason
    assert sum(len(row["labels"]) for row in found["rows"]) > 0


def test_long_rows_are_shortened_at_the_end(damaged):
    path, ids = damaged
    found = collate_all(path, on_bad_row="skip", on_long_row="shorten")
    (note,) = [row for row in found["bad_rows"] if row.action == "shortened"]
    assert note.id == ids[6]
    assert max(row["input_ids"].numel() for row in found["rows"]) <= 120


def test_an_image_is_never_cut(tmp_path):
    """A row whose image alone exceeds max_length is refused under every policy."""
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=1)))])
    plan = data.plan(None, 1, seed=0)
    collator = GroupCollator(
        data, tiny_processor(), max_length=8, plan=plan, batch_size=3, on_long_row="shorten"
    )
    found = share(collator, 0, 0)
    assert [row.action for row in found["bad_rows"]] == ["skipped"] * 3
    assert sum(len(row["labels"]) for row in found["rows"]) == 0


def test_an_image_placeholder_in_text_is_text(tmp_path):
    path = make_data(tmp_path, images=1, languages=("en",))
    row = json.loads(path.read_text())
    row["messages"][1]["content"] = "an <image> of <image>"
    path.write_text(json.dumps(row))
    batch = one_row(GroupData([DataRecipe(str(path))]), [0])
    assert int((batch["input_ids"] == tiny_processor().image_token_id).sum()) == 4
    assert torch.equal(batch["image_index"], torch.tensor([0]))


def test_stored_order(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=5)))])
    plan = data.plan(None, 3, seed=0, shuffled=False)
    assert [int(data.image[part[0]]) for _, part in plan] == list(range(5))
