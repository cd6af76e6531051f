"""Test sources: each row becomes one source row or one line of refused.jsonl, with its id."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maya_vlm.training.common import images as loading
from maya_vlm.training.common.files import sha256_file
from maya_vlm.training.common.places import PictureTables
from maya_vlm.training.data.sources.pictures import Pictures
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.sources.readers import language_of_file
from maya_vlm.training.data.sources.records import SOURCE_SCHEMA, Record
from maya_vlm.training.data.sources.rows import read_source
from maya_vlm.training.data.sources.sorting import ExternalSort, Tally, sorted_rows
from maya_vlm.training.data.sources.step import build_sources, check_sources, source_key
from maya_vlm.training.data.validate import infer_source, validate, validate_sources
from tests.data.engine.tiny_worker import read


def picture(color=(255, 0, 0)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def llava(
    identity="004539375", image="00453/004539375.jpg", question="What is it?\n<image>", **more
):
    row = {
        "id": identity,
        "image": image,
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": "a dog on a beach "},
        ],
        **more,
    }
    return {k: v for k, v in row.items() if v is not None}


def write_json(path: Path, rows) -> SourcePlan:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return SourcePlan("llava", str(path), language="en")


def build(plan, folder, unit_rows=100):
    manifest = build_sources(plan, folder / "source", unit_rows, progress=False)
    return manifest, [
        row
        for unit in manifest["units"]
        for row in read(folder / "source" / f"{unit['unit']}.parquet")
    ]


def problems(plan) -> list[str]:
    found: list[str] = []
    validate(plan, lambda problem: found.append(str(problem)))
    return found


# Rows of all shapes


def test_llava_pretrain_becomes_captions(tmp_path):
    plan = write_json(tmp_path / "blip.json", [llava()])
    plan.task = "caption"
    _, rows = build(plan, tmp_path)
    assert rows == [
        {
            "id": "004539375",
            "image": "00453/004539375.jpg",
            "image_sha256": None,
            "lang": "en",
            "task": "caption",
            "text": "a dog on a beach",
            "turns": None,
        }
    ]


def test_instruct_rows_keep_their_turns_and_odd_keys_do_not_matter(tmp_path):
    rows = [
        llava("1", english_conversations=[{"from": "x"}], corrupt=False, model=3.5),
        llava("2", image=None, question="Only text?"),
        {
            "id": "3",
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "नमस्ते"},
            ],
            "image": ["a.jpg"],
            "lang": "hi",
        },
    ]
    _, out = build(write_json(tmp_path / "mix.json", rows), tmp_path)
    assert [row["task"] for row in out] == ["conversation"] * 3
    assert out[0]["turns"] == [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "a dog on a beach"},
    ]
    assert out[1]["image"] is None
    assert out[2]["turns"][0] == {"role": "user", "content": "Who?"}
    assert (out[2]["image"], out[2]["lang"]) == ("a.jpg", "hi")


def test_leading_answer_is_left_out_and_counted(tmp_path):
    row = llava()
    row["conversations"].insert(0, {"from": "gpt", "value": "Welcome"})
    manifest, (out,) = build(write_json(tmp_path / "mix.json", [row]), tmp_path)
    assert len(out["turns"]) == 2
    assert manifest["notes"] == {"first turn is an answer: turn left out": 1}


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("maya_russian_blip_laion_cc_sbu_558k.json", "ru"),
        ("hindi_blip_laion_cc_sbu_558k.json", "hi"),
        ("captions.ur.json", "ur"),
        ("blip_laion_cc_sbu_558k.json", "en"),
        ("llava_v1_5_mix665k.json", "en"),
        ("palo_multilingual_dataset.json", None),
        ("english_to_french.json", None),
        ("is_it_art.json", None),
    ],
)
def test_language_of_a_files_name(name, language):
    assert language_of_file(Path(name)) == language


def test_language_is_the_rows_then_the_plans_then_the_files(tmp_path):
    rows = [llava("1", lang="French"), llava("2", hindi_conversation=[1]), llava("3")]
    plan = write_json(tmp_path / "spanish.json", rows)
    assert [r["lang"] for r in build(plan, tmp_path)[1]] == ["fr", "hi", "en"]
    plan.language = None
    assert [r["lang"] for r in build(plan, tmp_path)[1]] == ["fr", "hi", "es"]
    plan = write_json(tmp_path / "mix.json", rows)
    plan.language = None
    assert problems(plan) == [
        "mix.json[2] (id '3'): lang: unknown: neither the row nor the file's name says it; "
        "set `language`"
    ]


def test_languages_of_an_unlabelled_mix_are_detected(tmp_path):
    texts = {
        "en": "the weather is very nice today and we go to the beach",
        "fr": "il fait très beau aujourd'hui et nous allons à la plage",
        "ru": "сегодня очень хорошая погода и мы идём на пляж",
        "hi": "आज मौसम बहुत अच्छा है और हम समुद्र तट पर जा रहे हैं",
        "bn": "আজ আবহাওয়া খুব সুন্দর এবং আমরা সৈকতে যাচ্ছি",
        "zh": "今天天气很好，我们去海边",
        "ja": "今日はとても天気がいいので海に行きます",
        "ar": "الطقس جميل جدا اليوم ونحن نذهب إلى الشاطئ",
    }
    rows = []
    for n, text in enumerate(texts.values()):
        row = llava(f"{n:03d}", question=f"<image>\n{text}")
        row["conversations"][1]["value"] = text
        rows.append(row)
    plan = write_json(tmp_path / "palo.json", rows)
    plan.language = "detect"
    assert [row["lang"] for row in build(plan, tmp_path)[1]] == list(texts)


def test_languages_are_detected_in_the_columns_that_the_plan_names(tmp_path):
    body = {"fr": "il fait très beau aujourd'hui et nous allons à la plage", "und": "7 8 9"}
    rows = [{"id": lang, "caption": None, "body": text} for lang, text in body.items()]
    rows.append({"id": "said", "body": body["fr"], "lang": "oc"})
    plan = write_json(tmp_path / "x.json", rows)
    plan.language, plan.columns = "detect", {"text": "body"}
    assert [(row["id"], row["lang"]) for row in build(plan, tmp_path)[1]] == [
        ("fr", "fr"),
        ("said", "oc"),
    ]
    assert problems(plan) == [
        "x.json[1] (id 'und'): lang: too little text to tell it from; name it in the row"
    ]


def test_bytes_of_a_bom_and_lines(tmp_path):
    plan = write_json(tmp_path / "a.json", [llava("1")])
    path = Path(plan.paths[0])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    lines = tmp_path / "b.jsonl"
    lines.write_text(
        f"{json.dumps(llava('2'))}\n\n{json.dumps(llava('3'))}\n{{broken\n"
        + json.dumps(llava("4", conversations=None, text="\ud83d"))
    )
    plan.path = [str(path), str(lines)]
    assert [row["id"] for row in build(plan, tmp_path)[1]] == ["1", "2", "3"]
    broken, surrogate = problems(plan)
    assert broken.startswith("b.jsonl[3]: row: line 4 is not JSON: Expecting property name")
    assert surrogate.startswith(
        "b.jsonl[4] (id '4'): text: expected text, found half of a surrogate"
    )


# Bad rows


def turns(*pairs):
    return [{"from": who, "value": value} for who, value in pairs]


Q, A = ("human", "<image>\nq"), ("gpt", "a")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["no"], 'x.json[0]: row: expected a mapping of fields, found a list of 1'),
        (llava(None), "x.json[0]: id: missing"),
        (llava(1.5), "x.json[0]: id: expected text, found a number 1.5"),
        (llava(" "), "x.json[0] (id ' '): id: empty"),
        (llava(image=7), "x.json[0] (id '004539375'): image: expected a picture's path, address or bytes, found a number 7"),
        (llava(image=["a", "b"]), "(id '004539375'): conversations: 2 images but 1 <image> markers in 1 turns"),
        (llava(image=["a", "b"], question="<image><image>q"), "image: expected one picture, found 2"),
        (llava(image="../a.jpg"), "image: expected a path inside the image folder, found '../a.jpg'"),
        (llava(image="/a.jpg"), "image: expected a path inside the image folder, found '/a.jpg'"),
        (llava(image=None), "conversations: 0 images but 1 <image> markers in 1 turns"),
        (llava(conversations=[]), "conversations: expected a list of messages with at least one turn, found []"),
        (llava(conversations=None), "conversations: expected a list of turns, found nothing"),
        (llava(conversations=turns(Q)), "conversations: no assistant turn, there is nothing to learn"),
        (llava(conversations=turns(Q, A, ("human", "q"))), "conversations: the last question has no answer"),
        (llava(conversations=turns(Q, A, A)), "conversations: turn 3 should be the user's"),
        (llava(conversations=turns(Q, ("human", "q"), A)), "conversations: turn 2 should be the assistant's"),
        (llava(conversations=turns(("human", "<image>"), A)), "conversations[0]: expected text, found none"),
        (llava(conversations=turns(Q, ("gpt", "  "))), "conversations[1]: the assistant's answer is empty"),
        (llava(conversations=turns(Q, ("gpt", None))), "conversations[1]: expected 'from' (human, gpt or system) and a text 'value'"),
        (llava(conversations=turns(Q, ("gpt", "<image>"))), "conversations[1]: an <image> marker in an assistant turn"),
        (llava(conversations=turns(Q, A, Q, A)), "conversations: 1 images but 2 <image> markers in 2 turns"),
        (llava(conversations=turns(("system", "s"), Q, A)), "conversations[0]: expected turns of user and assistant, found system"),
        (llava(conversations=["q", "a"]), "conversations[0]: expected a mapping, found text 'q'"),
        (llava(lang="Klingon!"), "lang: expected a language's BCP-47 code, such as en or pt-BR, found 'Klingon!'"),
        (llava(lang=5), "lang: expected a language's BCP-47 code, such as en or pt-BR, found 5"),
        (llava(image_sha256="abc"), "image_sha256: expected 64 hex digits, found text 'abc'"),
        (llava(image_sha256="z" * 64), "image_sha256: expected 64 hex digits, found text 'zzz"),
        (llava(image={"bytes": "text"}), "image: expected the bytes of a picture, found text 'text'"),
        (llava(image={"path": 7}), "image: expected a picture's path, address or bytes, found a number 7"),
        (llava(conversations=turns((["human"], "q"), A)), "conversations[0]: expected 'from' (human, gpt or system)"),
    ],
)  # fmt: skip
def test_every_bad_row_is_named_with_field_and_reason(tmp_path, row, problem):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row, llava("good")]))
    plan = SourcePlan("llava", str(path), language="en")
    (found,) = problems(plan)
    assert problem in found
    manifest, rows = build(plan, tmp_path)
    assert [row["id"] for row in rows] == ["good"]
    assert manifest["refused"] == sum(manifest["refused_for"].values()) == 1
    (line,) = (tmp_path / "source" / "refused.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"row", "field", "reason"}


def test_caption_task_wants_one_answer(tmp_path):
    plan = write_json(tmp_path / "x.json", [llava(conversations=turns(Q, A, ("human", "q"), A))])
    plan.task = "caption"
    assert problems(plan)[0].endswith(
        "conversations: a caption has one question and answer, found 4 turns"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}', "expected a JSON array of rows, found b'{' at its start"),
        ('[{"id": "1"}, {"id": ', "broken JSON after row 0"),
        ('[{"id": "1"}, nonsense]', "broken JSON after row 0"),
        ("", "expected a JSON array of rows, found b'' at its start"),
    ],
)
def test_broken_file(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"x.json: {message}"):
        build(SourcePlan("llava", str(path), language="en"), tmp_path)
    assert not (tmp_path / "source" / "manifest.json").exists()
    assert not list((tmp_path / "source").glob(".*"))


def test_no_good_row_at_all(tmp_path):
    with pytest.raises(ValueError, match="expected good rows, found none among 1"):
        build(write_json(tmp_path / "x.json", [llava(1.5)]), tmp_path)


@pytest.mark.parametrize("kind", ["llava", "folder", "mini"])
def test_source_that_is_not_there(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=r"found (no|none)"):
        list(read_source(SourcePlan(kind, str(tmp_path / "nothing"), images=str(tmp_path))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "llava"}, "source.path: expected a path for kind llava"),
        ({"kind": "folder", "path": ["a", "b"]}, "source.path: expected one path for kind folder"),
        (
            {"kind": "hub", "path": "a", "columns": {"txt": "a"}},
            r"source.columns: expected fields of .*, found \['txt'\]",
        ),
        ({"kind": "llava", "path": "a", "extract_images": True}, "expected kind hub"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises(ValueError, match=message):
        SourcePlan(**options)


# Ids, order, duplicates


def test_ids_keep_leading_zeros_and_rows_are_sorted_in_units(tmp_path):
    ids = [f"{n * 7919 % 1000:06d}" for n in range(1000)]
    plan = write_json(tmp_path / "x.json", [llava(i) for i in ids] + [llava(42)])
    manifest, rows = build(plan, tmp_path, unit_rows=300)
    assert [row["id"] for row in rows] == sorted([*ids, "42"])
    assert [unit["rows"] for unit in manifest["units"]] == [300, 300, 300, 101]
    path = tmp_path / "source" / "00000.parquet"
    assert pq.read_schema(path).equals(SOURCE_SCHEMA)
    assert manifest["units"][0]["sha256"] == sha256_file(path)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.sampled_from(["a", "a#2", "a#3", "a-1", "b", "a!"]), max_size=12))
def test_duplicates_are_numbered_or_listed_never_lost(ids):
    reads = [
        Record({"id": i, "lang": "en", "task": "caption"}, f"row {n}") for n, i in enumerate(ids)
    ]
    for policy in ("number", "list"):
        tally, refused = Tally(), []
        with TemporaryDirectory() as scratch:
            rows = list(sorted_rows(reads, Path(scratch), policy, tally, refused.append))
        out = [row["id"] for row in rows]
        assert out == sorted(set(out))
        assert tally.rows + tally.duplicates == tally.read == len(ids)
        assert (len(rows), len(refused)) == (tally.rows, tally.duplicates)
        assert set(ids) <= set(out)
        if policy == "list":
            assert tally.duplicates == len(ids) - len(set(ids))
        elif not {"a#2", "a#3"} & set(ids):
            assert tally.duplicates == 0


def test_duplicates_are_refused_by_default(tmp_path):
    plan = write_json(tmp_path / "x.json", [llava("1"), llava("2"), llava("1")])
    with pytest.raises(
        ValueError, match=r"found 1 rows that repeat one: set source.duplicates to `list`"
    ):
        build(plan, tmp_path)
    line = json.loads((tmp_path / "source" / "refused.jsonl").read_text())
    assert line["row"] == "x.json[2] (id '1')"
    assert problems(plan) == [
        "x.json[2] (id '1'): id, lang: another row has this id and the lang 'en'"
    ]


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.tuples(st.text(max_size=4), st.sampled_from(["en", "hi"])), max_size=60),
    run_bytes=st.integers(1, 400),
)
def test_external_sort_sorts(tmp_path_factory, keys, run_bytes):
    keys = [key for key in keys if key[0].isprintable()]
    sort = ExternalSort(tmp_path_factory.mktemp("sort"), run_bytes)
    for n, (identity, lang) in enumerate(keys):
        sort.add({"id": identity, "lang": lang, "text": "\t\n\u2028"}, f"row {n}")
    out = list(sort.rows())
    assert [key for key, _, _ in out] == sorted((*key, n) for n, key in enumerate(keys))
    assert all(where == f"row {key[2]}" and row["id"] == key[0] for key, row, where in out)


def test_external_sort_merges_runs_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("maya_vlm.training.data.sources.sorting.MOST_RUNS", 3)
    sort = ExternalSort(tmp_path, run_bytes=1)
    for n in range(20, 0, -1):
        sort.add({"id": f"{n:02d}", "lang": "en"}, "")
    assert [row["id"] for _, row, _ in sort.rows()] == [f"{n:02d}" for n in range(1, 21)]
    assert len(list(tmp_path.iterdir())) < 5


# Pictures


@pytest.fixture
def pictures(tmp_path):
    """Write the same three files as a folder and as a zip; the third is empty."""
    folder = tmp_path / "images"
    for name, data in {"1.png": picture(), "a/2.png": picture((0, 9, 0)), "3.png": b""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, path.relative_to(folder).as_posix())
    return tmp_path


@pytest.mark.parametrize("images", ["images", "images.zip"])
def test_pictures_are_hashed_and_missing_ones_refused(pictures, images):
    rows = [llava(str(n), name) for n, name in enumerate(["1.png", "a/2.png", "3.png", "4.png"])]
    plan = write_json(pictures / "x.json", [*rows, llava("t", image=None, question="q")])
    plan.images = str(pictures / images)
    _, out = build(plan, pictures)
    assert [row["image_sha256"] for row in out] == [
        hashlib.sha256(picture()).hexdigest(),
        hashlib.sha256(picture((0, 9, 0))).hexdigest(),
        None,
    ]
    found = problems(plan)
    assert "image: Cannot read '3.png'" in found[0]
    assert "empty" in found[0]
    assert f"image: No such image file in '{plan.images}': '4.png'" in found[1]


def test_picture_that_is_not_the_rows(pictures):
    plan = write_json(pictures / "x.json", [llava(image="1.png", image_sha256="0" * 64)])
    plan.images = str(pictures / "images")
    assert "image_sha256: the picture's is" in problems(plan)[0]


def test_broken_zip(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(
        ValueError,
        match=r"x.zip: expected a folder, .zip or .tar of images, found a file that is not a zip",
    ):
        Pictures(tmp_path / "x.zip")
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder, \.zip or \.tar of images, found nothing"
    ):
        Pictures(tmp_path / "y.zip")


def test_damaged_pictures_of_a_zip(pictures):
    path = pictures / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("1.png", picture())
    store = Pictures(path)
    data = bytearray(path.read_bytes())
    start = 30 + len("1.png")
    data[start] = 0xFF  # no deflate block begins with this byte
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"Cannot read '1.png' from {path}: Error -3"):
        Pictures(path).read("1.png")
    # Truncated while it is read: its directory is already loaded.
    path.write_bytes(data[:start])
    with pytest.raises(ValueError, match=rf"Cannot read '1.png' from {path}: it is truncated"):
        store.read("1.png")


def test_names_and_tables_that_hold_no_picture(pictures):
    with pytest.raises(ValueError, match=r"Cannot read 'a.*null byte"):
        Pictures(pictures / "images").read("a\0b")
    folder = pictures / "tables" / "images"
    folder.mkdir(parents=True)
    rows = [{"image": "1.png", "picture": None}, {"image": "2.png", "picture": {"bytes": b"2"}}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    store = Pictures(pictures / "tables")
    assert store.read("2.png") == b"2"
    with pytest.raises(ValueError, match=r"'1.png' in .*: an empty file"):
        store.read("1.png")
    pq.write_table(pa.table({"id": ["1"]}), folder / "1.parquet")
    with pytest.raises(
        ValueError, match=r"1.parquet: expected a parquet table with a column of image bytes"
    ):
        Pictures(pictures / "tables")


def test_validation_decodes_pictures_and_a_build_does_not(pictures, dataset):
    folder = pictures / "images"
    (folder / "1.png").write_bytes(picture()[:50])
    for name in ("1", "a/2"):
        (folder / f"{name}.txt").write_text("ein Bild")
    plan = SourcePlan("folder", str(folder), language="de")
    (cut,) = (line for line in problems(plan) if "1.png" in line)
    assert "1.png (id '1'): image: Cannot read '1.png': broken or cut off" in cut
    assert [row["id"] for row in build(plan, pictures)[1]] == ["1", "a/2"]
    rows = [{"key": "k", "jpg": {"bytes": picture()[:50], "path": "k.png"}, "caption": "cut"}]
    pq.write_table(
        pa.Table.from_pylist(rows), Path(dataset.paths[0]) / "data" / "train-00000.parquet"
    )
    (cut,) = problems(dataset)
    assert "(id 'k'): image: Cannot read 'k.png': broken or cut off" in cut


def test_pictures_stay_inside_their_folder(pictures):
    with pytest.raises(ValueError, match="expected a path inside"):
        Pictures(pictures / "images").read("../images.zip")


def test_tables_of_pictures_are_read_by_row_group(pictures, monkeypatch):
    folder = pictures / "tables" / "images"
    folder.mkdir(parents=True)
    rows = [{"image": f"{n}.png", "picture": {"bytes": b"%d" % n}} for n in range(10)]
    for part in (0, 1):
        table = pa.Table.from_pylist(rows[part * 5 : part * 5 + 5])
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=2)
    read = []
    original = PictureTables._read_group
    monkeypatch.setattr(
        PictureTables,
        "_read_group",
        staticmethod(lambda *place: read.append((place[0].stem, place[1])) or original(*place)),
    )
    store = Pictures(pictures / "tables")
    assert [store.read(f"{n}.png") for n in range(10)] == [b"%d" % n for n in range(10)]
    assert read == [("0", 0), ("0", 1), ("0", 2), ("1", 0), ("1", 1), ("1", 2)]
    some = PictureTables(sorted(folder.glob("*")), wanted={"3.png", "8.png", "99.png"})
    assert len(some) == 2
    assert some.read("8.png") == b"8"
    with pytest.raises(KeyError):
        some.read("1.png")


@pytest.mark.parametrize("place", ["images", "images.zip", "tables"])
def test_pictures_to_hand_on_are_decoded_within_limits(pictures, place, monkeypatch):
    (pictures / "images" / "4.png").write_text("no picture")
    big = picture() + b"x" * 5000
    (pictures / "images" / "5.png").write_bytes(big)
    with zipfile.ZipFile(pictures / "images.zip", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("4.png", "no picture")
        file.writestr("5.png", big)
    rows = [
        {
            "image": str(path.relative_to(pictures / "images")),
            "picture": {"bytes": path.read_bytes()},
        }
        for path in (pictures / "images").rglob("*.png")
    ]
    (pictures / "tables" / "images").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), pictures / "tables" / "images" / "0.parquet")
    store = Pictures(pictures / place)
    assert store.read_checked("a/2.png") == picture((0, 9, 0))
    assert store.read_checked("5.png") == big
    with pytest.raises(ValueError, match="not a picture in a known format"):
        store.read_checked("4.png")
    with pytest.raises(FileNotFoundError, match=r"No such image file in .*'6.png'"):
        store.read_checked("6.png")
    monkeypatch.setitem(loading.read_picture_file.__globals__, "MAX_BYTES", 5000)
    monkeypatch.setattr("maya_vlm.training.common.places.MAX_BYTES", 5000)
    with pytest.raises(ValueError, match=r"5,?0\d\d"):
        store.read_checked("5.png")


def test_a_link_out_of_the_folder_is_no_picture_to_hand_on(pictures):
    (pictures / "secret.png").write_bytes(picture())
    (pictures / "images" / "link.png").symlink_to(pictures / "secret.png")
    with pytest.raises(ValueError, match="it lies outside of"):
        Pictures(pictures / "images").read_checked("link.png")


# Folders with captions


def test_folder_with_text_files(pictures):
    folder = pictures / "images"
    (folder / "1.txt").write_text("ein Bild\n", encoding="utf-8")
    (folder / "a" / "2.txt").write_bytes(b"\xff\xfe")
    plan = SourcePlan("folder", str(folder), language="de")
    _, (row,) = build(plan, pictures)
    assert (row["id"], row["text"], row["lang"]) == ("1", "ein Bild", "de")
    assert row["image_sha256"] == hashlib.sha256(picture()).hexdigest()
    assert problems(plan) == [
        "3.png (id '3'): text: expected text, found nothing",
        "a/2.png (id 'a/2'): text: expected text, found half of a surrogate pair (U+DCFF) after 0 "
        "characters",
    ]


def test_names_that_are_not_utf8_are_refused_and_told(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (b"\xff", b"1"):
        for suffix, data in ((b".png", picture()), (b".txt", b"ein Bild")):
            Path(folder, os.fsdecode(name + suffix)).write_bytes(data)
    plan = SourcePlan("folder", str(folder), language="de")
    _, (row,) = build(plan, tmp_path)
    assert row["id"] == "1"
    (line,) = (tmp_path / "source" / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    refused = json.loads(line)
    assert refused["row"].startswith("\\udcff.png (id ")
    assert refused["field"] == "image"
    assert refused["reason"].startswith("expected text, found half of a surrogate pair")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_folder_with_metadata(pictures, kind):
    folder = pictures / "images"
    rows = [
        {"file_name": "1.png", "text": "red, plain", "id": "007"},
        {"file_name": "a/2.png", "text": "green"},
        {"file_name": "a/3.png", "text": "gone"},
        {"file_name": "1.png", "text": ""},
    ]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "id"])
            writer.writeheader()
            writer.writerows(rows)
    plan = SourcePlan("folder", str(folder), language="en")
    _, out = build(plan, pictures)
    assert [(r["id"], r["image"], r["text"]) for r in out] == [
        ("007", "1.png", "red, plain"),
        ("a/2", "a/2.png", "green"),
    ]
    missing, empty = problems(plan)
    assert f"image: No such image file in '{folder}': 'a/3.png'" in missing
    assert f"metadata.{kind}[3] (id '1'): text: " in empty


def test_source_without_rows_says_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected pictures \(.avif.*found none: add some"):
        build(SourcePlan("folder", str(tmp_path / "empty"), language="en"), tmp_path)
    with pytest.raises(ValueError, match=r"empty: expected pictures .*, found no file: add some"):
        validate_sources([str(tmp_path / "empty")])
    write_json(tmp_path / "x.json", [])
    with pytest.raises(ValueError, match=r"x.json: expected rows, found none: add some"):
        validate_sources([str(tmp_path / "x.json")])


def test_csv_without_file_names(tmp_path):
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns file_name and text"):
        list(read_source(SourcePlan("folder", str(tmp_path))))


# Datasets


@pytest.fixture
def dataset(tmp_path):
    rows = [
        {
            "key": f"{n:03d}",
            "jpg": {"bytes": picture((n, 0, 0)), "path": f"{n}.png"},
            "caption": f"caption {n}" if n != 3 else None,
        }
        for n in range(5)
    ]
    folder = tmp_path / "dataset" / "data"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")
    return SourcePlan("hub", str(tmp_path / "dataset"), language="en", columns={"image": "jpg"})


def test_dataset_is_streamed_with_its_pictures_hashes(dataset, tmp_path):
    _, rows = build(dataset, tmp_path)
    assert [row["id"] for row in rows] == ["000", "001", "002", "004"]
    assert rows[1]["image"] == "1.png"
    assert rows[1]["image_sha256"] == hashlib.sha256(picture((1, 0, 0))).hexdigest()
    assert problems(dataset)[0].endswith("caption: expected text, found nothing")


def test_pictures_inside_of_rows_can_be_written_out(dataset, tmp_path):
    dataset.extract_images = True
    _, rows = build(dataset, tmp_path)
    store = Pictures(tmp_path / "images")
    assert [store.sha256(row["image"]) for row in rows] == [row["image_sha256"] for row in rows]


def test_mini_dataset(tmp_path):
    plan = SourcePlan("mini", split="validation")
    manifest, rows = build(plan, tmp_path, 1000)
    assert manifest["refused"] == 0
    assert len(rows) == 1445
    assert {(row["lang"], row["task"]) for row in rows} == {("en", "caption")}
    store = Pictures(Path(plan.images))
    assert store.sha256(rows[0]["image"]) == rows[0]["image_sha256"]


# Continuing


def test_finished_sources_are_not_read_again(tmp_path, monkeypatch):
    plan = write_json(tmp_path / "x.json", [llava("1"), llava("2")])
    first, _ = build(plan, tmp_path)
    monkeypatch.setattr("maya_vlm.training.data.sources.step.read_source", None)
    assert build(plan, tmp_path)[0] == first


def test_changed_source_is_read_again_and_old_units_go(tmp_path, capsys):
    plan = write_json(tmp_path / "x.json", [llava(str(n)) for n in range(10)])
    build(plan, tmp_path, 3)
    write_json(tmp_path / "x.json", [llava("5"), llava("6")])
    _, rows = build(plan, tmp_path, 3)
    assert [row["id"] for row in rows] == ["5", "6"]
    assert [p.name for p in sorted((tmp_path / "source").glob("*.parquet"))] == ["00000.parquet"]
    assert "the plan or the source has changed; read again" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_damaged_source_unit_is_noticed(tmp_path, damage):
    plan = write_json(tmp_path / "x.json", [llava("1"), llava("2")])
    before, rows = build(plan, tmp_path)
    damage(tmp_path / "source" / "00000.parquet")
    state = check_sources(tmp_path / "source", source_key(plan, 100))
    assert state == "00000.parquet is missing or has changed"
    after, again = build(plan, tmp_path)
    assert again == rows
    assert after["units"] == before["units"]


def test_kinds_are_told_by_their_paths(pictures, dataset):
    write_json(pictures / "x.json", [])
    kinds = {
        "x.json": "llava",
        "images": "folder",
        "dataset": "hub",
        "nobody/nothing": "hub",
    }
    for name, kind in kinds.items():
        assert infer_source(str(pictures / name)).kind == kind
    assert infer_source("training/data/mini").kind == "mini"
    with pytest.raises(
        ValueError, match=r"expected a .json or .jsonl file .*, a .parquet file, a folder or a Hub"
    ):
        infer_source(str(pictures / "images.zip"))


def test_a_build_takes_no_file_from_outside_of_its_folder_and_nothing_that_is_no_picture(tmp_path):
    """The folder's author may have linked to any file of this machine, and the build is published."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (tmp_path / "key.png").write_text("PRIVATE KEY")
    (tmp_path / "out.png").write_bytes(picture())
    (folder / "key.png").symlink_to(tmp_path / "key.png")
    (folder / "out.png").symlink_to(tmp_path / "out.png")
    names = ["a.png", "key.png", "out.png", f"file://{folder}/a.png", "../out.png"]
    rows = [llava(str(number), image) for number, image in enumerate(names)]
    plan = dataclasses.replace(write_json(tmp_path / "rows.json", rows), images=str(folder))

    def read_as(plan: SourcePlan) -> list[str]:
        rows = read_source(plan, decode=True)
        return [r.row["image"] if isinstance(r, Record) else f"{r.field}: {r.reason}" for r in rows]

    good, key, out, address, above = read_as(plan)
    assert good == "a.png"
    assert "lies outside" in key
    assert "follow_links" in out
    assert "expected a path inside the image folder" in address
    assert "expected a path inside the image folder" in above
    good, key, out, *_ = read_as(dataclasses.replace(plan, follow_links=True))
    assert (good, out) == ("a.png", "out.png")
    assert "key.png': not a picture" in key


