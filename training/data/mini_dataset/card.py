"""The dataset card: its configs, and its text made from the manifest's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...common.languages import NAMES
from ..dataset.messages import trl_snippet
from .concepts import LANGUAGES, Selection, load_sensitive
from .messages import PICTURES
from .render import NAMED_AFTER, SIZE, SPLITS
from .sources import SOURCES, needed_sources

SPLIT_ORDER = ("train", "validation", "test")


def configs(styles: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Config name -> split -> file patterns, for a dataset with these art styles."""
    styles = list(styles)
    splits = [split for split in SPLIT_ORDER if split in {SPLITS[style] for style in styles}]

    def of(kind: str, language: str, files: str) -> dict[str, list[str]]:
        return {split: [f"{kind}/{language}/{split}-{files}.parquet"] for split in splits}

    found = {"all": of("texts", "*", "*"), "toxicity_free": of("texts", "*", "clean")}
    for language in LANGUAGES:
        found[language] = of("texts", language, "*")
        found[f"{language}_toxicity_free"] = of("texts", language, "clean")
    found["instruct"] = of("instruct", "*", "*")
    found["instruct_toxicity_free"] = of("instruct", "*", "clean")
    for language in LANGUAGES:
        found[f"instruct_{language}"] = of("instruct", language, "*")
        found[f"instruct_{language}_toxicity_free"] = of("instruct", language, "clean")
    found["images"] = {
        split: [f"images/{style}.parquet" for style in styles if SPLITS[style] == split]
        for split in splits
    }
    found["messages"] = {split: [f"messages/{split}-*.parquet"] for split in splits}
    return found


