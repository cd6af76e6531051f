"""Cards of built datasets: equal to the manifest; an incomplete folder is not published."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from maya_vlm.model_card.cards.dataset import dataset_card, read_manifest, write_dataset_card
from maya_vlm.model_card.cards.model import MARKER
from maya_vlm.model_card.hub.publish_dataset import check_configs, check_files
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.manifest import FORMAT
from maya_vlm.training.data.dataset.plan import LayoutPlan
from tests.data.tiny_build import make_plan, rows_of, translate, write_source
from tests.model_card.cards.test_model import HOSTILE, check_card


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    write_source(folder / "in", rows_of(25))
    layout = LayoutPlan(licence="cc-by-4.0", licence_note="Tiny.", description="About squares.")
    plan = make_plan(folder, languages=("fr",), layout=layout)
    translate(plan)
    return plan


@pytest.fixture
def dataset(plan):
    assemble(plan, progress=False)
    write_dataset_card(plan.folder / "dataset", "user/tiny")
    return plan.folder / "dataset"


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_manifest_says(dataset):
    card = (dataset / "README.md").read_text()
    manifest = read_manifest(dataset)
    head = front_matter(card)
    assert manifest["format"] == FORMAT
    assert head["license"] == "cc-by-4.0"
    assert head["language"] == ["en", "fr"]
    paths = {c["config_name"]: c["data_files"] for c in head["configs"]}
    assert paths == {
        name: [{"split": "train", "path": about["path"]}]
        for name, about in manifest["configs"].items()
    }
    (default,) = (c["config_name"] for c in head["configs"] if c.get("default"))
    assert default == "toxicity_free"
    example = json.loads(card.split("```json\n")[1].split("```")[0])
    row = pq.read_table(min(dataset.glob(manifest["configs"][default]["path"]))).to_pylist()[0]
    assert example == json.loads(
        json.dumps({name: value for name, value in row.items() if value is not None}, default=str)
    )
    assert example["toxicity"] == "clean"
    assert "arXiv:2412.07112" in card
    for line in (
        "| French `fr` | 25 | 23 | 1 | 1 | 21 | 1 | 1 |",
        "| **all** | 50 | 48 | 1 | 1 | 44 | 2 | 2 |",
        "| copy | 0 | 1 |",
        "`cc-by-4.0`. Tiny.",
        "About squares.",
        "25 rows with `{}`",
        'load_dataset("user/tiny", "toxicity_free"',
        "Every config is a choice of the same files.",
        "`maya data export FOLDER --format messages --images PICTURES --output OUTPUT`",
    ):
        assert line in card
    assert str(dataset.parent) not in card
    assert str(dataset.parent.parent) not in json.dumps(manifest)
    assert "127.0.0.1" not in json.dumps(manifest)


def test_an_example_does_not_end_its_block(tmp_path):
    write_source(tmp_path / "in", [row | {"text": "```\n# Title"} for row in rows_of(25)])
    plan = make_plan(tmp_path)
    translate(plan)
    assemble(plan, progress=False)
    card = dataset_card(plan.folder / "dataset", "user/tiny")
    example = json.loads(card.split("```json\n")[1].split("\n```")[0])
    assert example["caption"] == "```\n# Title"
    assert "\n# Title" not in card


def test_the_card_shows_how_others_train_on_the_pictures(tmp_path):
    write_source(tmp_path / "in", rows_of(25))
    plan = make_plan(tmp_path, layout=LayoutPlan(images="bytes"))
    translate(plan)
    manifest = assemble(plan, progress=False)
    card = dataset_card(plan.folder / "dataset", "user/tiny")
    rows = manifest["messages"]["rows"]
    assert {
        "config_name": "messages",
        "data_files": [{"split": "train", "path": "messages/*.parquet"}],
    } in (front_matter(card)["configs"])
    counts = ", ".join(f"{lang} {n}" for lang, n in manifest["messages"]["languages"].items())
    for line in (
        f"| `messages` | {rows} | `messages/*.parquet` |",
        f"The config `messages` embeds {rows} pictures, each with one clean text",
        f"({counts})",
        "Every config but `messages` is a choice of the same files.",
        'rows = load_dataset("user/tiny", "messages", split="train")',
        "`maya data export FOLDER --format messages --output OUTPUT` writes all rows",
    ):
        assert line in card
    # A dataset that an older version built, without this config.
    older = read_manifest(plan.folder / "dataset")
    del older["messages"], older["configs"]["messages"]
    (plan.folder / "dataset" / "manifest.json").write_text(json.dumps(older))
    card = dataset_card(plan.folder / "dataset", "user/tiny")
    assert "`maya data export FOLDER --format messages --output OUTPUT` writes the rows" in card
    assert "SFTTrainer" not in card


def test_a_card_of_ones_own_is_kept_and_ours_is_written_anew(dataset):
    card = dataset / "README.md"
    card.write_text(f"{MARKER}\nold")
    write_dataset_card(dataset)
    assert 'load_dataset("path/to/this/folder"' in card.read_text()
    card.write_text("mine")
    write_dataset_card(dataset)
    assert card.read_text() == "mine"
    card.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda d: (d / "data/fr/extra-00000.parquet").write_bytes(
                (d / "data/fr/flagged-00000.parquet").read_bytes()
            ),
            "is not in the manifest",
        ),
        (lambda d: (d / "data/fr/flagged-00000.parquet").unlink(), "flagged-00000.parquet is gone"),
        (
            lambda d: (d / "data/fr/flagged-00000.parquet").write_bytes(
                (d / "data/en/flagged-00000.parquet").read_bytes()
            ),
            "has other bytes",
        ),
        (lambda d: (d / "manifest.json").unlink(), "it is not finished; run `maya data build`"),
        (lambda d: (d / "manifest.json").write_text("{"), ": not JSON: "),
        (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json: expected a mapping"),
    ],
)
def test_what_is_not_as_the_manifest_says_is_refused(dataset, damage, words):
    damage(dataset)
    with pytest.raises(ValueError, match=words) as caught:
        check_files(dataset)
    assert "\n" not in str(caught.value)


def test_configs_are_loaded_and_counted(dataset):
    check_files(dataset)
    card = dataset / "README.md"
    card.write_text(card.read_text().replace("data/fr/clean-*", "data/en/*"))
    with pytest.raises(
        ValueError, match=r"config 'fr_toxicity_free' has .*25.* rows, the manifest"
    ):
        check_configs(dataset)
    assert not list(dataset.parent.glob(".check-*"))


def test_a_folder_of_something_else_has_no_card(tmp_path):
    for path in ("texts/en/train-clean.parquet", "images/style.parquet"):
        (tmp_path / path).parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": ["1"]}), tmp_path / path)
    with pytest.raises(ValueError, match=r"expected the manifest.json of `maya data build`"):
        write_dataset_card(tmp_path, "user/x")
    (tmp_path / "README.md").write_text("mine")
    write_dataset_card(tmp_path, "user/x")
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_a_manifest_are_text(dataset, name):
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest |= {"name": name, "description": name, "licence": name, "licence_note": name}
    manifest["source"] |= {"name": name, "revision": name, "config": name, "split": name}
    for model in manifest["translation"]["models"]:
        model |= {"model": name, "revision": name, "parameters": {name: 3}}
    for judge in manifest["toxicity"]["judges"]:
        judge |= {"name": name, "model": name, "revision": name, "stage": name}
    manifest["toxicity"] |= {"policy": name, "policy_sha": name}
    (dataset / "copy").mkdir(exist_ok=True)
    (dataset / "copy" / "manifest.json").write_text(json.dumps(manifest))
    # The owner's paragraphs keep their Markdown, except HTML and a card's front matter.
    own = {"description": None, "licence_note": None}
    card = dataset_card(dataset / "copy", "user/tiny")
    assert card.count("\n---\n") == 1
    assert "<script" not in card.split("---\n", 2)[2]
    (dataset / "copy" / "manifest.json").write_text(json.dumps(manifest | own))
    check_card(dataset_card(dataset / "copy", "user/tiny"), name)
    shutil.rmtree(dataset / "copy")
