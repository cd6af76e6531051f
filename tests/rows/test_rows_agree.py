"""Validation, building and training read rows alike: the same verdicts and the same reasons.

Several hundred good and bad rows are made from shapes and faults, and read from every file format, in
memory and streamed.
"""

import base64
import io
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.open import open_groups
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.sources.records import Problem, Record
from maya_vlm.training.data.sources.rows import read_source
from maya_vlm.training.data.validate import validate_data
from maya_vlm.training.recipe import DataRecipe, Rule, StageRecipe
from tests.helpers.tiny_processing import tiny_processor


def png(seed: int = 1, size: tuple[int, int] = (12, 12)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


BASE64 = base64.b64encode(png(3)).decode()
# Forms of an image in a cell (None: no image) -> what is wrong with it, "" for nothing.
PICTURES = {
    "a.png": "",
    "./b.png": "",
    "deep\\c.png": "",
    BASE64: "",
    f"data:image/png;base64,{BASE64}": "",
    "gone.png": "image: No such image file",
    "cut.png": "image: Cannot read",
    "text.png": "image: Cannot read",
    "wide.png": "image: Cannot pad a picture of 17000x1 pixels",
    "../out.png": "image: Cannot read",
}
BAD_CODES = ("klingonish", "", 7, [], "e")
ASKED, SAID = "What is it?", "a red boat"


def llava(question=ASKED, answer=SAID, mark="<image>\n", **more):
    said = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {"conversations": said, **more}


def messages(question=ASKED, answer=SAID, **more):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said, **more}


def part(**picture):
    return [{"type": "image", **picture}, {"type": "text", "text": ASKED}]


