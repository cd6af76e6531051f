import io
import zipfile

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Picture, Selection
from maya_vlm.training.evaluation.tasks.kaleidoscope import HEADINGS, SYSTEM, Kaleidoscope
from maya_vlm.training.evaluation.tasks.kaleidoscope_thinking import INSTRUCTIONS

from .public_rows import TEXT, answered, picture, values, write_dataset

NAMES = ("question", "image", "image_information", "image_type", "language", "country", "level")
FEATURES = dict.fromkeys((*NAMES, "category_en", "general_category_en"), TEXT)
FEATURES |= {"options": datasets.List(TEXT), "answer": datasets.Value("int64")}


def row(question, options, answer, image=None, language="en"):
    return dict.fromkeys(FEATURES, "x") | {
        "question": question,
        "options": options,
        "answer": answer,
        "image": image,
        "language": language,
    }


ROWS = [
    row("Which?", ["a", "b"], 1, "data/x/1.png"),
    row("Какой?", ["да", "нет", "оба"], 0, "data/x/2.png", "ru"),
    row("What?", ["u", "v", "w", "x"], 3),
    row("Which picture?", ["data/x/1.png", "data/x/2.png"], 0),
]


def write(folder, rows=ROWS, packed=True):
    write_dataset(folder, FEATURES, {("default", "train"): rows})
    files = {}
    for number in (1, 2):
        picture(number).save(file := io.BytesIO(), "PNG")
        files[f"data/x/{number}.png"] = file.getvalue()
    if packed:
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"final_data/{name}", content)
    else:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return Selection(data=str(folder))


@pytest.mark.parametrize("packed", [True, False])
def test_questions_are_asked_with_pictures_of_the_archive(tmp_path, packed):
    task = Kaleidoscope()
    loaded = task.load(write(tmp_path, packed=packed))
    assert loaded.languages == ["en", "ru"]
    assert loaded.requests[1].content == (
        Picture("data/x/2.png"),
        "Output your choice in the specified JSON format.\n\n"
        "Вопрос: Какой?\nВарианты:\nA. да\nB. нет\nC. оба\n\nANSWER:",
    )
    assert {request.system for request in loaded.requests} == {SYSTEM}
    assert [request.subset for request in loaded.requests] == ["image", "image", "text", "image"]
    read = loaded.pictures.load("data/x/2.png")
    assert (read.size, read.getpixel((0, 0))) == ((512, 512), (2, 90, 200))
    only = Kaleidoscope().load(Selection(data=str(tmp_path), languages=["ru"]))
    assert [request.id for request in only.requests] == ["train/1"]


@pytest.mark.parametrize(
    ("protocol", "last", "valid"), [("direct", None, 1.0), ("strict", "A", 2 / 3)]
)
def test_scores_follow_the_protocol(tmp_path, protocol, last, valid):
    task = Kaleidoscope(protocol)
    loaded = task.load(write(tmp_path))
    texts = ['{"choice": "B"}', '{"choice": "A"}', "The answer is A", '{"choice": "A"}']
    scored = answered(task, loaded, texts)
    assert [one.score.parsed for one in scored] == ["B", "A", last, "A"]
    assert values(task, scored, "accuracy") == {"image": 1.0, "text": 0.0, "all": 2 / 3}
    assert values(task, scored, "valid_accuracy")["all"] == valid


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    selection = write(tmp_path / "a")
    (tmp_path / "a" / "data.zip").unlink()
    with pytest.raises(FileNotFoundError, match="No such image file in"):
        Kaleidoscope().load(selection)
    with pytest.raises(ValueError, match="the index of one of 2 options, found 'en' and 4"):
        Kaleidoscope().load(write(tmp_path / "b", [row("?", ["x", "y"], 4)]))
    bad = write(tmp_path / "c", [row("?", ["x", "y"], 1, "../../secret.png")], packed=False)
    with pytest.raises(ValueError, match="lies outside"):
        Kaleidoscope().load(bad)
    bare = [{name: cell for name, cell in one.items() if name != "answer"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no answer: use the files of CohereLabs/kaleido"):
        Kaleidoscope().load(write(tmp_path / "d", bare))


def test_options_may_be_pictures(tmp_path):
    loaded = Kaleidoscope().load(write(tmp_path))
    lead, *shown, end = loaded.requests[3].content
    assert lead.endswith("Question: Which picture?\nOptions:\nA. ")
    assert shown == [Picture("data/x/1.png"), "\nB. ", Picture("data/x/2.png")]
    assert end == "\n\nANSWER:"
    assert loaded.pictures.load("data/x/1.png").size == (512, 512)


def test_the_chain_of_thought_prompt_asks_and_reads_as_published(tmp_path):
    task = Kaleidoscope("thinking")
    loaded = task.load(write(tmp_path))
    assert task.key == "kaleidoscope:thinking"
    assert loaded.requests[0].content == (
        "Which?",
        Picture("data/x/1.png"),
        "\nOptions:\nA. a\nB. b",
    )
    assert loaded.requests[1].system.startswith("Следующее — это вопрос с выбором ответа.")
    assert loaded.requests[2].content == ("What?\nOptions:\nA. u\nB. v\nC. w\nD. x",)
    texts = ['{"choice": "A"} but <ANSWER> B </ANSWER>', "<answer>1</answer>", "So it is D.", "A"]
    scored = answered(task, loaded, texts)
    assert [one.score.parsed for one in scored] == ["B", "A", None, "A"]
    assert set(INSTRUCTIONS) == set(HEADINGS)
    assert all("<ANSWER> X </ANSWER>" in text for text in INSTRUCTIONS.values())


def test_another_archive_is_other_data(tmp_path):
    selection = write(tmp_path)
    before = Kaleidoscope().load(selection).data["files_sha256"]
    with zipfile.ZipFile(tmp_path / "data.zip", "a") as archive:
        archive.writestr("final_data/more.png", b"x")
    assert Kaleidoscope().load(selection).data["files_sha256"] != before
