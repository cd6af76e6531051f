"""Rows of every known shape become groups; others are refused by name."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.open import open_groups
from maya_vlm.training.recipe import DataRecipe, Rule, StageRecipe
from tests.helpers.tiny_processing import tiny_processor

from ..run.tiny_run import make_data, one_row

MINI = Path(__file__).parents[2] / "training" / "data" / "mini"


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def turns(question: str = "q", answer: str = "a") -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_messages_and_images(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=4)))])
    assert len(data) == 12
    assert data.languages == ["en", "fr", "hi"]
    plan = data.plan(None, 3, seed=0)
    assert len(plan) == 4
    for epoch, part in plan:
        assert epoch == 0
        assert len(set(data.image[part])) == 1
        assert {data.languages[i] for i in data.language[part]} == {"en", "fr", "hi"}
    one = data.conversation(0)
    assert (one.id, one.language, one.task) == ("0-en", "en", "category")
    assert data.load_image(0, one.images[0], one.id).size == (12, 12)


def test_plan_covers_each_epoch_once_and_only_from_the_seed(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=5)))])
    plan = data.plan(20, 2, seed=7)
    again = data.plan(20, 2, seed=7)
    assert all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(plan, again, strict=True)
    )
    other = data.plan(20, 2, seed=8)
    assert any(
        len(a[1]) != len(b[1]) or (a[1] != b[1]).any() for a, b in zip(plan, other, strict=True)
    )
    # 5 images x 3 conversations, at most 2 per group: 10 groups per epoch.
    for epoch in (0, 1):
        seen = Counter(i for e, part in plan if e == epoch for i in part.tolist())
        assert seen == Counter(range(15))
    assert {len(part) for _, part in plan} == {1, 2}


def test_task_weights(tmp_path):
    path = str(make_data(tmp_path, images=40))
    data = GroupData([DataRecipe(path, tasks={"name": 2.0, "category": 0.25})])
    drawn = Counter(data.tasks[data.task[i]] for _, part in data.plan(None, 4, 0) for i in part)
    assert drawn["name"] == 2 * 60
    assert 5 <= drawn["category"] <= 30
    only = GroupData([DataRecipe(path, tasks={"name": 1.0}, languages=["fr"])])
    assert len(only) == 20
    assert "category 20" in " ".join(only.report)
    assert "en 40, hi 40" in " ".join(only.report)


def test_limit_counts_images(tmp_path):
    data = GroupData([DataRecipe(str(make_data(tmp_path, images=9)), limit=4)], seed=1)
    assert len(np.unique(data.image)) == 4
    assert len(data) == 12


def test_llava_files_of_several_languages_share_their_images(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(2):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
    sources = []
    for language, word in (("en", "boat"), ("fr", "bateau")):
        rows = [
            {
                "id": f"{i}",
                "image": f"{i}.png",
                "conversations": [
                    {"from": "human", "value": "What is it?\n<image>"},
                    {"from": "gpt", "value": word},
                ],
            }
            for i in range(2)
        ]
        rows.append({"id": "text", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": word}]})  # fmt: skip
        path = tmp_path / f"{language}.json"
        path.write_text(json.dumps(rows))
        sources.append(
            DataRecipe(str(path), language=language, image_folder=str(tmp_path / "images"))
        )
    data = GroupData(sources)
    sizes = sorted(len(part) for _, part in data.plan(None, 8, 0))
    assert sizes == [1, 1, 2, 2]
    assert data.languages == ["en", "fr"]
    first = data.conversation(0)
    assert first.messages[0]["content"][0] == {"type": "image"}
    assert len(first.images) == 1
    assert data.conversation(2).images == ()


def test_inline_images_are_grouped_by_their_bytes(tmp_path):
    rows = [
        {"id": str(i), "image": {"bytes": png(i // 2), "path": None}, "messages": turns()}
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    data = GroupData([DataRecipe(str(tmp_path / "rows.parquet"), language="en")])
    assert sorted(len(p) for _, p in data.plan(None, 8, 0)) == [2, 2]
    assert data.load_image(0, data.conversation(3).images[0], "3").getpixel((0, 0)) == (1, 0, 0)


def test_several_images_a_row_are_grouped_as_one(tmp_path):
    """Rows with the same images in the same order form a group, whatever images other rows have."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    cells = [["0.png", "1.png"], ["0.png"], ["0.png", "1.png"], [], ["0.png"], ["1.png", "0.png"]]
    rows = [{"id": str(i), "images": c, "messages": turns()} for i, c in enumerate(cells)]
    recipe = DataRecipe(str(write_rows(tmp_path / "r.jsonl", rows)), language="en")
    data = GroupData([recipe])
    found = [sorted(p.tolist()) for _, p in data.plan(None, 8, 0)]
    assert sorted(found) == [[0, 2], [1, 4], [3], [5]]
    assert data.conversation(2).images == (0, 1)
    batch = one_row(data, [0, 2], [5], [1, 4], [3], attention="dense")
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [0, 1, 1, 0, 0]
    # A second file with the same rows, as for another language, limited to some images.
    both = GroupData([recipe, DataRecipe(recipe.path, language="fr")])
    assert sorted(len(p) for _, p in both.plan(None, 8, 0)) == [1, 1, 2, 4, 4]
    assert len(np.unique(GroupData([DataRecipe(recipe.path, limit=2)]).image)) == 2