def good_and_bad() -> Iterator[tuple[dict, str]]:
    """Yield (row, start of training's reason, "" for a good row); all rows hold images in one form."""
    for picture, fault in PICTURES.items():
        yield llava(image=picture), fault
        yield llava(image=[picture]), fault
        yield messages(images=[picture]), fault
        yield messages(f"<image>{ASKED}", image=picture), fault
        yield messages(part(image=picture)), fault
        yield messages(part(path=picture)), fault
        yield {"prompt": ASKED, "text": SAID, "image": picture}, fault
        yield {"caption": SAID, "image": picture}, fault
        yield {"caption": SAID, "picture": picture}, fault
        yield messages(part(image_url=None) + part(image=picture), images=[picture]), fault
    for column in (
        "image",
        "images",
        "image_path",
        "file_name",
        "picture",
        "img",
        "photo",
        "image_url",
        "Image",
        "img_2",
    ):
        yield llava(**{column: "a.png"}), ""
        yield llava(mark="", **{column: "a.png"}), "conversations: 1 images but 0 <image> markers"
        yield messages(**{column: "a.png"}), ""
        yield messages(**{column: ["a.png", "b.png"]}), ""
        yield messages(**{column: None}), ""
        yield {"caption": SAID, column: "a.png"}, ""
        yield (
            {"caption": SAID, column: None},
            "image: expected the image of the caption, found nothing",
        )
    yield messages(image="a.png", image_2="b.png"), "image, image_2: expected one picture in one"
    yield messages(image=None, scan_path="b.png"), "scan_path: expected a picture in a column"
    yield messages(image="a.png", scan_path="b.png"), ""
    yield messages(part(image="a.png"), scan_path="b.png"), ""
    for one, other in itertools.permutations(("image", "images", "picture", "file_name"), 2):
        yield messages(**{one: "a.png", other: "a.png"}), ""
        yield (
            messages(**{one: "a.png", other: "x/a.png"}),
            "image: No such image file" if first_of(one, other) == other else "",
        )
        yield messages(**{one: "a.png", other: "b.png"}), "first, second: expected one picture"
        yield messages(**{one: "a.png", other: []}), ""
        yield (
            messages(**{one: ["a.png", "b.png"], other: "a.png"}),
            "first, second: expected one picture",
        )
    for shape, name in ((llava, "conversations"), (messages, "messages")):
        who, say = ("from", "value") if shape is llava else ("role", "content")
        mark = "<image>" if shape is llava else ""
        yield shape(answer="", image="a.png"), f"{name}[1]: the assistant's answer is empty"
        yield shape(answer=" \n", image="a.png"), f"{name}[1]: the assistant's answer is empty"
        yield {name: [], "image": "a.png"}, f"{name}: expected a list of messages"
        yield {name: None, "image": "a.png"}, ", ".join(TEXTS)
        yield {name: "text", "image": "a.png"}, f"{name}: expected a list of turns, found text"
        yield {name: [None]}, f"{name}[0]: expected a mapping, found nothing"
        yield {name: [["x"]]}, f"{name}[0]: expected a mapping, found a list of 1"
        only = shape(image="a.png")
        yield {**only, name: only[name][:1]}, f"{name}: no assistant turn"
        robot = shape(image="a.png")
        robot[name][0] = {**robot[name][0], who: "robot"}
        yield robot, f"{name}[0]: expected"
        for odd in ([], {}, 3, None):
            row = shape(image="a.png")
            row[name][0] = {who: odd, say: mark + "q"}
            yield row, f"{name}[0]"
            row = shape(image="a.png")
            row[name][0][say] = odd
            yield row, "" if (shape is messages and odd == []) else f"{name}"
        twice = shape(image="a.png")
        twice[name] = twice[name] + [{**twice[name][0], say: "<image>more"}, twice[name][1]]
        yield twice, f"{name}: 1 images but" if shape is llava else ""
        late = shape(image="a.png")
        late[name] = [*late[name], {who: "system", say: "s"}, late[name][1]]
        yield late, f"{name}[2]: a system turn"
        first = shape(image="a.png")
        first[name] = [{who: "system", say: "s"}, *first[name]]
        yield first, ""
    yield llava(image=None), "conversations: 0 images but 1 <image> markers"
    yield llava(mark="", image=None), ""
    yield llava(answer="an <image>", image="a.png"), "conversations[1]: an <image> marker"
    yield llava(mark="<image> <image>", image=["a.png", "b.png"]), ""
    yield llava(mark="<image> <image>", image=["a.png"]), ""
    yield (
        llava(mark="<image> <image>", image=["a.png"] * 3),
        "conversations: 3 images but 2 <image>",
    )
    yield messages("<image> and <image>", images=["a.png", "b.png"]), ""
    yield messages("<image> and <image>", images=["a.png"] * 3), "messages: 3 images but 2 <image>"
    yield messages("<image>", images=[]), "messages: 0 images but 1 <image>"
    yield messages(answer="an <image>", images=["a.png"]), ""
    yield messages([{"type": "text", "text": "<image>q"}], images=["a.png"]), ""
    yield (
        messages([{"type": "image"}, {"type": "text", "text": "<image>q"}], images=["a.png"]),
        "messages: 1 images but 1",
    )
    yield (
        messages(
            [{"type": "image"}, {"type": "text", "text": "<image>q"}], images=["a.png", "b.png"]
        ),
        "",
    )
    yield messages(part(image="a.png"), images=["a.png"]), ""
    yield (
        messages(part(image="a.png"), images=["b.png"]),
        "messages, images: 1 image parts, 1 pictures in them and 1 in images",
    )
    yield messages(part() + part(image="b.png"), images=["a.png"]), ""
    yield (
        messages(part() + part(), images=["a.png"]),
        'messages: 1 images but 2 {"type": "image"} parts',
    )
    yield messages(part()), 'messages: 0 images but 1 {"type": "image"} parts'
    yield (
        messages(
            [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "q"}]
        ),
        "",
    )
    yield messages([{"type": "image_url", "image_url": "a.png"}, {"type": "text", "text": "q"}]), ""
    yield (
        messages(part(image="a.png", path="b.png")),
        "messages[0].content[0]: expected one picture in an image part",
    )
    yield messages(part(image=3)), "messages[0].content[0].image: expected a picture's path"
    yield messages([{"type": "sound"}]), "messages[0]: expected parts"
    yield messages([{"type": "text"}]), "messages[0].content[0].text: expected text"
    yield messages(["x"]), "messages[0].content[0]: expected a mapping"
    yield messages(answer=part(image="a.png")), "messages[1]: an image in the assistant's turn"
    for cell in (3, 0, False, {}, {"bytes": None}, {"bytes": "no"}, [None], [3], [["a.png"]]):
        yield messages(image=cell), "image"
        yield messages(images=["a.png", cell]), "images[1]"
    for code in BAD_CODES:
        yield messages(lang=code), "lang: expected a language's BCP-47 code"
    for code in ("Hindi", "pt-BR", None, "tlh"):
        yield messages(lang=code), ""
    for key in ("image", "images", "picture", "path"):
        stray = messages()
        stray["messages"][0][key] = "a.png"
        yield stray, f"messages[0].{key}: expected the pictures of a turn in image parts"
        yield (
            messages([{"type": "text", "text": "q", key: "a.png"}]),
            f"messages[0].content[0].{key}: expected a picture in a part of type 'image'",
        )
    yield (
        {**messages(), **llava(mark="")},
        "conversations, messages: expected turns in one of these",
    )
    yield {"prompt": None, "text": SAID}, "prompt: expected text, found nothing"
    yield {"prompt": ASKED, "text": None}, "text: expected text, found nothing"
    yield {"prompt": "<image>" + ASKED, "text": SAID, "image": "a.png"}, ""
    yield {"prompt": "<image>" + ASKED, "text": SAID}, "prompt: 0 images but 1 <image> markers"
    yield (
        {"prompt": ASKED, "text": "the <image>", "image": "a.png"},
        "text: an <image> marker in an assistant turn",
    )
    yield {"caption": 3, "image": "a.png"}, "caption: expected text, found a number 3"
    yield {"caption": "<image> a boat", "image": "a.png"}, "caption: an <image> marker"
    yield {"caption": " ", "image": "a.png"}, "caption: the assistant's answer is empty"
    yield {}, ", ".join(TEXTS)
    yield {"prompt": None, "caption": None, "image": "a.png"}, ", ".join(TEXTS)


