"""Test the builder of the mini dataset on a few made-up packages, without network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("resvg_py", reason="drawing needs the `data` extra")

from maya_vlm.training.data.mini_dataset import concepts as concepts_module
from maya_vlm.training.data.mini_dataset import sources as sources_module
from maya_vlm.training.data.mini_dataset.build import build_mini
from maya_vlm.training.data.mini_dataset.concepts import CATEGORIES, LANGUAGES, Concept
from maya_vlm.training.data.mini_dataset.draw import load_prompts
from maya_vlm.training.data.mini_dataset.messages import message_rows
from maya_vlm.training.data.mini_dataset.negatives import choose_negatives, confusable
from maya_vlm.training.data.mini_dataset.render import icon_candidates
from maya_vlm.training.data.mini_dataset.sources import SOURCES, SourceError

STYLES = ("noto", "openmoji", "twemoji")
PER_CATEGORY = 6
COLOURS = ("red", "green", "blue", "orange", "purple", "black")


def _emoji() -> list[dict]:
    """Return rows like emojibase's: six per category, and one of each kind that is dropped."""
    rows = []
    for group, place in itertools.product(range(len(CATEGORIES)), range(PER_CATEGORY)):
        code = 0x1F600 + 16 * group + place
        rows.append(
            {
                "label": f"thing {chr(97 + group)} {COLOURS[place]}",
                "hexcode": f"{code:X}",
                "emoji": chr(code),
                "group": group,
                "subgroup": 2 * group + place % 2,
                "order": len(rows) + 1,
            }
        )
    extra = {"group": 1, "subgroup": 2, "order": 900}
    rows += [
        {**extra, "label": "flag", "hexcode": "1F3F3", "emoji": "\U0001f3f3", "group": 9},
        {**extra, "label": "skin", "hexcode": "1F3FB", "emoji": "\U0001f3fb", "group": 8},
        {**extra, "label": "woman x", "hexcode": "1F481", "emoji": "\U0001f481", "gender": 0},
        {**extra, "label": "man y", "hexcode": "1F468-200D-1F33E", "emoji": "\U0001f468"},
        {**extra, "label": "walker facing right", "hexcode": "1F6B6", "emoji": "\U0001f6b6"},
        {**extra, "label": "nameless", "hexcode": "1F999", "emoji": "\U0001f999"},
    ]
    return rows


