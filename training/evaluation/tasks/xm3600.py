"""XM3600: one sentence about a picture, compared with human captions in 36 languages.

Source: Crossmodal-3600 (2205.12522), as Centurio (2501.05122) asks; XM100 as Pangea (2410.16153) asks. Captions
and references are tokenized by this package's tokenizers, whose ids are stored with the score. CIDEr weighs words
by the scored images, so a score is tied to their number and to the hash of their names. A run on fewer images,
such as a baseline with a smaller `n`, cannot be compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...inference.generation import Answer
from ..protocol import (
    Loaded,
    Picture,
    Place,
    Request,
    Score,
    Scored,
    Selection,
    Task,
    chosen_languages,
    in_order,
    mean_rows,
)
from ..public import UNSEEN, RowPictures, Split, export_json, loaded_in
from ..results import Row
from ..scoring.captions import METRIC, CaptionScore, caption_score, images_hash
from ..scoring.tokens import default_tokenizer, tokenizer_id

# A mirror of the official captions.jsonl and images.
REPOSITORY, REVISION = "floschne/xm3600", "8d3e5665526c55a5855cd6ddfbaba2032bc7cee4"
COLUMNS = ("image_id", "captions", "image")
XM100, XM100_COLUMNS = "neulab/PangeaBench-xm100", ("image_id", "caption", "image")
# The splits, and the names of the languages in the prompt.
LANGUAGES = {
    "ar": "Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fil": "Filipino",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "mi": "Maori",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "quz": "Quechua",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
CENTURIO = "Briefly describe the image in {Language} in one sentence."
PANGEA = "Provide a one-sentence caption for the provided image in {Language}."
CENTURIO_IMAGES = 512
MAX_NEW_TOKENS = 512


class Xm3600(Task):
    """Captions of 3,600 pictures from all over the world."""

    languages = tuple(LANGUAGES)
    name = "xm3600"
    title = "XM3600"
    contamination = UNSEEN
    protocols = {
        # The default is the protocol of the table that lists Maya.
        "centurio": "Centurio (2501.05122): CIDEr on 512 images, here the first by name",
        "full": "Crossmodal-3600 (2205.12522): CIDEr on all images, asked as centurio",
        "pangea": "Pangea (2410.16153): ROUGE-L on XM100, one reference an image",
    }
    metrics = {
        "cider": {"title": "CIDEr", "higher_is_better": True, "percent": True},
        "rouge_l": {"title": "ROUGE-L", "higher_is_better": True, "percent": True},
        "bleu_4": {"title": "BLEU-4", "higher_is_better": True, "percent": True},
        "chrf": {"title": "chrF", "higher_is_better": True, "percent": True},
    }
    metric = "cider"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.prompt = CENTURIO
        if self.protocol == "pangea":
            self.prompt, self.metric = PANGEA, "rouge_l"
        self.images: dict[str, dict[str, Any]] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "max_new_tokens": MAX_NEW_TOKENS,
            "metric": METRIC,
            "images": self.images,
        }

    def load(self, selection: Selection) -> Loaded:
        pangea = self.protocol == "pangea"
        repository, revision = (XM100, None) if pangea else (REPOSITORY, REVISION)
        columns = XM100_COLUMNS if pangea else COLUMNS
        known = in_order(LANGUAGES)
        if selection.split is not None:
            known = chosen_languages([selection.split], known, repository)
        splits: dict[str, Split] = {}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        for language in chosen_languages(selection.languages, known, repository):
            # Report a missing package before the first question is asked.
            caption_score({"a": "a", "b": "b"}, {"a": ["a"], "b": ["b"]}, language)
            split = Split(selection, repository, revision, "default", language, columns, "image")
            splits[language] = split
            found: dict[str, Request] = {}
            for number, row in split.rows():
                image = str(row["image_id"])
                references = [row["caption"]] if pangea else row["captions"] or []
                if image in found or not references or not all(references):
                    raise ValueError(
                        f"{split.place}: row {number}: expected a unique image and captions, found "
                        f"{image!r} and {references!r}"
                    )
                places.setdefault(image, (split, number))
                found[image] = Request(
                    id=f"{language}/{image}",
                    language=language,
                    content=(
                        Picture(image),
                        self.prompt.format(Language=LANGUAGES[language]),
                    ),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=image,
                    answer_language=language,
                    expected=tuple(references),
                )
            most = CENTURIO_IMAGES if self.protocol == "centurio" else None
            requests += [found[image] for image in sorted(found)[:most]]
        loaded = loaded_in(selection, splits, requests, RowPictures(places), ", ".join(splits))
        for language in loaded.languages:
            images = [r.item for r in loaded.requests if r.language == language]
            self.images[language] = {
                "n": len(images),
                "images_sha256": images_hash(images),
                "tokenizer": tokenizer_id(default_tokenizer(language)),
            }
        return loaded

    def score(self, request: Request, answer: Answer) -> Score:
        """Return a score without values: `aggregate` computes the metrics over all captions of a language."""
        said = answer.text.strip()
        return Score({}, said or None, not said)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write COCO's two files for each language: captions, and their `references`."""
        written = []
        for language in in_order({one.request.language for one in scored}):
            own = [one for one in scored if one.request.language == language]
            images = [one.request.item for one in own]
            references = [(one.request.item, text) for one in own for text in one.request.expected]
            captions = [{"image_id": one.request.item, "caption": one.answer.text} for one in own]
            annotations = [
                {"id": number, "image_id": image, "caption": text}
                for number, (image, text) in enumerate(references)
            ]
            known = {
                "type": "captions",
                "images": [{"id": image} for image in images],
                "annotations": annotations,
            }
            written.append(export_json(folder, self.key, captions, language))
            written.append(export_json(folder, self.key, known, f"{language}.references"))
        return written

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return each metric of each language, with an interval for metrics that score single images."""
        found: dict[str, CaptionScore] = {}
        failures: dict[str, int] = {}
        for language in in_order({one.request.language for one in scored}):
            own = {one.request.item: one for one in scored if one.request.language == language}
            found[language] = caption_score(
                {image: one.answer.text for image, one in own.items()},
                {image: one.request.expected for image, one in own.items()},
                language,
            )
            failures[language] = sum(one.score.unparsable for one in own.values())
        items = {
            language: [one.request.item for one in scored if one.request.language == language]
            for language in found
        }
        cider = {
            language: list(zip(items[language], score["cider_per_image"], strict=True))
            for language, score in found.items()
            if score["cider_per_image"] is not None
        }
        place = Place(self.key, "all", run, "cider", True)
        rows = mean_rows(place, cider, groups, seed, failures, self.interval)
        for metric in ("rouge_l", "bleu_4", "chrf"):
            values = {language: _value(score, metric) for language, score in found.items()}
            place = Place(self.key, "all", run, metric, True)
            for name, members in [*((lang, [lang]) for lang in found), *groups.items()]:
                own_languages = [language for language in members if language in found]
                if own_languages:
                    rows.append(
                        place.row(
                            name,
                            sum(values[lang] for lang in own_languages) / len(own_languages),
                            None,
                            None,
                            sum(found[lang]["n"] for lang in own_languages),
                            sum(failures[lang] for lang in own_languages),
                        )
                    )
        return rows


def _value(score: CaptionScore, metric: str) -> float:
    """Return a metric as a share from 0 to 1."""
    if metric == "chrf":
        return score["sacrebleu"]["chrF"]["score"] / 100
    return score["rouge_l"] if metric == "rouge_l" else score["bleu_4"]