def test_a_caption_is_read_through_no_link_that_leads_out(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "secret").write_text("a secret")
    (folder / "a.png").write_bytes(picture())
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    plan = SourcePlan("folder", str(folder), language="en")
    (row,) = read_source(plan)
    assert "its caption: Cannot read 'a.txt': it lies outside" in str(row)
    (row,) = read_source(dataclasses.replace(plan, follow_links=True))
    assert row.row["text"] == "a secret"


def test_a_missing_table_or_a_device_is_told_as_a_file(tmp_path):
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    for name, reason in (("gone", "no such file"), ("zero", "expected an ordinary file, found a")):
        path = str(tmp_path / f"{name}.parquet")
        for plan in (infer_source(path), SourcePlan("llava", path), SourcePlan("hub", path)):
            with pytest.raises(
                (ValueError, FileNotFoundError), match=rf"{name}\.parquet: .*{reason}"
            ):
                list(read_source(plan))


def test_validate_reads_the_one_file_that_is_named(tmp_path, capsys):
    turns = [("human", "<image>\nWhat?"), ("gpt", "A red boat.")]
    said = [{"from": who, "value": text} for who, text in turns]
    rows = [{"id": "1", "image": "a.png", "conversations": said}, {"id": "2", "image": "b.png"}]
    (tmp_path / "one").mkdir()
    write_json(tmp_path / "one" / "rows.json", rows[:1])
    write_json(tmp_path / "one" / "other.json", rows)
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a.png")
    path = str(tmp_path / "one")
    assert validate_sources([path], language="en", data_files="rows.json") == 0
    assert capsys.readouterr().out.count("1 rows read: 1 good, 0 refused") == 2
    assert validate_sources([path], language="en", data_files="other.json") == 1
    for wrong in (f"{path}/rows.json", "plan.yaml"):
        with pytest.raises(ValueError, match=f"{wrong}: --data-files"):
            validate_sources([wrong], data_files="rows.json")


def test_a_blank_name_of_the_pictures_is_refused():
    with pytest.raises(ValueError, match=r"^source\.images: expected a folder, .* found ' '$"):
        SourcePlan("llava", "rows.json", images=" ")