def _files(key: str) -> dict[str, object]:
    emoji = _emoji()
    if key == "emojibase":
        groups = {str(i): name for i, name in enumerate(CATEGORIES)} | {
            "8": "component",
            "9": "flags",
        }
        subgroups = {str(i): f"subgroup-{i}" for i in range(20)}
        return {
            "en/data.json": emoji,
            "meta/groups.json": {"groups": groups, "subgroups": subgroups},
        }
    if key in ("annotations", "annotations-derived"):
        folder = "annotations" if key == "annotations" else "annotationsDerived"
        files = {}
        for language in LANGUAGES:
            entries = {}
            for row in emoji if key == "annotations" else []:
                if row["label"] == "nameless" or (language, row["hexcode"]) == ("hi", "1F601"):
                    continue
                name = row["label"] if language == "en" else f"{language}-{row['label']}"
                if language == "hi":
                    name += ", another name"
                words = [f"{language} word {i}" for i in range(4)] + [name]
                entries[row["emoji"]] = {"tts": [name], "default": words}
            files[f"{folder}/{language}/annotations.json"] = {folder: {"annotations": entries}}
        return files
    if key == "labels":
        return {
            f"main/{language}/characterLabels.json": {
                "main": {
                    language: {
                        "characterLabels": {v: f"{language} {v}" for v in CATEGORIES.values()}
                    }
                }
            }
            for language in LANGUAGES
        }
    icons, characters = {}, {}
    for place, row in enumerate(emoji):
        name = row["label"].replace(" ", "-")
        size = 10 + 2 * (place // PER_CATEGORY) + STYLES.index(key) if key in STYLES else 9
        colour = COLOURS[place % PER_CATEGORY]
        icons[name] = {
            "body": f'<rect width="{size}" height="{size + place % 3}" fill="{colour}"/>'
        }
        characters[row["hexcode"].lower()] = name
    if key == "openmoji":
        icons["thing-a-blue"] = icons["thing-a-red"]
    return {"icons.json": {"icons": icons, "width": 40, "height": 32}, "chars.json": characters}


def _pack(path: Path, files: dict[str, object]) -> str:
    """Write a tarball and return its integrity digest."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content, ensure_ascii=False).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write made-up tarballs, and patch the builder's tables of sources and names to match."""
    folder = tmp_path_factory.mktemp("packages")
    table = {
        key: dataclasses.replace(source, sha512=_pack(folder / source.filename, _files(key)))
        for key, source in SOURCES.items()
        if key in sources_module.needed_sources(STYLES)
    }
    sensitive = tmp_path_factory.mktemp("lists") / "sensitive.json"
    listed = {
        "violence": {"about": "weapons", "toxic": True, "names": ["thing c red", "thing c blue"]},
        "religion-politics": {"about": "x", "toxic": False, "names": ["thing d red"]},
    }
    sensitive.write_text(json.dumps(listed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "SOURCES", SOURCES | table)
        patch.setattr(concepts_module, "SENSITIVE_FILE", sensitive)
        concepts_module.load_sensitive.cache_clear()
        yield folder
    concepts_module.load_sensitive.cache_clear()


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "mini"
    build_mini(folder, packages, STYLES)
    return folder


@pytest.fixture(scope="module")
def manifest(built: Path) -> dict:
    return json.loads((built / "manifest.json").read_text(encoding="utf-8"))


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _rows(folder: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def test_built_again_the_bytes_are_the_same(
    packages: Path, built: Path, manifest: dict, tmp_path: Path
) -> None:
    output = tmp_path / "mini"
    build_mini(output, packages, STYLES[1:])
    assert _tree(output) != _tree(built)
    assert build_mini(output, packages, STYLES) == manifest  # an earlier build is replaced
    assert _tree(output) == _tree(built)
    assert [path.name for path in tmp_path.iterdir()] == ["mini"], "something is left behind"
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == entry["sha256"]


def test_what_is_dropped_is_counted(manifest: dict) -> None:
    assert list(manifest["dropped_emoji"].values()) == [1] * 6
    assert manifest["concepts"]["all"] == len(CATEGORIES) * PER_CATEGORY
    assert manifest["concepts"]["held_out"] == len(CATEGORIES)  # round(0.1 * 6) per category
    assert manifest["concepts"]["flagged"] == 2
    assert manifest["concepts_without_name"] == {"hi": ["1f601"]}
    counts = [
        entry["pictures"] + sum(entry["left_out"].values()) for entry in manifest["styles"].values()
    ]
    assert counts == [manifest["concepts"]["all"]] * len(STYLES)


def test_pictures_that_are_the_same_are_left_out(manifest: dict) -> None:
    left_out = manifest["left_out_concepts"]
    assert left_out["openmoji"] == {"same pixels as another concept": ["1f600", "1f602"]}
    assert left_out["twemoji"] == {}


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("twemoji", []),  # looked up only by character, and it has none
        ("emojione", ["bear", "brown-bear"]),
        ("fxemoji", ["bear", "brownbear"]),
        (
            "streamline",
            [n + end for end in ("", "-1", "-face", "-face-1") for n in ("bear", "brown-bear")],
        ),
    ],
)
def test_sets_without_a_character_table_are_searched_by_name(style: str, names: list[str]) -> None:
    concept = Concept(
        id="1f43b",
        emoji="🐻",
        category="animals-nature",
        subgroup="animal-mammal",
        names={"en": "Brown bear"},
        keywords={},
        icon_names={"noto": "bear"},
    )
    assert icon_candidates(concept, style) == names


def test_rows(built: Path, manifest: dict) -> None:
    hindi = _rows(built, "texts/hi/*.parquet")
    assert hindi
    assert all("," not in row["text"] for row in hindi)
    train = _rows(built, "*/en/train-*.parquet")
    assert {row["concept"] for row in train}.isdisjoint(manifest["held_out"])
    flagged = _rows(built, "texts/en/*-flagged.parquet")
    assert {row["text"] for row in flagged} == {"thing c red", "thing c blue"}
    clean = _rows(built, "*/en/*-clean.parquet")
    assert not any("violence" in row["sensitive"] for row in clean)
    assert any("religion-politics" in row["sensitive"] for row in clean)
    wording = load_prompts()["en"]
    for row in _rows(built, "instruct/en/*.parquet"):
        assert [turn["role"] for turn in row["messages"]][:2] == ["user", "assistant"]
        assert row["messages"][-1]["content"] == row["answer"]
        if row["task"] == "yesno":
            assert row["answer"] == wording["yes" if row["about"] == row["concept"] else "no"]


def test_messages_are_clean_questions_with_their_pictures(
    built: Path, manifest: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {row["image"]: row["picture"] for row in _rows(built, "images/*.parquet")}
    rows = _rows(built, "messages/*.parquet")
    assert {row["images"][0]["path"] for row in rows}.isdisjoint(
        row["image"] for row in _rows(built, "texts/en/*-flagged.parquet")
    )
    clean = {(r["id"], r["lang"]): r for r in _rows(built, "instruct/*/*-clean.parquet")}
    assert len(rows) == len({r["image"] for r in clean.values()})
    for row in rows:
        question = clean[row["id"], row["lang"]]
        assert row["messages"] == question["messages"]
        assert row["images"] == [pictures[question["image"]]]
        assert row["licence"] == SOURCES[row["style"]].licence
    assert manifest["messages"] == {
        lang: sum(row["lang"] == lang for row in rows) for lang in LANGUAGES
    }
    monkeypatch.setattr("maya_vlm.training.data.mini_dataset.messages.PICTURES", 7)
    fewer = message_rows(built, "noto")
    assert len(fewer) == len({row["lang"] for row in fewer}) == 7


def test_a_wrong_package_is_named_with_both_digests(packages: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packages, tmp_path / "packages"))
    path = folder / SOURCES["noto"].filename
    expected = sources_module.SOURCES["noto"].sha512
    path.write_bytes(path.read_bytes() + b"x")
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    with pytest.raises(SourceError) as caught:
        build_mini(tmp_path / "mini", folder, STYLES)
    message = str(caught.value)
    assert path.name in message
    assert found in message
    assert expected in message
    assert "\n" not in message
    assert not (tmp_path / "mini").exists()


def test_a_missing_package_is_named(packages: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packages, tmp_path / "packages"))
    (folder / SOURCES["labels"].filename).unlink()
    with pytest.raises(SourceError, match=r"cldr-misc-full-48\.2\.0\.tgz"):
        build_mini(tmp_path / "mini", folder, STYLES)


