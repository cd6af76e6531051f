import json

import datasets
import pytest
from pycocotools.coco import COCO

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.scoring.captions import caption_score, images_hash
from maya_vlm.training.evaluation.scoring.tokens import default_tokenizer, tokenize
from maya_vlm.training.evaluation.tasks.xm3600 import LANGUAGES, Xm3600

from .public_rows import PICTURE, TEXT, answered, picture, write_dataset

LISTS = ("captions", "captions_tokenized", "captions_tokenized_lowercase")
FEATURES = {"image_id": TEXT, "image_locale": TEXT} | dict.fromkeys(LISTS, datasets.List(TEXT))
FEATURES |= {"image": PICTURE}
XM100 = {"image_id": TEXT, "caption": TEXT, "image": PICTURE}
CAPTIONS = {
    "en": [["a red bus in a street", "a bus"], ["two cats on a wall"], ["snow on the mountain"]],
    "zh": [["街上的红色公共汽车"], ["墙上的两只猫", "两只猫"], ["山上的雪"]],
}


def rows(language, features=FEATURES):
    return [
        {
            "image_id": f"0{3 - number}",
            "image_locale": "en",
            **dict.fromkeys(LISTS, captions),
            "caption": captions[0],
            "image": picture(number),
        }
        for number, captions in enumerate(CAPTIONS[language])
    ]


def write(folder, features=FEATURES, languages=("en", "zh")):
    splits = {
        ("default", language): [{name: row[name] for name in features} for row in rows(language)]
        for language in languages
    }
    return Selection(data=str(write_dataset(folder, features, splits)), languages=languages)


def found(task, scored):
    rows = task.aggregate(scored, "model", {"all": ["en", "zh"]}, 0)
    return {(row["metric"], row["language"]): row for row in rows}


def test_cider_carries_the_number_and_the_hash_of_its_images(tmp_path):
    task = Xm3600()
    loaded = task.load(write(tmp_path))
    assert loaded.requests[0].text == "Briefly describe the image in English in one sentence."
    assert [request.id for request in loaded.requests[:3]] == ["en/01", "en/02", "en/03"]
    assert loaded.pictures.load("01").getpixel((0, 0)) == (2, 90, 200)
    assert task.describe()["images"]["en"] == {
        "n": 3,
        "images_sha256": images_hash(["01", "02", "03"]),
        "tokenizer": "words@1",
    }
    assert task.describe()["images"]["zh"]["tokenizer"].startswith("jieba@1+jieba ")
    texts = ["snow", "two cats on a wall", "a bus", "山上的雪", "", "公共汽车"]
    scored = answered(task, loaded, texts)
    rows = found(task, scored)
    for language, own in (("en", scored[:3]), ("zh", scored[3:])):
        known = caption_score(
            {one.request.item: one.answer.text for one in own},
            {one.request.item: one.request.expected for one in own},
            language,
        )
        assert rows["cider", language]["value"] == pytest.approx(known["cider"])
        assert rows["rouge_l", language]["value"] == pytest.approx(known["rouge_l"])
        assert rows["cider", language]["n"] == 3
    assert rows["cider", "zh"]["failures"] == 1
    mean = (rows["cider", "en"]["value"] + rows["cider", "zh"]["value"]) / 2
    assert rows["cider", "all"]["value"] == pytest.approx(mean)
    assert rows["cider", "all"]["low"] <= mean <= rows["cider", "all"]["high"]


def test_of_one_image_there_is_no_cider(tmp_path):
    task = Xm3600("full")
    selection = write(tmp_path, languages=("en",))
    loaded = task.load(Selection(data=selection.data, languages=["en"], limit=1))
    rows = found(task, answered(task, loaded, ["a bus"]))
    assert ("cider", "en") not in rows
    assert rows["chrf", "en"]["n"] == 1


def test_pangea_asks_about_xm100(tmp_path):
    task = Xm3600("pangea")
    loaded = task.load(write(tmp_path, XM100))
    assert loaded.requests[3].text == (
        "Provide a one-sentence caption for the provided image in Chinese."
    )
    assert task.metric == "rouge_l"
    assert loaded.requests[0].expected == ("snow on the mountain",)


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    bare = {name: kind for name, kind in FEATURES.items() if name != "captions"}
    with pytest.raises(ValueError, match=r"found no captions: use the files of floschne/xm3600"):
        Xm3600().load(write(tmp_path / "a", bare))
    with pytest.raises(ValueError, match=r"languages: expected some of .*, found 'ur'"):
        Xm3600().load(Selection(data=str(tmp_path), languages=["ur"]))


def test_captions_are_exported_as_cocos_tools_read_them(tmp_path):
    task = Xm3600()
    texts = ["snow", "two cats on a wall", "a bus", "山上的雪", "", "公共汽车"]
    scored = answered(task, task.load(write(tmp_path)), texts)
    files = task.export(scored, tmp_path)
    names = [f"xm3600.{lang}{part}.json" for lang in ("en", "zh") for part in ("", ".references")]
    assert [file.name for file in files] == names
    captions = json.loads(files[0].read_text())
    assert captions[1] == {"image_id": "02", "caption": "two cats on a wall"}
    known = COCO(str(files[1]))
    made = known.loadRes(str(files[0]))
    assert made.getImgIds() == known.getImgIds() == ["01", "02", "03"]
    references = [each["caption"] for each in known.loadAnns(known.getAnnIds(imgIds=["03"]))]
    assert references == CAPTIONS["en"][0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_is_cut_at_spaces_that_it_does_not_write(language):
    assert (default_tokenizer(language) == "words") == (language not in ("zh", "ja", "th"))
    text = {"zh": "街上的红色公共汽车", "ja": "通りに赤いバスがある", "th": "รถบัสสีแดงบนถนน"}.get(
        language, "a red bus in a street"
    )
    assert len(tokenize(text, default_tokenizer(language), language).split()) > 3
