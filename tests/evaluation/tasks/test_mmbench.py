import csv

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Request, Scored, Selection
from maya_vlm.training.evaluation.records import chance_rows
from maya_vlm.training.evaluation.tasks.mmbench import MmBench
from maya_vlm.training.inference.generation import Answer

from ..scoring.golden import GOLDEN, needs_golden
from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

NAMES = ("question", "hint", "answer", "A", "B", "C", "D", "category")
FEATURES = {"index": TEXT} | dict.fromkeys(NAMES, TEXT) | {"image": PICTURE}
FEATURES |= dict.fromkeys(("source", "L2-category", "comment", "split"), TEXT)


def row(index, answer, *options, hint="nan"):
    texts = dict(zip("ABCD", (*options, "nan", "nan", "nan", "nan"), strict=False))
    own = {"index": index, "question": "Which?", "hint": hint, "answer": answer}
    return dict.fromkeys(FEATURES, "x") | own | texts | {"image": picture(int(index) % 7)}


ROWS = [
    row("3", "A", "a cat", "a dog", hint="Look."),
    row("1000003", "B", "a dog", "a cat", hint="Look."),
    row("5", "C", "red", "green", "blue"),
    row("1000005", "A", "blue", "red", "green"),
]


def write(folder, rows=ROWS, configs=("en", "cn"), index=TEXT):
    kind = int if index is not TEXT else str
    rows = [one | {"index": kind(one["index"])} for one in rows]
    splits = {(config, "dev"): rows for config in configs}
    folder = write_dataset(folder, FEATURES | {"index": index}, splits)
    return Selection(data=str(folder), languages=("en",))


def test_questions_are_asked_as_llava_asks(tmp_path):
    selection = write(tmp_path)
    task = MmBench()
    loaded = task.load(selection)
    assert loaded.requests[0].text == (
        "Look.\nWhich?\nA. a cat\nB. a dog\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert loaded.requests[2].text.startswith("Which?\nA. red\nB. green\nC. blue\n")
    assert [request.item for request in loaded.requests] == ["3", "3", "5", "5"]
    # The second question lacks one of its three rotations, which is counted.
    assert task.describe()["questions without all rotations"] == 1
    assert task.describe()["questions without the first"] == 0
    assert chance_rows(task, loaded.requests)[0]["value"] == pytest.approx((1 / 4 + 1 / 9) / 2)
    # The Chinese file stores as numbers what the English file stores as text.
    write(tmp_path / "2", index=datasets.Value("int64"))
    both = MmBench("vanilla").load(Selection(data=str(tmp_path / "2")))
    assert both.languages == ["en", "zh"]
    assert [request.id for request in both.requests] == ["en/3", "en/5", "zh/3", "zh/5"]
    assert both.requests[2].text.endswith("B. a dog\n请直接回答选项字母。")
    assert both.pictures.load("zh/3").getpixel((0, 0)) == (3, 90, 200)


@pytest.mark.parametrize(
    ("protocol", "texts", "accuracy", "failures"),
    [
        ("circular", ["A", "B", "C", "b"], 0.5, 1),
        ("circular", ["A", "Answer is B", "It is blue", "A."], 1.0, 0),
        ("strict", ["A", "A", "c", "a"], 0.5, 0),
        ("vanilla", ["A", "B"], 0.5, 0),
    ],
)
def test_a_question_is_right_where_all_its_rows_are(tmp_path, protocol, texts, accuracy, failures):
    task = MmBench(protocol)
    scored = answered(task, task.load(write(tmp_path)), texts)
    assert values(task, scored, "accuracy") == {"all": accuracy}
    rows = task.aggregate(scored, "model", {}, 0)
    assert [(one["metric"], one["n"]) for one in rows] == [("accuracy", 2), ("per_row", len(texts))]
    assert rows[0]["failures"] == failures


@needs_golden
def test_published_answers_give_published_scores():
    with (GOLDEN / "mmbench" / "predictions.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    task = MmBench()
    scored = []
    for one in found:
        options = dict.fromkeys("ABCD"[: int(one["n_options"])], "-")
        request = Request(
            one["index"],
            "en",
            ("?",),
            16,
            one["group"],
            expected=one["answer"],
            about={"options": options},
        )
        given = Answer(one["prediction"], 1, True)
        scored.append(Scored(request, given, task.score(request, given)))
    assert values(task, scored, "accuracy")["all"] == pytest.approx(0.612245, abs=1e-6)
    assert values(task, scored, "per_row")["all"] == pytest.approx(0.710989, abs=1e-6)


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of A, B, found 'nan'$"):
        MmBench().load(write(tmp_path / "a", [row("1", "nan", "x", "y")]))
    bare = [{name: cell for name, cell in one.items() if name != "hint"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no hint: use the files of lmms-lab/MMBench"):
        MmBench().load(write(tmp_path / "b", bare))


def test_the_servers_table_has_the_answers_as_they_were_given(tmp_path):
    task = MmBench()
    scored = answered(task, task.load(write(tmp_path)), ["A", "B.\tor A", 'The "red"\none', "A"])
    (file,) = task.export(scored, tmp_path)
    assert file.name == "mmbench.en.tsv"
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened, delimiter="\t"))
    assert list(lines[0]) == [
        "index",
        "question",
        "A",
        "B",
        "C",
        "D",
        "prediction",
        "answer",
        "split",
    ]
    assert [line["index"] for line in lines] == ["3", "1000003", "5", "1000005"]
    assert [line["prediction"] for line in lines] == [one.answer.text for one in scored]
    assert (lines[0]["C"], lines[2]["C"], lines[1]["answer"]) == ("", "blue", "B")
    assert {line["split"] for line in lines} == {"dev"}


def test_a_split_without_answers_is_asked_for_the_server(tmp_path):
    hidden = [one | {"answer": answer} for one, answer in zip(ROWS, ("nan", None) * 2, strict=True)]
    data = write_dataset(tmp_path, FEATURES, {("en", "test"): hidden})
    task = MmBench()
    loaded = task.load(Selection(data=str(data), split="test", languages=["en"]))
    scored = answered(task, loaded, ["A", "what", "C", "A"])
    assert [one.score.unparsable for one in scored] == [False, True, False, False]
    assert values(task, scored, "accuracy") == values(task, scored, "per_row") == {}
    assert chance_rows(task, loaded.requests) == []
    (file,) = task.export(scored, tmp_path)
    assert file.read_text(encoding="utf-8").splitlines()[1].endswith("\tA\t\ttest")