def test_missing_npm_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match=r"^npm: expected npm to fetch .*install Node\.js"
    ) as caught:
        build_mini(tmp_path / "mini", styles=STYLES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mini").exists()


def test_failing_npm_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "npm error code E404\nnpm error gone")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SourceError, match="failed: npm error code E404 npm error gone"):
        build_mini(tmp_path / "mini", styles=STYLES)


def test_a_listed_name_that_is_no_concept_is_an_error(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"drugs": {"about": "", "toxic": True, "names": ["no such"]}}))
    monkeypatch.setattr(concepts_module, "SENSITIVE_FILE", path)
    concepts_module.load_sensitive.cache_clear()
    try:
        with pytest.raises(SourceError, match="'no such'"):
            build_mini(tmp_path / "mini", packages, STYLES)
    finally:
        concepts_module.load_sensitive.cache_clear()


def test_output_with_other_things_is_left_alone(packages: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"no manifest\.json"):
        build_mini(output, packages, STYLES)
    assert (output / "thesis.txt").read_text() == "years of work"


def test_unknown_style_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"style: expected one of .*, found 'cubist'"):
        build_mini(tmp_path / "mini", tmp_path, ["cubist"])
    with pytest.raises(FileNotFoundError, match="expected a folder with the npm tarballs"):
        build_mini(tmp_path / "mini", tmp_path / "nowhere")


def _concept(number: int, name: str, toxic: bool = False, seen: bool = True) -> Concept:
    return Concept(
        id=f"{number:x}",
        emoji="",
        category="objects",
        subgroup=f"s{number % 3}",
        names={"en": name},
        keywords={},
        seen=seen,
        toxic=toxic,
    )


def test_negatives_are_a_permutation_inside_their_kind() -> None:
    concepts = [
        _concept(i, f"name{i:03d}", toxic=i % 5 == 0, seen=i % 7 != 0) for i in range(1, 120)
    ]
    chosen = choose_negatives(concepts, "noto", "en")
    assert set(chosen) == {concept.id for concept in concepts}
    assert sorted(named.id for named in chosen.values()) == sorted(chosen)
    for concept in concepts:
        named = chosen[concept.id]
        assert named.id != concept.id
        assert (named.toxic, named.seen) == (concept.toxic, concept.seen)
    other = choose_negatives(concepts, "twemoji", "en")
    assert any(other[key].id != named.id for key, named in chosen.items())
    assert choose_negatives(concepts[:1], "noto", "en") == {}


def test_names_that_may_both_be_said_are_no_negatives() -> None:
    person, runner = _concept(0, "person"), _concept(3, "person running")
    assert confusable(person, runner, "en")
    others = [_concept(3 * i, f"word{i:02d}") for i in range(2, 6)]
    chosen = choose_negatives([person, runner, *others], "noto", "en")
    assert chosen[person.id].id != runner.id
    assert chosen[runner.id].id != person.id
