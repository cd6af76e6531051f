"""Make the card of a model from its config, the resolved `recipe.yaml` and `results.json`.

No number in a card is written by hand.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maya_vlm.training.common.adapters import find_adapter
from maya_vlm.training.common.files import files_sha256, write_text
from maya_vlm.training.common.languages import NAMES, is_language
from maya_vlm.training.common.markdown import Markdown, code, escaped, literal, prose
from maya_vlm.training.common.models import ADAPTER_CONFIG, Model, find_model, read_config
from maya_vlm.training.common.reading import read_json_mapping, read_text, read_yaml
from maya_vlm.training.common.shapes import check_shape
from maya_vlm.training.common.telling import printable
from maya_vlm.training.evaluation.protocol import in_order
from maya_vlm.training.evaluation.results import Results, read_results
from maya_vlm.training.inference.mix import RECORD as MERGE_RECORD
from modeling_maya.llava_cohere.headers import PROJECTOR, is_projector
from modeling_maya.llava_cohere.join import BASES

from .scores import languages_of, model_index, sections, weaknesses

TEMPLATES = Path(__file__).parent / "templates"
MARKER = Markdown(
    "<!-- Written by maya publish from the files beside it; edits are lost unless this line goes. -->"
)
# Title of the empty card template that peft saves with an adapter.
PEFT_TITLE = "# Model Card for Model ID\n"
MINI_DATA = Path(__file__).resolve().parents[2] / "training" / "data" / "mini"
# Folders of the bases that ship with the package.
SHIPPED_BASES = (("bases", "mini"), ("bases", "apart"))
# The oldest transformers release that the code on the Hub supports.
OLDEST_TRANSFORMERS = "5.6"
# Vocabulary size of the tokenizer of all CohereLabs' open-weights models.
COHERE_VOCABULARY = 256_000
# `projector_kind` -> words for it; {} is the number of layers.
PROJECTORS = {
    "mlp": "a {}-layer projector",
    "pixel_shuffle": "a {}-layer projector over squares of patches (pixel shuffle)",
    "q_former": "a {}-layer Q-Former",
    "gated_cross_attention": "gated cross-attention",
}

# Expected shapes of the values that cards read. `maya train`, `maya evaluate` and `maya convert` write more.
_RECIPE = {
    "stages": [
        {
            "name": str,
            "data": [{"path": str}],
            "train": [{"pattern": str, "rate": (float, str)}],
        }
    ],
    "model": dict,
}
_BASE = {"name": str, "commit": str}
_ORIGIN = {"name": str, "commit": (str, None), "kind": str}
_ORIGIN_PARTS = {
    "base_model": {"name": str},
    "vision_tower": {"name": str},
    "files": [{"name": str, "bytes": int, "sha256": str}],
}


def model_card(
    folder: Path,
    repo_id: str,
    progress: str | None = None,
    licence: str | None = None,
    base_licences: Mapping[str, str] | None = None,
    whole: Path | None = None,
) -> str:
    """Return the card of a saved model for the repository `repo_id`.

    Args:
        folder: the folder of a model, of an adapter, or of a projector with the bases in its config.
        repo_id: `user/name`.
        progress: progress of the training, such as "step 250 of 500 of stage finetune (2 of 2)"; None at
            its end.
        licence: the Hub's id of the licence that the publisher states, such as apache-2.0.
        base_licences: base model -> the licence in the base model's card.
        whole: for a projector, the folder of the whole model, whose results are those of the joined model.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: the results have another format or belong to other weights, or a base model does not
            allow the stated licence.
    """
    adapter = _adapter_base(folder)
    config = read_config(adapter) if adapter else read_json(folder / "config.json")
    recipe = _read_recipe(folder)
    if progress is None:
        recipe = _until_this_stage(folder, recipe)
    joined = _joined_with(folder)
    if joined and not _is_mini(recipe):
        # The recipe may name copies in folders.
        named = dict(
            zip(("language_model", "vision_tower"), (b["name"] for b in joined), strict=True)
        )
        recipe = {**recipe, "model": {**(recipe.get("model") or {}), **named}}
    results = _read_results(whole or folder)
    languages = _languages(recipe, results) or _logged_languages(folder)
    terms, metadata = _licence(config, recipe, licence, base_licences or {})
    small = _is_mini(recipe)
    metadata = {
        "language": languages,
        **metadata,
        # transformers cannot load a projector.
        "library_name": "maya-vlm" if joined else "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["maya", "llava", "multilingual", "projector" if joined else "custom_code"],
    }
    conversion = _conversion(folder)
    origins = [conversion["converted_from"]["name"]] if conversion else _bases(recipe)
    origins = [adapter.name] if adapter else origins
    merged = _merged(folder)
    origins = [merged["model"], merged["base"]] if merged else origins
    origins = [base["name"] for base in joined] or origins
    hub_bases = [base.partition("@")[0] for base in origins if _is_repository(base)]
    if hub_bases:
        metadata["base_model"] = hub_bases
        metadata["base_model_relation"] = (
            "merge" if merged else "adapter" if adapter or joined else "finetune"
        )
    sources = [source for source in _sources(recipe) if _is_repository(source)]
    if sources:
        metadata["datasets"] = sources
    if results is not None:
        metadata["metrics"] = list(
            dict.fromkeys(task["metric"] for task in results["tasks"].values())
        )
        metadata["model-index"] = model_index(results, repo_id.rsplit("/", 1)[-1])
    values = {
        "marker": MARKER,
        "title": repo_id.rsplit("/", 1)[-1],
        "repo_id": repo_id,
        "language_count": len(languages) or "an unknown number of",
        "language_names": ", ".join(NAMES.get(code, code) for code in languages) or "none recorded",
        "vision_model": config.get("vision_config", {}).get("model_type", "?"),
        "text_model": config.get("text_config", {}).get("model_type", "?"),
        "projector": PROJECTORS.get(str(config.get("projector_kind", "mlp")), "a projector").format(
            config.get("projector_num_layers", "?")
        ),
        "parameters": results["model"]["parameters"]
        if results and not joined
        else _count_parameters(folder),
        "image_tokens": config.get("image_seq_length", "?"),
        "small": small,
        "results": results,
        "has_sheet": (folder / "sheet.png").is_file(),
        "stages": _stages(recipe),
        "bases": Markdown(" and ".join(code(_short(base)) for base in _bases(recipe)))
        or "a checkpoint",
        "joined": joined,
        "licence": terms,
        "time": _time(folder, recipe),
        "oldest_transformers": OLDEST_TRANSFORMERS,
        "conversion": conversion,
        "progress": progress,
        "adapter": adapter.name if adapter else None,
        "merged": merged,
    }
    if results is not None:
        values |= {"sections": sections(results), "weaknesses": weaknesses(results)}
    return render("model.md.jinja", metadata, values)


def base_models(folder: Path) -> list[str]:
    """Return the Hub repositories of a model's base models, as its config, recipe, adapter or merge names them."""
    adapter, merged = _adapter_base(folder), _merged(folder)
    named = [adapter.name] if adapter else [merged["model"], merged["base"]] if merged else []
    named += [base["name"] for base in _joined_with(folder)] or _bases(_read_recipe(folder))
    return list(dict.fromkeys(base.partition("@")[0] for base in named if _is_repository(base)))


