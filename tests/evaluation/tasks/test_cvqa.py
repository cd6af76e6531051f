import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.cvqa import Cvqa

from .public_rows import PICTURE, TEXT, answered, picture, write_dataset

NAMES = ("ID", "Subset", "Question", "Translated Question")
LISTS = ("Options", "Translated Options")
FEATURES = (
    {"image": PICTURE} | dict.fromkeys(NAMES, TEXT) | dict.fromkeys(LISTS, datasets.List(TEXT))
)
FEATURES |= {"Label": datasets.Value("int64")}
FEATURES |= dict.fromkeys(("Category", "Image Type", "Image Source", "License"), TEXT)


def row(number, language, country, label):
    return dict.fromkeys(FEATURES, "x") | {
        "image": picture(number),
        "ID": f"58{number}_0",
        "Subset": f"('{language}', '{country}')",
        "Question": "¿Qué es?",
        "Options": ["uno", "dos", "tres", "cuatro"],
        "Translated Question": "What is it?",
        "Translated Options": ["one", "two", "three", "four"],
        "Label": label,
    }


ROWS = [
    row(1, "Spanish", "Chile", 0),
    row(2, "Spanish", "Chile", 1),
    row(3, "Spanish", "Mexico", 2),
    row(4, "Hindi", "India", 3),
]


def write(folder, rows=ROWS):
    return Selection(data=str(write_dataset(folder, FEATURES, {("default", "test"): rows})))


def found(task, scored):
    rows = task.aggregate(scored, "model", {"all": ["es", "hi"]}, 0)
    return {(row["metric"], row["language"]): row["value"] for row in rows}


def test_questions_are_asked_in_both_languages(tmp_path):
    loaded = Cvqa().load(write(tmp_path))
    assert loaded.languages == ["es", "hi"]
    assert loaded.requests[0].text == (
        "Question: ¿Qué es? \n\n Options: A. uno\nB. dos\nC. tres\nD. cuatro \n\n "
        "Answer with the option's letter from the given choices directly."
    )
    assert loaded.pictures.load("583_0").getpixel((0, 0)) == (3, 90, 200)
    assert [request.expected for request in loaded.requests] == ["A", "B", "C", "D"]
    english = Cvqa("english").load(write(tmp_path))
    assert english.languages == ["en"]
    assert "What is it?" in english.requests[0].text
    assert "A. one\n" in english.requests[0].text
    only = Cvqa().load(Selection(data=str(tmp_path), languages=["hi"]))
    assert [request.id for request in only.requests] == ["584_0"]


def test_the_mean_is_over_countries(tmp_path):
    task = Cvqa()
    scored = answered(task, task.load(write(tmp_path)), ["A", "A", "C", "no idea"])
    assert [one.score.unparsable for one in scored] == [False, False, False, True]
    assert found(task, scored) == {
        ("accuracy", "es"): 0.75,
        ("accuracy", "hi"): 0.0,
        ("accuracy", "all"): 0.5,
        ("micro", "es"): pytest.approx(2 / 3),
        ("micro", "hi"): 0.0,
        ("micro", "all"): 0.5,
    }


def test_pangeas_parser_reads_an_article_and_never_guesses_here(tmp_path):
    task = Cvqa("pangea")
    scored = answered(task, task.load(write(tmp_path)), ["La respuesta", "???", "C.", "D"])
    assert [one.score.parsed for one in scored] == ["A", None, "C", "D"]


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="Label: expected the index of one of 4 options, found -1"):
        Cvqa().load(write(tmp_path / "a", [row(1, "Hindi", "India", -1)]))
    with pytest.raises(ValueError, match=r"Subset: expected .*, found \"\('Elvish', 'Gondor'\)\""):
        Cvqa().load(write(tmp_path / "b", [row(1, "Elvish", "Gondor", 1)]))
    bare = [{name: cell for name, cell in one.items() if name != "Subset"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no Subset: use the files of afaji/cvqa"):
        Cvqa().load(write(tmp_path / "c", bare))


def test_places_are_exported_for_the_server(tmp_path):
    task = Cvqa()
    scored = answered(task, task.load(write(tmp_path)), ["A", "La respuesta", "dos", "D."])
    (file,) = task.export(scored, tmp_path)
    assert file.name == "cvqa.csv"
    assert file.read_text() == "ID,index\n581_0,0\n582_0,-1\n583_0,1\n584_0,3\n"