def test_an_image_list_of_nothing_is_a_bad_row(tmp_path):
    """A list of one null is a bad row, whether or not another row has several images."""
    for others in ([], [["0.png", "1.png"]]):
        rows = [{"id": str(i), "images": c, "messages": turns()} for i, c in enumerate([[None], *others])]  # fmt: skip
        path = write_rows(tmp_path / "r.jsonl", rows)
        with pytest.raises(
            ValueError, match=r"row '0' of .*images\[0\]: expected a picture's .*found nothing"
        ):
            GroupData([DataRecipe(str(path))])


@pytest.mark.skipif(not (MINI / "instruct").is_dir(), reason="the mini dataset is not built here")
def test_the_mini_dataset(tmp_path):
    wanted = {"name": 1.0, "yesno": 1.0}
    data = GroupData(
        [DataRecipe(str(MINI), config="instruct_bn", split="validation", tasks=wanted, limit=5)]
    )
    assert data.languages == ["bn"]
    assert len(data) == 15  # one name and two yes/no questions per image
    conversation = data.conversation(0)
    image = data.load_image(0, conversation.images[0], conversation.id)
    assert image.size == (64, 64)
    captions = GroupData([DataRecipe(str(MINI), config="all", split="validation", limit=3)])
    assert captions.tasks == ["caption"]
    assert len(captions.languages) == 10
    assert {len(p) for _, p in captions.plan(None, 8, 0)} == {5}


def collate(tmp_path, rows):
    return one_row(GroupData([DataRecipe(str(write_rows(tmp_path / "r.jsonl", rows)))]), [0])


def test_nothing_to_learn_is_refused_by_row(tmp_path):
    rows = [{"id": "a7", "messages": [{"role": "user", "content": "q"}]}]
    with pytest.raises(ValueError, match=r"a7.*nothing to learn"):
        collate(tmp_path, rows)
    rows = [{"id": "a8", "messages": turns(answer="")}]
    with pytest.raises(ValueError, match="a8"):
        collate(tmp_path, rows)


def test_bad_images_are_refused_by_row(tmp_path):
    with pytest.raises(ValueError, match=r"row 'b1' of .*image cannot be read.*No such image"):
        collate(tmp_path, [{"id": "b1", "image": "gone.png", "messages": turns()}])
    (tmp_path / "cut.png").write_bytes(png(1)[:40])
    with pytest.raises(ValueError, match=r"row 'b2' of .*image cannot be read"):
        collate(tmp_path, [{"id": "b2", "image": "cut.png", "messages": turns()}])
    with pytest.raises(ValueError, match=r"row 'b3' of .*lies outside"):
        collate(tmp_path, [{"id": "b3", "image": "../../x.png", "messages": turns()}])
    with pytest.raises(
        ValueError, match=r"row 'b4'.*image: expected a picture's path, .* found a number 3"
    ):
        collate(tmp_path, [{"id": "b4", "image": 3, "messages": turns()}])


TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"messages": None}, "messages: expected a list of turns, found nothing"),
        ({"messages": []}, "expected a list of messages with at least one turn"),
        ({"messages": ["q"]}, r"messages\[0\]: expected a mapping, found text"),
        ({"messages": [None]}, r"messages\[0\]: expected a mapping, found nothing"),
        ({"messages": [{"content": "q"}]}, r"messages\[0\].role: expected text, found nothing"),
        ({"messages": [*turns(), {"role": "user"}]}, r"messages\[2\].content: expected text or a list of parts, found nothing"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content: .* found a number 3"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, r"content\[0\]: expected a mapping"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content\[0\].text: expected text"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, r"messages\[0\]: expected parts"),
        ({"prompt": None, "text": "a"}, "prompt: expected text, found nothing"),
        ({"prompt": "q", "text": None}, "text: expected text, found nothing"),
        ({"caption": None}, "caption: expected text, found nothing"),
        ({"caption": 3}, "caption: expected text, found a number 3"),
        ({"conversations": None}, "conversations: expected a list of turns, found nothing"),
        ({"conversations": [None]}, r"conversations\[0\]: expected a mapping, found nothing"),
    ],
)  # fmt: skip
def test_bad_cells_are_refused_by_row(tmp_path, cells, message):
    with pytest.raises(ValueError, match=rf"row 'd1' \(und\) of .*r.jsonl.*{message}") as error:
        collate(tmp_path, [{"id": "d1", **cells}])
    assert "\n" not in str(error.value)


def test_bad_cells_are_left_out_where_the_recipe_says_so(tmp_path):
    """Rows without an id are identified by their number in the file."""
    rows = [{"lang": "fr", "messages": turns()}, {"messages": None}, {"messages": turns()}, {}]
    data = GroupData([DataRecipe(str(write_rows(tmp_path / "r.jsonl", rows)), languages=["en"], language="en")])  # fmt: skip
    plan = data.plan(None, 1, seed=0)
    collator = GroupCollator(data, tiny_processor(), plan=plan, batch_size=3, on_bad_row="skip")
    found = collator([{"step": 0, "rank": 0}])
    assert sorted(row.id for row in found["bad_rows"]) == ["1", "3"]
    assert all(f"row '{row.id}' (en) of " in row.reason for row in found["bad_rows"])
    assert sum(len(row["labels"]) for row in found["rows"]) > 0


def test_cells_that_are_no_image_are_left_out_where_the_recipe_says_so(tmp_path):
    rows = [{"id": f"e{i}", "image": "seen.png", "messages": turns()} for i in range(4)]
    rows[0]["image"], rows[2]["image"] = 3, ["seen.png", {"bytes": None}]
    (tmp_path / "seen.png").write_bytes(png(1))
    path = write_rows(tmp_path / "r.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"row 'e0' of .*r.jsonl: image: expected .* found a number 3: repair"
    ):
        GroupData([DataRecipe(str(path))])
    data = GroupData([DataRecipe(str(path))], on_bad_row="skip")
    collator = GroupCollator(
        data, tiny_processor(), plan=data.plan(None, 1, 0), batch_size=4, on_bad_row="skip"
    )
    found = collator([{"step": 0, "rank": 0}])
    assert {row.id: row.reason.split("found ")[1][:8] for row in found["bad_rows"]} == {
        "e0": "a number",
        "e2": "nothing:",
    }
    assert sum(len(row["image_index"]) for row in found["rows"]) == 2


