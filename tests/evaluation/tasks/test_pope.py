import json
import re

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.scoring.pope import PopeRow, pope_mean, pope_score
from maya_vlm.training.evaluation.tasks.pope import SETS, Pope

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

FEATURES = dict.fromkeys(
    ("id", "question_id", "question", "answer", "image_source", "category"), TEXT
) | {"image": PICTURE}


def rows(name: str) -> list[dict]:
    return [
        {
            "id": str(number),
            "question_id": str(number + 1),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image_source": f"COCO_val2014_{number // 2:012}",
            "image": picture(number // 2),
            "category": name,
        }
        for number, (thing, label) in enumerate((("dog", "yes"), ("cat", "no"), ("bus", "yes")))
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    splits = {("Full", name): rows(name) for name in SETS}
    return write_dataset(tmp_path_factory.mktemp("pope"), FEATURES, splits)


def test_questions_are_asked_as_llava_asks(data):
    loaded = Pope().load(Selection(data=str(data)))
    first = loaded.requests[0]
    assert first.text == (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    assert (first.id, first.subset, first.expected) == ("random/1", "random", "yes")
    assert loaded.pictures.load(first.pictures[0]).getpixel((0, 0)) == (0, 90, 200)
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 9)
    assert loaded.data["split"] == "random, popular, adversarial"
    assert len(Pope().load(Selection(data=str(data), limit=1)).requests) in (3, 6)
    only = Pope().load(Selection(data=str(data), split="popular"))
    assert {request.subset for request in only.requests} == {"popular"}


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_scores_are_the_papers(data, protocol):
    task = Pope(protocol)
    loaded = task.load(Selection(data=str(data)))
    texts = ["Yes", "No.", "はい", "no", "Yes, it is", "yes", "maybe", "no", "Yes."]
    scored = answered(task, loaded, texts)
    sets = {
        name: pope_score(
            PopeRow(one.request.id, one.score.parsed, one.request.expected)
            for one in scored
            if one.request.subset == name
        )
        for name in SETS
    }
    for metric, name in (("f1", "f1"), ("recall", "recall"), ("yes_rate", "yes_ratio")):
        found = values(task, scored, metric)
        assert {key: found[key] for key in SETS} == pytest.approx(
            {key: score[name] for key, score in sets.items()}
        )
    assert values(task, scored, "f1")["mean"] == pytest.approx(pope_mean(sets)["f1"])
    # Each set has one question with the answer no.
    expected = {name: score["fp"] / 1 for name, score in sets.items()}
    assert {key: values(task, scored, "false_yes")[key] for key in SETS} == expected
    # Only the paper's parser reads an unparsable answer as yes.
    assert scored[6].score.unparsable is (protocol == "strict")


def test_no_yes_at_all_scores_zero(data):
    task = Pope()
    scored = answered(task, task.load(Selection(data=str(data))), ["no"] * 9)
    assert values(task, scored, "precision")["mean"] == 0
    assert values(task, scored, "f1")["random"] == 0


def test_what_is_missing_is_told_in_one_line(tmp_path):
    kinds = {name: kind for name, kind in FEATURES.items() if name != "image_source"}
    bare = [{name: cell for name, cell in row.items() if name in kinds} for row in rows("random")]
    folder = write_dataset(tmp_path / "bare", kinds, {("Full", "random"): bare})
    with pytest.raises(ValueError, match=r"found no image_source: use the files of lmms-lab/POPE"):
        Pope().load(Selection(data=str(folder), split="random"))
    with pytest.raises(
        ValueError, match=r"cannot be read: the splits are random \(Full/random-.*\.parquet\)$"
    ):
        Pope().load(Selection(data=str(folder), split="popular"))
    wrong = [row | {"answer": "perhaps"} for row in rows("random")]
    folder = write_dataset(tmp_path / "wrong", FEATURES, {("Full", "random"): wrong})
    with pytest.raises(ValueError, match="row 0: answer: expected yes or no, found 'perhaps'"):
        Pope().load(Selection(data=str(folder), split="random"))
    folder = write_dataset(tmp_path / "other", FEATURES, {("default", "test"): rows("random")})
    with pytest.raises(ValueError, match="config 'Full', split 'random': cannot be read") as caught:
        Pope().load(Selection(data=str(folder)))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        Pope().load(Selection(data=str(tmp_path / "nowhere")))
    folder = write_dataset(tmp_path / "whole", FEATURES, {("Full", "random"): rows("random")})
    with pytest.raises(ValueError, match=r"languages: expected some of .*, found 'hi'"):
        Pope().load(Selection(data=str(folder), split="random", languages=["hi"]))


def test_results_name_the_files_of_every_set(tmp_path):
    def sha256(name: str, changed: str = "") -> str | None:
        own = {("Full", each): rows(each) for each in SETS}
        if changed:
            own["Full", changed] = [row | {"answer": "no"} for row in rows(changed)]
        folder = write_dataset(tmp_path / name, FEATURES, own)
        return Pope().load(Selection(data=str(folder))).data["files_sha256"]

    whole = sha256("a")
    assert sha256("b") == whole
    assert len({whole, *(sha256(name, name) for name in SETS)}) == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "expected parquet, found Parquet file size is 0 bytes: download it again"),
        (b"no parquet at all", "expected parquet, found Parquet magic bytes not found"),
        (None, "expected rows, found none: download it again, or remove it"),
    ],
)
def test_a_file_without_rows_is_named(tmp_path, content, told):
    write_dataset(tmp_path, FEATURES, {("Full", name): rows(name) for name in SETS})
    file = tmp_path / "Full" / "popular-00000-of-00001.parquet"
    if content is None:
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"cannot be read: Full/{file.name}: {told}")):
        Pope().load(Selection(data=str(tmp_path)))


def test_answers_are_exported_for_both_scripts(data, tmp_path):
    task = Pope()
    scored = answered(task, task.load(Selection(data=str(data))), ["Yes", "No."] + ["no"] * 7)
    files = task.export(scored, tmp_path)
    assert [file.name for file in files] == [f"pope.{name}.jsonl" for name in SETS]
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    # LLaVA's script joins by question number, POPE's by order.
    assert [line["question_id"] for line in lines] == ["1", "2", "3"]
    assert [line["text"] for line in lines] == [line["answer"] for line in lines]
    assert lines[1]["answer"] == "No."
    assert lines[0]["question"] == "Is there a dog in the image?"
    assert lines[0]["prompt"] == scored[0].request.text
    assert task.export(scored[:3], tmp_path) == files[:1]
