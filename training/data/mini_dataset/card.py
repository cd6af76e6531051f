"""Write the dataset card: its configs, and the values of card.md and attribution.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from ...common.languages import NAMES
from ..dataset.folder import SPLIT_ORDER
from ..dataset.manifest import matching
from ..dataset.messages import trl_snippet
from .concepts import LANGUAGES, Selection, load_sensitive
from .messages import PICTURES
from .render import SIZE
from .sources import SOURCES, SPLITS, needed_sources

CARD = Path(__file__).with_name("card.md")
ATTRIBUTION = CARD.with_name("attribution.md")


def configs(styles: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return {config name: {split: file patterns}} for a dataset with these art styles."""
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


def count_configs(
    files: dict[str, dict[str, Any]], styles: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Return {config name: {split: rows}}, from the manifest's files."""
    return {
        config: {
            split: sum(
                files[name]["rows"] for pattern in patterns for name in matching(files, pattern)
            )
            for split, patterns in splits.items()
        }
        for config, splits in configs(styles).items()
    }


def write_card(manifest: dict[str, Any], selection: Selection, picture: str | None) -> str:
    """Return the text of README.md; every number comes from the manifest.

    Args:
        manifest: the manifest.
        selection: the concepts.
        picture: file name of the picture with samples; None for none.
    """
    styles, concepts, counts = manifest["styles"], manifest["concepts"], manifest["configs"]
    shown = f"\n\n![Concepts in every style, with names in several languages]({picture})"
    in_messages = counts["messages"]
    splits = list(in_messages)
    values = {
        "languages": "\n".join(f"- {language}" for language in LANGUAGES),
        "configs": _config_lines(styles),
        "style_count": len(styles),
        "language_count": len(LANGUAGES),
        "concept_count": f"{concepts['all']:,}",
        "picture_count": f"{sum(style['pictures'] for style in styles.values()):,}",
        "size": SIZE,
        "held_out": concepts["held_out"],
        "samples": "" if picture is None else shown,
        "messages_count": f"{sum(in_messages.values()):,}",
        "messages_by_split": ", ".join(f"{in_messages[s]:,} in {s}" for s in splits),
        "messages_most": PICTURES,
        "messages_by_language": _listed(manifest["messages"], ","),
        "trl_snippet": trl_snippet("path", "messages", splits[0]),
        "styles": _styles(styles),
        "rows_by_language": _rows_by_language(counts),
        "tasks": _tasks(manifest["balance"], splits),
        "categories": _table(
            ["category", "concepts"],
            ((f"`{name}`", n) for name, n in concepts["by_category"].items()),
        ),
        "packages": _table(
            ["package", "version", "licence"],
            (
                (f"npm `{entry['package']}`", entry["version"], entry["licence"])
                for entry in manifest["sources"]
            ),
        ),
        "named_styles": ", ".join(
            f"`{key}`" for key, source in SOURCES.items() if source.named_after
        ),
        "tools": _listed(manifest["tools"]),
        "seed": manifest["seed"],
        "dropped": _table(["emoji dropped", "number"], manifest["dropped_emoji"].items()),
        **_left_out(manifest, selection),
        "removed": _listed(manifest["keywords_removed_as_held_out_names"]),
        "flagged": _flagged(selection),
        "repaired": "; ".join(f"{what}: {n}" for what, n in manifest["repaired_names"].items()),
        "licences": _licences(styles),
    }
    return Template(CARD.read_text(encoding="utf-8")).substitute(values)


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(values: dict[str, Any], form: str = "") -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def _config_lines(styles: Iterable[str]) -> str:
    """Return the configs as YAML."""
    lines = []
    for config, splits in configs(styles).items():
        lines.append(f'- config_name: "{config}"')
        if config == "all":
            lines.append("  default: true")
        lines.append("  data_files:")
        for split, patterns in splits.items():
            lines += [f"  - split: {split}", "    path:"]
            lines += [f'    - "{pattern}"' for pattern in patterns]
    return "\n".join(lines)


def _styles(styles: dict[str, Any]) -> str:
    """Return a table of each style's pictures, and of omitted ones by reason."""
    reasons = {
        "not in the set": "not in this set",
        "held out": "held out",
        "same pixels": "same pixels as another concept",
        "refused": "wrong or doubtful picture",
    }
    rows = []
    for name, style in styles.items():
        left_out = [style["left_out"].get(reason, 0) for reason in reasons.values()]
        rows.append((f"`{name}`", style["split"], style["pictures"], *left_out))
    return _table(["style", "split", "pictures", *reasons], rows)


def _rows_by_language(counts: dict[str, dict[str, int]]) -> str:
    splits = list(counts["all"])
    shown = [(f"`{lang}` {NAMES[lang]}", lang, f"instruct_{lang}") for lang in LANGUAGES]
    shown.append(("all", "all", "instruct"))
    shown.append(("toxicity-free", "toxicity_free", "instruct_toxicity_free"))
    rows = (
        (label, *(counts[config][split] for config in (captions, instruct) for split in splits))
        for label, captions, instruct in shown
    )
    head = ["language", *(f"captions, {s}" for s in splits), *(f"instruct, {s}" for s in splits)]
    return _table(head, rows)


def _tasks(balance: dict[str, Any], splits: list[str]) -> str:
    """Return a table of instructions by task, and of the answers yes and no."""
    tasks = sorted({task for split in splits for task in balance[split]["en"]["tasks"]})
    rows = []
    for split in splits:
        own = balance[split].values()
        numbers = [sum(entry["tasks"].get(task, 0) for entry in own) for task in tasks]
        rows.append((split, *numbers, *(sum(e[word] for e in own) for word in ("yes", "no"))))
    return _table(["split", *tasks, "yes", "no"], rows)


def _left_out(manifest: dict[str, Any], selection: Selection) -> dict[str, str]:
    english = {concept.id: concept.names["en"] for concept in selection.concepts}
    left_out = [
        f"* `{style}`, {reason}: {', '.join(english[key] for key in ids)}"
        for style, reasons in manifest["left_out_concepts"].items()
        for reason, ids in reasons.items()
    ]
    unnamed = [
        f"{english[key]} ({language})"
        for language, ids in manifest["concepts_without_name"].items()
        for key in ids
    ]
    return {"left_out": "\n".join(left_out), "unnamed": ", ".join(unnamed) or "none"}


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
    return _table(["reason", "in toxicity_free", "concepts", "which"], rows)


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
    return _table(["file", "licence", "by"], [*rows, (words, "Unicode-3.0", "Unicode, Inc.")])


def write_attribution(styles: Iterable[str]) -> str:
    """Return the text of ATTRIBUTION.md: authors, licences, and changes."""
    styles = list(styles)
    sources = [SOURCES[key] for key in needed_sources(styles)]
    works = (
        (
            f"[{source.title}]({source.url})",
            source.author,
            f"npm `{source.package}` {source.version}",
            f"[{source.licence}](LICENSES/{source.licence}.txt)",
        )
        for source in sources
    )
    adaptations = [
        f"`images/{style}.parquet` and the pictures in `messages/{SPLITS[style]}-{style}.parquet` "
        f"are adaptations of {SOURCES[style].title} and are offered under "
        f"{SOURCES[style].licence}, as its licence asks."
        for style in styles
        if SOURCES[style].licence.startswith("CC-BY-SA")
    ]
    values = {
        "works": _table(["work", "by", "taken from", "licence"], works),
        "size": SIZE,
        "adaptations": "".join(f"{line}\n" for line in adaptations),
    }
    return Template(ATTRIBUTION.read_text(encoding="utf-8")).substitute(values)