@pytest.mark.parametrize("kind", ["memory", "rows", "stream"])
def test_captions_without_their_image_are_bad_rows(tmp_path, kind):
    """Other kinds of rows may be text only, and captions too if no row has an image."""
    (tmp_path / "seen.png").write_bytes(png(1))

    def collator_of(rows, policy):
        path = tmp_path / ("rows.jsonl" if kind == "rows" else "rows.parquet")
        if kind == "rows":
            write_rows(path, rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        recipe = DataRecipe(str(path), language="en", streaming=kind == "stream")
        stage = StageRecipe("s", [recipe], [Rule(".*", 1.0)], on_bad_row=policy)
        data = open_groups(stage, seed=0)
        plan = data.plan(None, 8, 0)
        return GroupCollator(
            data, tiny_processor(), plan=plan, batch_size=len(plan), on_bad_row=policy
        )

    rows = [{"id": f"g{i}", "image": c, "caption": "boat"} for i, c in enumerate(["seen.png", None, "seen.png"])]  # fmt: skip
    if kind == "rows":
        del rows[1]["image"]
    with pytest.raises(ValueError, match=r"row 'g1' \(en\) of .*rows.*: image: expected the image of the caption, found nothing: repair"):  # fmt: skip
        collator_of(rows, "stop")([{"step": 0, "rank": 0}])
    found = collator_of(rows, "skip")([{"step": 0, "rank": 0}])
    assert [row.id for row in found["bad_rows"]] == ["g1"]
    assert len(found["rows"][0]["image_index"]) == 1
    texts = [{"prompt": "q", "text": "a"}, {"messages": turns()}, {"caption": "boat"}]
    for number, cells in enumerate(texts):
        one = {"id": "h", **cells} | ({} if number == 2 else {"image": None})
        (row,) = collator_of([one], "stop")([{"step": 0, "rank": 0}])["rows"]
        assert len(row["labels"]) > 0


def test_too_long_is_refused_by_row(tmp_path):
    path = write_rows(tmp_path / "r.jsonl", [{"id": "c1", "messages": turns(answer="word " * 50)}])
    data = GroupData([DataRecipe(str(path))])
    with pytest.raises(ValueError, match=r"row 'c1'.*expected at most max_length 20 tokens"):
        one_row(data, [0], max_length=20)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"languages": ["xx"]}, ValueError, "languages: expected values in split 'train', found 'xx': use some of en, fr, hi"),
        ({"tasks": {"sing": 1.0}}, ValueError, "tasks: expected values in split 'train', found 'sing'"),
        ({"path": "{}/none.jsonl"}, FileNotFoundError, "no such file"),
        ({"path": "{}/nofolder"}, FileNotFoundError, "expected a dataset folder, found nothing"),
        ({"path": "{}/empty.jsonl"}, ValueError, "expected rows, found none"),
        ({"path": "{}/bad.jsonl"}, ValueError, "bad.jsonl: no row can be read: line 1 is not JSON"),
        ({"path": "{}/columns.jsonl"}, ValueError, "expected columns messages, conversations"),
    ],
)  # fmt: skip
def test_bad_sources(change, error, message, tmp_path):
    path = make_data(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "columns.jsonl").write_text('{"a": 1}')
    fields = {"path": str(path), **change}
    fields["path"] = fields["path"].format(tmp_path)
    with pytest.raises(error, match=message) as found:
        GroupData([DataRecipe(**fields)])
    assert "\n" not in str(found.value)


def test_cells_that_are_no_language_follow_the_policy(tmp_path):
    codes = ["klingonish", 7, "", "en", None, "tlh", "zh-Hant", "pt-BR", "und"]
    rows = [{"id": f"f{i}", "lang": c, "messages": turns()} for i, c in enumerate(codes)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    with pytest.raises(ValueError, match=r"row 'f0' of .*r.jsonl: lang: expected a language's BCP-47 code, such as en or pt-BR, found 'klingonish': repair the row"):  # fmt: skip
        GroupData([DataRecipe(str(path))])
    data = GroupData([DataRecipe(str(path), language="hi")], on_bad_row="skip")
    assert data.languages == ["en", "hi", "tlh", "zh-Hant", "pt-BR", "und"]
    assert data.summary().startswith("9 conversations about 0 images; languages: en 1, hi 1, ")
    collator = GroupCollator(
        data, tiny_processor(), plan=data.plan(None, 1, 0), batch_size=9, on_bad_row="skip"
    )
    found = collator([{"step": 0, "rank": 0}])
    assert {row.id: row.reason.split("found ")[1] for row in found["bad_rows"]} == {
        "f0": "'klingonish': repair the row or remove it",
        "f1": "7: repair the row or remove it",
        "f2": "'': repair the row or remove it",
    }
    assert set(found["rows"][0]["language"].tolist()) == set(range(6))
    # Rows that the recipe's filters drop are not bad rows.
    only = GroupData([DataRecipe(str(path), languages=["en"])])
    assert len(only) == 1
    assert "'klingonish' 1" in only.report[0]
    with pytest.raises(ValueError, match=r"r.jsonl: languages: .*found 'klingonish': correct the"):
        GroupData([DataRecipe(str(path), languages=["klingonish"])])
    write_rows(path, rows[:3])
    with pytest.raises(ValueError, match="row 'f0' of"):
        GroupData([DataRecipe(str(path))], on_bad_row="skip")