def licence_texts(folder: Path) -> str | None:
    """Return the credits and licence texts for a model made from the mini bases; None for other models."""
    recipe = _read_recipe(folder)
    if not _is_mini(recipe):
        return None
    works = _mini_works(recipe)
    rows = [("work", "by", "licence"), ("---", "---", "---")]
    rows += [(f"[{work.title}]({work.url})", work.author, work.licence) for work in works]
    table = [f"| {' | '.join(row)} |" for row in rows]
    parts = [
        "# Credits and licences of the art and the texts this model was trained on\n",
        "\n".join(table) + "\n",
        "The pictures were drawn small and on white for training; the model holds none of them.\n",
    ]
    for name in sorted({work.licence for work in works}):
        text = (MINI_DATA / "LICENSES" / f"{name}.txt").read_text(encoding="utf-8").strip()
        parts.append(f"## {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def render(template: str, metadata: dict[str, Any], values: dict[str, Any]) -> str:
    """Return a card: YAML front matter, then a filled template of `templates/`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Escape every text, because it may come from anybody. The type Markdown marks the exceptions.
        finalize=_text,
    )
    filters = {"code": code, "literal": literal, "prose": prose}
    for name, write in filters.items():
        environment.filters[name] = lambda value, write=write: write(str(value))
    # Parsers of cards look for lines of hyphens before they parse the YAML.
    plain = _in_lines(metadata)
    head = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{head}---\n\n{environment.get_template(template).render(values)}"


def _text(value: Any) -> Any:
    """Return a value escaped for a template, with at most one space kept at either end."""
    if not isinstance(value, str) or not value.strip():
        return value
    before, after = (" " if edge == " " else "" for edge in (value[0], value[-1]))
    return f"{before}{escaped(value)}{after}" if not isinstance(value, Markdown) else value


def _in_lines(value: Any) -> Any:
    """Return metadata with every text as one printable line."""
    if isinstance(value, dict):
        return {_in_lines(name): _in_lines(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_in_lines(each) for each in value]
    return printable(" ".join(value.split())) if isinstance(value, str) else value


def write_card(folder: Path, made: Callable[[], str]) -> bool:
    """Write README.md with the text from `made`. Keep a README.md that the owner wrote, and return False."""
    card = folder / "README.md"
    if card.is_file():
        text = read_text(card)
        if MARKER not in text and PEFT_TITLE not in text:
            return False
    write_text(card, made())
    return True


def _adapter_base(folder: Path) -> Model | None:
    """Return the base of the adapter that a folder holds, or None for a folder of a model."""
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    return find_adapter(find_model(str(folder))).base


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a model folder: it has no {path.name}")
    return read_json_mapping(path)


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    if not isinstance(content, dict):
        return {}
    for name in ("stages", "model"):
        if content.get(name) is not None:
            check_shape(content[name], _RECIPE[name], str(path), name)
    return content


def _until_this_stage(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without the stages that came after the folder's, by the folder's log."""
    path = folder / "training_log.json"
    stage = read_json(path).get("stage") if path.is_file() else None
    names = [each["name"] for each in recipe.get("stages") or []]
    if stage not in names:
        return recipe
    return {**recipe, "stages": recipe["stages"][: names.index(stage) + 1]}


def _conversion(folder: Path) -> dict[str, Any] | None:
    """Return the record of `maya convert` about the origin of the weights, or None for trained weights."""
    path = folder / "conversion.json"
    if not path.is_file():
        return None
    record = read_json(path)
    check_shape(record, {"converted_from": _ORIGIN}, str(path))
    origin = record["converted_from"]
    also = {name: shape for name, shape in _ORIGIN_PARTS.items() if origin.get(name)}
    check_shape(origin, also, str(path), "converted_from")
    return record


def _merged(folder: Path) -> dict[str, Any] | None:
    """Return the record of `maya merge --alpha`, or None for a folder that it did not write."""
    path = folder / MERGE_RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    check_shape(record, {"model": str, "base": str, "alpha": float}, str(path))
    return record


def _joined_with(folder: Path) -> list[dict[str, Any]]:
    """Return name and commit of the decoder and the tower of a projector; [] for a whole model."""
    if not is_projector(folder):
        return []
    path = folder / "config.json"
    bases = read_json(path).get(BASES) or {}
    check_shape(bases, {"language_model": _BASE, "vision_tower": _BASE}, str(path), BASES)
    return [bases["language_model"], bases["vision_tower"]]


def _read_results(folder: Path) -> Results | None:
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = read_results(path)
    found = files_sha256(folder.glob("*.safetensors"))
    if found is None or results["model"]["weights_sha256"] != found:
        raise ValueError(
            f"{path}: expected results of the weights in {folder}, found results of other weights: "
            "run `maya evaluate` again"
        )
    return results


def _count_parameters(folder: Path) -> int:
    from math import prod

    from safetensors import safe_open

    total = 0
    names = PROJECTOR if is_projector(folder) else "*model*.safetensors"
    for file in sorted(folder.glob(names)):
        with safe_open(file, "pt") as tensors:
            total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _bases(recipe: dict[str, Any]) -> list[str]:
    model = recipe.get("model") or {}
    named = (model.get(key) for key in ("language_model", "vision_tower", "checkpoint"))
    return [str(base) for base in named if base]


def _sources(recipe: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(source["path"] for source in _all_data(recipe)))


def _is_repository(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _is_mini(recipe: dict[str, Any]) -> bool:
    """Return whether the base models and all data are the ones shipped with the package."""
    bases, sources = _bases(recipe), _sources(recipe)
    return (
        len(bases) == 2
        and all(Path(base).parts[-3:-1] in SHIPPED_BASES for base in bases)
        and bool(sources)
        and all(Path(source).parts[-2:] == ("data", "mini") for source in sources)
    )


def _mini_works(recipe: dict[str, Any]) -> list[Any]:
    """Return the art and text works that a model made from the mini bases was trained on.

    These are the texts, and every art style of the splits in its recipe. The train split is always
    included, because the base models were trained on it.
    """
    from maya_vlm.training.data.mini_dataset.sources import SOURCES

    styles = read_json(MINI_DATA / "manifest.json")["styles"]
    splits = {source.get("split") or "train" for source in _all_data(recipe)} | {"train"}
    kept = [
        work for key, work in SOURCES.items() if key not in styles or styles[key]["split"] in splits
    ]
    return list({work.title: work for work in kept}.values())


def _all_data(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    return [source for stage in recipe.get("stages") or [] for source in stage["data"]]


def _source_languages(source: dict[str, Any]) -> list[str]:
    """Return the languages that a recipe names for a source: `languages` to keep, or the one `language`."""
    named = source.get("languages") or [source.get("language") or "und"]
    return [lang for lang in named if lang != "und"]


def _short(name: str) -> str:
    """Return a base model's name for the card, without local paths."""
    return name if _is_repository(name) else "/".join(Path(name).parts[-3:][-2:])


def _languages(recipe: dict[str, Any], results: Results | None) -> list[str]:
    found: Iterable[str] = (
        lang for source in _all_data(recipe) for lang in _source_languages(source)
    )
    languages = dict.fromkeys(found)
    if not languages and results is not None:
        languages = dict.fromkeys(languages_of(results))
    return in_order(languages)


def _logged_languages(folder: Path) -> list[str]:
    """Return the languages in the last stage's training log, for recipes that keep all languages."""
    path = folder / "training_log.json"
    if not path.is_file():
        return []
    log = read_json(path)
    check_shape(log, {"log": [dict]}, str(path))
    names = (key.partition("/") for entry in log["log"] for key in entry)
    found = (language for language, slash, kind in names if slash and kind == "loss")
    return in_order(dict.fromkeys(each for each in found if is_language(each) and each != "und"))


def _time(folder: Path, recipe: dict[str, Any]) -> str:
    """Return a sentence on the time and hardware of all stages, from their logs; "" if a log is missing."""
    logs = [folder / stage["name"] / "training_log.json" for stage in recipe.get("stages") or []]
    if not logs or not all(path.is_file() for path in logs):
        return ""
    found = [read_json(path) for path in logs]
    for log, path in zip(found, logs, strict=True):
        check_shape(log, {"seconds": float, "processes": int, "device": str}, str(path))
    hours = sum(log["seconds"] for log in found) / 3600
    work = sum(log["seconds"] * log["processes"] for log in found) / 3600
    device = "GPU" if any(log["device"].startswith("cuda") for log in found) else "CPU process"
    shown = f"{60 * hours:.2g} minutes" if hours < 1 else f"{hours:.3g} hours"
    return f"Training took {shown}, {work:.2g} {device}-hours."


def _stated(
    licence: str | None, bases: Sequence[str], base_licences: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """Return text and metadata about the licence of a model with base models unknown to this package.

    Raises:
        ValueError: a base model does not allow the stated licence.
    """
    named = ", ".join(code(_short(base)) for base in bases) or "unknown bases"
    known = {base: base_licences[base] for base in bases if base in base_licences}
    for base, own in known.items():
        if licence is not None and "-nc" in own and "-nc" not in licence:
            raise ValueError(
                f"licence: expected {own} or another non-commercial licence, because the base {base} has {own}, "
                f"found {licence}: weights derived from it are non-commercial too"
            )
    told = "; ".join(f"{code(base)} is {escaped(own)}" for base, own in known.items())
    terms = licence or (next(iter(known.values())) if len(set(known.values())) == 1 else None)
    derived = f"The weights derive from {named} and from the data above: their licences hold."
    said = f" By their cards, {told}." if told else ""
    if terms is None:
        return Markdown(f"Not known. {derived}{said}"), {"license": "unknown"}
    who = "Stated by its publisher" if licence else "That of its bases"
    return Markdown(f"{escaped(terms)}. {who}. {derived}{said}"), {"license": terms}


def _licence(
    config: dict[str, Any],
    recipe: dict[str, Any],
    stated: str | None,
    base_licences: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:
    """Return the card's text about the licence, and its metadata.

    Raises:
        ValueError: a base model does not allow the stated licence.
    """
    text = config.get("text_config") or {}
    cohere = (
        str(text.get("model_type", "")).startswith("cohere")
        and text.get("vocab_size") == COHERE_VOCABULARY
    ) or any(base.lower().startswith(("coherelabs/", "cohereforai/")) for base in _bases(recipe))
    if cohere:
        if stated not in (None, "cc-by-nc-4.0"):
            raise ValueError(
                f"licence: expected cc-by-nc-4.0, found {stated}: the decoder derives from CohereLabs' weights, which "
                "are CC-BY-NC-4.0, and so does every model, adapter or projector trained with it"
            )
        return (
            Markdown(
                "The decoder is CohereLabs' Aya-23, whose weights are CC-BY-NC-4.0: non-commercial use "
                "only, under [Cohere's acceptable-use policy]"
                "(https://docs.cohere.com/docs/c4ai-acceptable-use-policy). That holds for weights "
                "derived from them, adapters and projectors included. Training data keep their own "
                "terms."
            ),
            {
                "license": "cc-by-nc-4.0",
                "extra_gated_prompt": "By submitting this form, you agree to the CC-BY-NC-4.0 licence "
                "and to Cohere's acceptable-use policy.",
                "extra_gated_fields": {
                    "Name": "text",
                    "Affiliation": "text",
                    "Country": "country",
                    "I agree to use this model for non-commercial use ONLY": "checkbox",
                },
            },
        )
    if _is_mini(recipe):
        if stated not in (None, "other"):
            raise ValueError(
                f"licence: expected other, found {stated}: the mini bases and data carry the licences of their art, "
                "which LICENSES.md lists"
            )
        works = _mini_works(recipe)
        alike = [work for work in works if "-SA-" in work.licence]
        return (
            Markdown(
                "The weights were made from nothing but openly licensed art and texts: "
                + "; ".join(f"{work.title} ({work.licence})" for work in works)
                + ". "
                + "".join(
                    f"{work.title} is share-alike: what is an adaptation of it is to be shared under "
                    f"{work.licence} too. "
                    for work in alike
                )
                + "Credits and the licences' texts are in [LICENSES.md](LICENSES.md). The code is "
                "Apache-2.0."
            ),
            {
                "license": "other",
                "license_name": "-and-".join(sorted({work.licence.lower() for work in works})),
                "license_link": "LICENSES.md",
            },
        )
    return _stated(stated, list(dict.fromkeys([*_bases(recipe), *base_licences])), base_licences)


def _stages(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    from maya_vlm.training.recipe import EPOCHS

    stages = []
    for stage in recipe.get("stages") or []:
        arguments = stage.get("args") or {}
        steps = arguments.get("max_steps") or -1
        if steps < 0:
            epochs = arguments.get("num_train_epochs", EPOCHS)
            steps = f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
        languages = dict.fromkeys(
            lang for source in stage["data"] for lang in _source_languages(source)
        )
        trained = [f"{code(rule['pattern'])} {rule['rate']}" for rule in stage["train"]]
        if stage.get("adapter"):
            trained.append(escaped(_adapter(stage["adapter"])))
        stages.append(
            {
                "name": stage["name"],
                "steps": steps,
                "batch": stage.get("batch_size", "?"),
                "languages": " ".join(languages) or "all",
                "data": Markdown(
                    ", ".join(
                        dict.fromkeys(
                            f"{escaped(_short(source['path']))} "
                            f"{code(str(source.get('config') or 'default'))}"
                            for source in stage["data"]
                        )
                    )
                ),
                "trained": Markdown(", ".join(trained)),
            }
        )
    return stages


def _adapter(adapter: dict[str, Any]) -> str:
    """Return a short description of a stage's low-rank adapter."""
    parts = [f"r {adapter.get('r', '?')}", f"alpha {adapter.get('alpha', '?')}"]
    if adapter.get("lora_plus_ratio", 1) != 1:
        parts.append(f"B learns {adapter['lora_plus_ratio']:g} times as fast")
    if adapter.get("quantize"):
        parts.append(f"weights in {adapter['quantize']}")
    kind = {"lora": "LoRA", "dora": "DoRA"}.get(adapter.get("type", "lora"), "an adapter")
    return f"{kind} on the decoder ({', '.join(parts)}) {adapter.get('rate', '?')}"