TEXTS = ("conversations", "messages", "prompt", "text", "caption")
ORDER = ("images", "image", "picture", "file_name")  # in a table with messages


def first_of(one: str, other: str) -> str:
    return min(one, other, key=ORDER.index)


def expected(row: dict, fault: str) -> str:
    if fault.startswith("first, second"):
        first, second = [c for c in ORDER if row.get(c)]
        fault = fault.replace("first, second", f"{first}, {second}")
    if fault.startswith("image: expected the image of the caption"):
        fault = fault.replace("image:", "images:")
    return fault


# Faults that exist only as JSON text: (a line of the file, the reason).
BROKEN = [
    ('{"messages": [', "is not JSON: Expecting value"),
    ('{"id": 1, "id": 2}', "the key 'id' appears twice"),
    ('{"caption": "x", "score": NaN}', "expected a number, found NaN"),
    ('["a"]', "expected a mapping of fields"),
    (
        '{"caption": "a boat \\ud83d", "image": "a.png"}',
        "caption: expected text, found half of a surrogate pair",
    ),
    ('{"x": ' + "[" * 70 + "]" * 70 + "}", "nested deeper than 64 levels"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "data" / "deep").mkdir(parents=True)
    for n, name in enumerate(("data/a.png", "data/b.png", "data/deep/c.png", "out.png")):
        (folder / name).write_bytes(png(n))
    (folder / "data" / "cut.png").write_bytes(png(1)[:60])
    (folder / "data" / "text.png").write_text("no picture")
    buffer = io.BytesIO()
    Image.new("RGB", (17000, 1)).save(buffer, "PNG")
    (folder / "data" / "wide.png").write_bytes(buffer.getvalue())
    return folder / "data"


def trained(data) -> dict[int, str]:
    """Return row -> why training skips it, "" for rows it learns from."""
    plan = data.plan(None, 8, 0)
    collator = GroupCollator(
        data, tiny_processor(12, 4, "aya"), plan=plan, batch_size=64, on_bad_row="skip"
    )
    verdicts = {}
    for step in range(-(-len(plan) // 64)):
        groups = plan[step * 64 : (step + 1) * 64]
        bad = {row.row: row.reason for row in collator([{"step": step, "rank": 0}])["bad_rows"]}
        for _, part in groups:
            for index in part.tolist():
                row = data.name(index).row
                verdicts[row] = bad.get(row, "")
    return verdicts


def without_frame(reason: str, path) -> str:
    """Return a reason without the text that training adds around it."""
    reason = reason.partition(f" of {path}: ")[2] if path else reason
    for frame in (": repair the row or remove it", ": repair the file or remove the row"):
        reason = reason.removesuffix(frame)
    for frame in ("its image cannot be read: ", "its image cannot be used: "):
        reason = f"image: {reason.removeprefix(frame)}" if reason.startswith(frame) else reason
    return reason


def same(one: str, other: str) -> bool:
    # Long reasons are shortened.
    return one[:200] == other[:200]


@pytest.mark.parametrize("form", ["json", "jsonl", "lines in json", "json.gz", "parquet", "stream"])
def test_the_same_verdict_and_reason_from_all(folder, tmp_path_factory, form):
    rows = [(row, expected(row, fault)) for row, fault in good_and_bad()]
    if form in ("parquet", "stream"):
        check_tables(folder, rows, form == "stream")
        return
    assert len(rows) > 300
    texts = [json.dumps({"id": str(n % 7), **row}) for n, (row, _) in enumerate(rows)]
    faults = [fault for _, fault in rows]
    lines = form in ("jsonl", "lines in json")
    for text, fault in BROKEN[0 if lines else 1 :]:
        texts.append(text)
        faults.append(fault)
    name = {"lines in json": "lines.json"}.get(form, f"rows.{form}")
    content = "\n".join(texts) if lines else "[\n" + ",\n".join(texts) + "\n]"
    path = folder / name
    if form.endswith("gz"):
        import gzip

        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    check(folder, path, faults, GroupData([DataRecipe(str(path))], on_bad_row="skip"))


def check(folder, path, faults, data) -> None:
    # Training.
    training = {row: without_frame(why, path) for row, why in trained(data).items()}
    assert len(training) == len(faults), "every row is learned or listed as bad"
    for number, fault in enumerate(faults):
        found = training[number]
        assert bool(found) == bool(fault), (number, fault, found)
        assert fault in found, (number, fault, found)
    # Validation for training, and for building.
    plan = SourcePlan("llava", str(path), images=str(folder), language="en", duplicates="number")
    told: list[str] = []
    tally, building_tally = validate_data(plan, None, told.append)
    assert tally.read == len(faults)
    assert tally.rows == sum(not fault for fault in faults)
    validated: dict[int, str] = {}
    for line in told:
        place, _, rest = line.partition(": ")
        reason, _, label = rest.rpartition(" [")
        if "training" in label:
            validated[int(place.partition("[")[2].partition("]")[0])] = reason
    for number in range(len(faults)):
        reason = validated.get(number, "").removeprefix("row: ")
        assert same(training[number], reason), (number, training[number], reason)
    # Building refuses the rows that training refuses, for the same reasons, and makes further checks.
    own = ("image: expected one picture", "image: expected a path", "id: ", "turn ", "expected turns of user", "expected text, found none", "last question")  # fmt: skip
    built = list(read_source(plan, decode=True))
    assert len(built) == len(faults)
    for number, (fault, read) in enumerate(zip(faults, built, strict=True)):
        assert isinstance(read, (Record, Problem))
        if isinstance(read, Record):
            assert not fault or "17000x1" in training[number], (number, fault)
            continue
        reason = f"{read.field}: {read.reason}".removeprefix("row: ")
        if fault:
            # The further checks of building come before an image is opened.
            told_alike = (
                same(training[number], reason)
                or ".." in reason
                or any(text in reason for text in own)
            )
            assert told_alike, (number, training[number], reason)
        else:
            assert any(text in reason for text in own), (number, reason)
    refused = sum(isinstance(read, Problem) for read in built)
    assert sum(building_tally.refused.values()) == refused


def check_tables(folder, rows, streamed: bool) -> None:
    """Yield one table per group of rows that fit in one Arrow table, whose columns have one type each."""
    tables: list[list[tuple[dict, str]]] = []
    for row, fault in rows:
        row = {**row, "id": str(len(tables))}
        for table in [*tables, []]:
            try:
                pa.Table.from_pylist([r for r, _ in table] + [row])
            except (pa.ArrowException, TypeError):
                continue  # some rows fit in no table
            if table and not set(row) <= set(table[0][0]):
                continue
            if not table:
                tables.append(table)
            table.append((row, fault))
            break
    count = 0
    for number, table in enumerate(tables):
        names = {name: None for row, _ in table for name in row}
        if not names.keys() & set(TEXTS):
            continue
        path = folder / f"table-{number}.parquet"
        found = pa.Table.from_pylist([{**names, **row} for row, _ in table])
        pq.write_table(found, path, row_group_size=7)
        recipe = DataRecipe(str(path), streaming=streamed)
        stage = StageRecipe("s", [recipe], [Rule(".*", 1.0)], on_bad_row="skip", shuffle_buffer=32)
        if all(row.get("lang") in BAD_CODES for row, _ in table):
            with pytest.raises(ValueError, match="BCP-47"):
                open_groups(stage, 0)
            continue
        data = open_groups(stage, 0)
        training = {row: without_frame(why, path) for row, why in trained(data).items()}
        assert len(training) == len(table)
        plan = SourcePlan("llava", str(path), images=str(folder), language="en")
        told: list[str] = []
        validate_data(plan, None, told.append)
        validated: dict[int, str] = {}
        for line in told:
            place, _, rest = line.partition(": ")
            reason, _, label = rest.rpartition(" [")
            if "training" in label:
                validated[int(place.partition("[")[2].partition("]")[0])] = reason
        for place, (row, _) in enumerate(table):
            reason = validated.get(place, "")
            assert same(training[place], reason), (row, training[place], reason)
            count += 1
    assert count > 150