def _matches(pattern: str, name: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    if len(parts) != len(wanted):
        return False
    for part, want in zip(parts, wanted, strict=True):
        before, star, after = want.partition("*")
        if star and part.startswith(before) and part.endswith(after):
            continue
        if part != want:
            return False
    return True


def count_configs(
    files: dict[str, dict[str, Any]], styles: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Config name -> split -> rows, from the manifest's files."""
    return {
        config: {
            split: sum(
                entry["rows"]
                for name, entry in files.items()
                if any(_matches(pattern, name) for pattern in patterns)
            )
            for split, patterns in splits.items()
        }
        for config, splits in configs(styles).items()
    }


def _yaml(styles: Iterable[str]) -> str:
    lines = ["---", "language:"]
    lines += [f"- {language}" for language in LANGUAGES]
    lines += [
        "license: other",
        "license_name: per-style-see-licenses-folder",
        "license_link: LICENSES",
        "pretty_name: Maya mini",
        "task_categories:",
        "- image-to-text",
        "- visual-question-answering",
        "size_categories:",
        "- 100K<n<1M",
        "annotations_creators:",
        "- expert-generated",
        "multilinguality:",
        "- multilingual",
        "tags:",
        "- emoji",
        "- multilingual",
        "- vision-language",
        "configs:",
    ]
    for config, splits in configs(styles).items():
        lines.append(f'- config_name: "{config}"')
        if config == "all":
            lines.append("  default: true")
        lines.append("  data_files:")
        for split, patterns in splits.items():
            lines += [f"  - split: {split}", "    path:"]
            lines += [f'    - "{pattern}"' for pattern in patterns]
    return "\n".join([*lines, "---"])


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_card(manifest: dict[str, Any], selection: Selection, picture: str | None) -> str:
    """Text of README.md: every number comes from the manifest.

    Args:
        picture: file name of the picture of samples; None where it could not be drawn.
    """
    parts = [
        _yaml(manifest["styles"]),
        _about(manifest, picture),
        _usage(),
        _messages(manifest),
        _counts(manifest),
        _columns(),
        _sources(manifest),
        _left_out(manifest, selection),
        _flagged(selection),
        _defects(manifest),
        _licences(manifest["styles"]),
    ]
    return "\n\n".join(parts) + "\n"


def _about(manifest: dict[str, Any], picture: str | None) -> str:
    concepts = manifest["concepts"]
    pictures = sum(style["pictures"] for style in manifest["styles"].values())
    text = (
        "# Maya mini\n\n"
        f"Emoji art in {len(manifest['styles'])} styles with the names and keywords that Unicode "
        f"CLDR's translators gave each emoji in {len(LANGUAGES)} languages: {concepts['all']:,} "
        f"concepts, {pictures:,} pictures of {SIZE} x {SIZE} pixels. It is real, "
        "human-translated, openly licensed, and small enough to train and measure a "
        "vision-language model on a laptop. No name or keyword in it is machine-translated.\n\n"
        '* **Captions** are names of things ("hatching chick"), not sentences.\n'
        "* **Instructions** are made from the same names: name it, yes/no, category, keywords, "
        "two-turn chats. The questions are fixed wordings, two or three a task.\n"
        "* **Splits are art styles**: the same things, drawn by other people. The test style is "
        "to be looked at last.\n"
        f"* **Held out**: {concepts['held_out']} concepts, a tenth of every category, are in no "
        "training picture, caption, question or keyword. In validation and test they carry "
        "`seen: false`.\n"
        "* **Bengali and Urdu** are here for finetuning; pretraining uses the other eight."
    )
    if picture is not None:
        text += f"\n\n![Concepts in every style, with names in several languages]({picture})"
    return text


def _usage() -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        'captions = load_dataset(path, "all", split="train")  # every language\n'
        'hindi = load_dataset(path, "instruct_hi_toxicity_free", split="validation")\n'
        'images = load_dataset(path, "images", split="train")  # joined by the column `image`\n'
        "```\n\n"
        "| config | rows |\n| --- | --- |\n"
        "| `all` (default), `toxicity_free` | captions of all languages; without the flagged |\n"
        "| `<language>`, `<language>_toxicity_free` | captions of one language |\n"
        "| `instruct`, `instruct_toxicity_free` | instructions of all languages |\n"
        "| `instruct_<language>`, `instruct_<language>_toxicity_free` | instructions of one |\n"
        "| `images` | the pictures, once each |\n"
        "| `messages` | some pictures, embedded, each with one question |\n\n"
        "`maya data mini --output DIR` builds it again from the packages below; the same versions "
        "of Pillow, resvg-py and pyarrow give the same bytes. `manifest.json` has the SHA-256, "
        "rows and bytes of every data file."
    )


def _messages(manifest: dict[str, Any]) -> str:
    counts = manifest["configs"]["messages"]
    splits = list(counts)
    numbers = ", ".join(f"{counts[split]:,} in {split}" for split in splits)
    languages = ", ".join(f"{lang} {n:,}" for lang, n in manifest["messages"].items())
    return (
        "## For other trainers\n\n"
        f"The config `messages` embeds {sum(counts.values()):,} pictures ({numbers}; at most {PICTURES} "
        "of a style), each with one question of `instruct_toxicity_free`. Every picture is there once, in "
        f"one language; the languages are spread evenly ({languages}). Yes and no are not balanced in "
        "it, as it is a sample. The Hub's viewer shows the pictures, and TRL trains on them as they are:"
        f"\n\n{trl_snippet('path', 'messages', splits[0])}\n\n"
        "`maya data export FOLDER --format messages --output OUTPUT` writes every row in this form; "
        "FOLDER is a copy of this dataset."
    )


def _counts(manifest: dict[str, Any]) -> str:
    styles = _table(
        ["style", "split", "pictures", "not in the set", "held out", "same pixels", "refused"],
        (
            (
                f"`{name}`",
                style["split"],
                style["pictures"],
                *(
                    style["left_out"].get(reason, 0)
                    for reason in (
                        "not in this set",
                        "held out",
                        "same pixels as another concept",
                        "wrong or doubtful picture",
                    )
                ),
            )
            for name, style in manifest["styles"].items()
        ),
    )
    counts = manifest["configs"]
    splits = list(counts["all"])
    rows = []
    for language in LANGUAGES:
        numbers = [counts[language][split] for split in splits]
        numbers += [counts[f"instruct_{language}"][split] for split in splits]
        rows.append((f"`{language}` {NAMES[language]}", *numbers))
    for label, name, other in (
        ("all", "all", "instruct"),
        ("toxicity-free", "toxicity_free", "instruct_toxicity_free"),
    ):
        numbers = [counts[name][split] for split in splits]
        rows.append((label, *numbers, *(counts[other][split] for split in splits)))
    head = ["language", *(f"captions, {s}" for s in splits), *(f"instruct, {s}" for s in splits)]
    tasks = sorted({task for s in splits for task in manifest["balance"][s]["en"]["tasks"]})
    balance = []
    for split in splits:
        own = manifest["balance"][split].values()
        balance.append(
            (
                split,
                *(sum(entry["tasks"].get(task, 0) for entry in own) for task in tasks),
                sum(entry["yes"] for entry in own),
                sum(entry["no"] for entry in own),
            )
        )
    categories = _table(
        ["category", "concepts"],
        ((f"`{name}`", n) for name, n in manifest["concepts"]["by_category"].items()),
    )
    return (
        f"## Counts\n\n{styles}\n\n{_table(head, rows)}\n\n"
        "Instructions by task, all languages, and how often yes and no are right in `yesno`:\n\n"
        f"{_table(['split', *tasks, 'yes', 'no'], balance)}\n\n"
        'A `no` question names another concept of the same subgroup where one will do ("cat '
        'face" for another cat face), else of the same category. Within a style and language '
        "every name is asked about once with yes and once with no, so the question alone gives "
        "no hint. A picture has one `keywords` or one `chat` row in training, drawn by the seed.\n\n"
        f"{categories}"
    )


def _columns() -> str:
    return (
        "## Columns\n\n"
        "`texts/<language>/<split>-{clean,flagged}.parquet`: `id`, `image`, `image_sha256`, "
        "`lang` (BCP-47), `prompt`, `text` (the name), `keywords`, `category`, `category_name` "
        "(in the language), `concept` (code points), `style`, `seen`, `sensitive` (reasons), "
        "`source`.\n\n"
        "`instruct/...`: `id` (`<style>/<concept>#<task>`), `image`, `lang`, `task`, "
        "`messages` (role and content; the picture belongs in front of the first "
        "question), `answer` (the last one), `concept`, `style`, `seen`, `sensitive`, `about` "
        "(the concept a yes/no question names).\n\n"
        "`images/<style>.parquet`: `image`, `image_sha256`, `picture` (PNG), `style`, `concept`. "
        "`image_sha256` is the SHA-256 of the PNG's bytes; the far larger instruction table leaves "
        "it out and is joined by `image`.\n\n"
        "`messages/<split>-<style>.parquet`: `id` and `messages` (as in `instruct/`), `lang`, `images` "
        "(a list of one picture), `concept`, `style`, `licence` (the picture's), `seen`."
    )


def _sources(manifest: dict[str, Any]) -> str:
    tools = ", ".join(f"{name} {number}" for name, number in manifest["tools"].items())
    rows = (
        (f"npm `{entry['package']}`", entry["version"], entry["licence"])
        for entry in manifest["sources"]
    )
    return (
        f"## Sources\n\n{_table(['package', 'version', 'licence'], rows)}\n\n"
        "The builder checks each tarball against its pinned SHA-512. Names and keywords are "
        "Unicode CLDR's, category names are CLDR's character labels, groups and subgroups are "
        "emojibase's. An icon is found by its character; "
        f"{', '.join(f'`{style}`' for style in NAMED_AFTER)} have no character table and are found by "
        "name: every picture of theirs was looked at beside "
        f"Noto's. Built with {tools}, seed {manifest['seed']}."
    )


def _left_out(manifest: dict[str, Any], selection: Selection) -> str:
    rows = [(reason, count) for reason, count in manifest["dropped_emoji"].items()]
    english = {concept.id: concept.names["en"] for concept in selection.concepts}
    lines = []
    for style, reasons in manifest["left_out_concepts"].items():
        for reason, ids in reasons.items():
            names = ", ".join(english[key] for key in ids)
            lines.append(f"* `{style}`, {reason}: {names}")
    unnamed = [
        f"{english[key]} ({language})"
        for language, ids in manifest["concepts_without_name"].items()
        for key in ids
    ]
    removed = manifest["keywords_removed_as_held_out_names"]
    return (
        "## What was left out\n\n"
        f"{_table(['emoji dropped', 'number'], rows)}\n\n"
        "Pictures left out of one style (held-out concepts are left out of every training "
        "style; counts above):\n\n" + "\n".join(lines) + "\n\n"
        "Two concepts with the same pixels in a style cannot be told apart there, so neither is "
        f"used. Concepts without a name in a language: {', '.join(unnamed) or 'none'}. "
        "Keywords of seen concepts that are the name of a held-out one were taken out: "
        + ", ".join(f"{language} {count}" for language, count in removed.items())
        + "."
    )


def _flagged(selection: Selection) -> str:
    named = {concept.names["en"] for concept in selection.concepts}
    rows = (
        (
            entry["about"],
            "recorded, stays in" if not entry["toxic"] else "left out",
            len(entry["names"]),
            ", ".join(name for name in entry["names"] if name in named),
        )
        for entry in load_sensitive().values()
    )
    return (
        "## Flagged concepts\n\n"
        "A list in the builder gives the reasons; the `toxicity_free` configs leave out every concept "
        "with a reason other than religion and politics, whole: its captions, its questions and "
        "any question that names it.\n\n"
        f"{_table(['reason', 'in toxicity_free', 'concepts', 'which'], rows)}\n\n"
        "The list judges concepts, not words: a keyword of a clean concept may still be slang."
    )


def _defects(manifest: dict[str, Any]) -> str:
    repaired = "; ".join(f"{what}: {n}" for what, n in manifest["repaired_names"].items())
    return (
        "## Known defects\n\n"
        "* CLDR's Hindi names often list alternatives after a comma, and some keywords are lists. "
        f"Repaired: {repaired}.\n"
        '* Some names have a colon form ("person: red hair", "keycap: 3"), in every '
        "language.\n"
        '* Chinese and Japanese names can be metaphors (the face with a medical mask is "a '
        'cold" in Chinese) and are terse; French and Urdu ones describe. They are names, not '
        "translations of one another.\n"
        "* Some names hold Latin letters (the OK and NG buttons); a few French and Spanish names "
        "equal the English.\n"
        "* Keywords hold slang in several languages and vary in number. The `keywords` answers "
        "take the three that most concepts share.\n"
        "* CLDR's category names differ in number and case between languages (\"animal or "
        'nature", "animales y naturaleza"); they are lower-cased here. Urdu\'s for smileys '
        'reads "smiling".\n'
        '* Chinese yes and no are 是 and 否; CLDR\'s strings for them mean "confirm" and '
        '"deny".\n'
        "* The questions put a name in as it stands, so some are stiff; their wordings were not "
        "reviewed by native speakers of all ten languages.\n"
        "* Near-identical things (clock faces, arrows, hands) differ by a few pixels at this size."
    )


def _licences(styles: Iterable[str]) -> str:
    rows = [
        (
            f"pictures in `images/{style}.parquet`, `messages/{SPLITS[style]}-{style}.parquet`",
            SOURCES[style].licence,
            SOURCES[style].author,
        )
        for style in styles
    ]
    words = "names and keywords in `texts/`, `instruct/`, `messages/`"
    rows.append((words, "Unicode-3.0", "Unicode, Inc."))
    return (
        "## Licences\n\n"
        f"{_table(['file', 'licence', 'by'], rows)}\n\n"
        "Full texts are in [LICENSES](LICENSES), credits and changes in "
        "[ATTRIBUTION.md](ATTRIBUTION.md). The emoji are the property of their authors; this is "
        "no endorsement by any of them."
    )


def write_attribution(styles: Iterable[str]) -> str:
    """Text of ATTRIBUTION.md: whose work this is, under which licence, and what was changed."""
    styles = list(styles)
    rows = []
    for key in needed_sources(styles):
        source = SOURCES[key]
        rows.append(
            (
                f"[{source.title}]({source.url})",
                source.author,
                f"npm `{source.package}` {source.version}",
                f"[{source.licence}](LICENSES/{source.licence}.txt)",
            )
        )
    return (
        "# Attribution\n\n"
        + _table(["work", "by", "taken from", "licence"], rows)
        + "\n\n"
        + f"Changes: every picture was rasterised from vector art at {SIZE} x {SIZE} pixels on "
        "white, padded to a square where it was not one, and reduced to a palette of 64 colours. "
        "Names and keywords are CLDR's; the repairs are listed in README.md.\n\n"
        "The pictures of each style are in files of their own, `images/<style>.parquet` and "
        "`messages/<split>-<style>.parquet`, and keep the licence of their style.\n"
        + "".join(
            f"`images/{style}.parquet` and the pictures in `messages/{SPLITS[style]}-{style}.parquet` "
            f"are adaptations of {SOURCES[style].title} and are offered under "
            f"{SOURCES[style].licence}, as its licence asks.\n"
            for style in styles
            if SOURCES[style].licence.startswith("CC-BY-SA")
        )
    )
