"""Kaleidoscope: exam questions in 18 languages, written in them, with and without a picture.

Source: Kaleidoscope (2504.07072): its direct prompt for open models, which asks for JSON; the system turn
stands before the question, as lmms-eval 0.7.3 gives it to models that take one turn. Pictures are scaled to 512
x 512 as in the reference, whose decoding samples (temperature 0.7); here it is greedy. A question whose options
are pictures is left out, counted in `asked`: models are asked about one picture here.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from ...common.images import ImageStore, decode_picture, to_rgb
from ...common.places import open_place
from ...common.telling import one_line, reason
from ...inference.generation import Answer
from ..protocol import (
    Loaded,
    Picture,
    Request,
    Score,
    Selection,
    Task,
    chosen_languages,
    in_order,
)
from ..public import UNSEEN, Split, loaded_in
from ..scoring.choices import LATIN, letters_for
from ..scoring.choices_public import CHOICE_PARSERS

REPOSITORY = "CohereLabs/kaleidoscope"
COLUMNS = ("question", "options", "answer", "image", "language")
# The pictures, and the folder in it where the names of the column `image` begin.
ARCHIVE, INSIDE = "data.zip", "final_data/"
SIZE = (512, 512)
MAX_NEW_TOKENS = 1024
SYSTEM = (
    "You are a helpful assistant who answers multiple-choice questions. For each question, output your "
    "final answer in JSON format with the following structure:\n\n"
    '{"choice": "The correct option (e.g., A, B, C, or D)"}\n\n'
    "ONLY output this format exactly. Do not include any additional text or explanations outside the JSON "
    "structure."
)
INSTRUCTION = "Output your choice in the specified JSON format."
# Question and Options in each language.
HEADINGS = {
    "ar": ("السؤال", "الخيارات"),
    "bn": ("প্রশ্ন", "বিকল্প"),
    "de": ("Frage", "Optionen"),
    "en": ("Question", "Options"),
    "es": ("Pregunta", "Opciones"),
    "fa": ("سؤال", "گزینه\u200cها"),
    "fr": ("Question", "Options"),
    "hi": ("प्रश्न", "विकल्प"),
    "hr": ("Pitanje", "Opcije"),
    "hu": ("Kérdés", "Lehetőségek"),
    "lt": ("Klausimas", "Pasirinkimai"),
    "ne": ("प्रश्न", "विकल्पहरू"),
    "nl": ("Vraag", "Opties"),
    "pt": ("Pergunta", "Opções"),
    "ru": ("Вопрос", "Варианты"),
    "sr": ("Pitanje", "Opcije"),
    "te": ("ప్రశ్న", "ఎంపికలు"),
    "uk": ("Питання", "Варіанти"),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Kaleidoscope(Task):
    """Exams of 18 languages, 20,911 questions, 55 % of them with a picture."""

    languages = tuple(HEADINGS)
    name = "kaleidoscope"
    title = "Kaleidoscope"
    contamination = f"{UNSEEN} The exams are on the web, where a language model may have read them."
    protocols = {
        # The default is that of open models in the paper. Its prompt for closed models is not here.
        "direct": "Kaleidoscope (2504.07072), direct prompt, format_answer: other forms are wrong",
        "strict": "as direct, but an answer in any form is read by this package's parser",
    }
    subsets = {"image": "with a picture", "text": "without one", "all": "all"}
    metrics = {
        "accuracy": {"title": "accuracy", "higher_is_better": True, "percent": True},
        "valid_accuracy": {
            "title": "accuracy of answers that could be read",
            "higher_is_better": True,
            "percent": True,
        },
    }

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS["choice" if protocol == "strict" else "choice_kaleidoscope"]
        self.left_out: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": _prompt("en", "{question}", {"A": "...", "B": "..."}),
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
            "pictures": f"{SIZE[0]} x {SIZE[1]}",
            "left out, with pictures as options": self.left_out,
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "train"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS)
        asked = chosen_languages(selection.languages, in_order(HEADINGS), name)
        self.left_out = dict.fromkeys(asked, 0)
        requests: list[Request] = []
        for number, row in split.rows():
            language, texts, right = row["language"], row["options"] or [], row["answer"]
            if language not in HEADINGS or right is None or not 0 <= right < len(texts):
                raise ValueError(
                    f"{split.place}: row {number}: expected a language of {', '.join(HEADINGS)} and the "
                    f"place of one of {len(texts)} options, found {language!r} and {right!r}"
                )
            if language not in asked:
                continue
            if any(text.lower().endswith(PICTURES) for text in texts):
                self.left_out[language] += 1
                continue
            options = letters_for(texts)
            picture = row["image"] if (row["image"] or "None").lower() != "none" else None
            prompt = _prompt(language, row["question"], options)
            requests.append(
                Request(
                    id=f"{name}/{number}",
                    language=language,
                    content=(Picture(picture), prompt) if picture else (prompt,),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture or f"{name}/{number}",
                    subset="image" if picture else "text",
                    expected=LATIN[right],
                    about={"options": options},
                    chance=1 / len(options),
                )
            )
        pictures = _Pictures(split)
        made = loaded_in(selection, dict.fromkeys(asked, split), requests, pictures, name)
        first = next((key for request in made.requests for key in request.pictures), None)
        if first is not None:
            # Pictures that are not there are told before anything is asked.
            pictures.open(made.data["revision"])
            pictures.load(first)
        return made

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        right = float(letter == request.expected)
        values = {"accuracy": right, "valid_accuracy": None if letter is None else right}
        return Score(values, letter, letter is None)


def _prompt(language: str, question: str, options: dict[str, str]) -> str:
    asked, offered = HEADINGS[language]
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    return f"{SYSTEM}\n\n{INSTRUCTION}\n\n{asked}: {question}\n{offered}:\n{listed}\nANSWER:"


class _Pictures:
    """Pictures of the archive beside the dataset's files, or unpacked there."""

    def __init__(self, split: Split):
        self.split = split
        self.store, self.inside = ImageStore(None), ""

    def open(self, revision: str | None) -> None:
        """Find the pictures. Raises ValueError or OSError in one line."""
        place = self.split.folder
        if place is None:
            from huggingface_hub import hf_hub_download

            try:
                place = Path(
                    hf_hub_download(
                        self.split.name, ARCHIVE, repo_type="dataset", revision=revision
                    )
                )
            except (OSError, ValueError) as error:
                raise OSError(
                    f"{self.split.name}: {ARCHIVE}: cannot be read: {reason(error)}"
                ) from error
        elif (place / ARCHIVE).is_file():
            place = place / ARCHIVE
        self.store = ImageStore(open_place(place))
        self.inside = INSIDE if place.name == ARCHIVE else ""

    def load(self, key: str) -> Image.Image:
        try:
            content = self.store.read(f"{self.inside}{key}")
            return to_rgb(decode_picture(content, key)).resize(SIZE)
        except ValueError as error:
            raise ValueError(
                one_line(f"{self.split.place}: picture {key!r} cannot be decoded: {error}")
            ) from None
