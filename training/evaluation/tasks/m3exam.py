"""M3Exam: questions of real school exams in seven languages, about pictures.

Source: M3Exam (2306.05179), in the files and with the prompts of Pangea (2410.16153). Each picture replaces its mark
in the text, in the order of the columns; a chat template may put pictures before the text, as Maya's do. A
question is left out if its marks and pictures do not match in number, or if its answer is not one of its options;
the protocol's description counts both. The official files are locked against crawlers: do not republish their
texts.
"""

import base64
import binascii
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ...common.images import decode_picture, to_rgb
from ...common.telling import one_line
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

REPOSITORY = "neulab/PangeaBench-m3exam"
IMAGES = tuple(f"image_{number}" for number in range(10))
COLUMNS = (
    *("question_text", "options", "answer_text", "subject_category", "background_description"),
    *IMAGES,
)
MAX_NEW_TOKENS = 32
NO_PICTURE = pa.array(["", "None", None], pa.string())
MARK = re.compile(r"\(image\)\[[^\]]+\]")
# The label before an option's text: (A), A., 1), (1).
LABEL = re.compile(r"[(（]?([A-Za-z]|\d)[)）.．、:](?!\d)\s*")


class Language(NamedTuple):
    """The prompt in one language.

    Args:
        split: the dataset's split.
        hint: text before the question, with a placeholder for the subject.
        answer: text after the options.
        subjects: names of language, mathematics, social science and natural science.
    """

    split: str
    hint: str
    answer: str
    subjects: tuple[str, str, str, str]


SUBJECTS = ("language", "math", "social-science", "natural-science")
LANGUAGES = {
    "af": Language(
        "afrikaans",
        "Die volgende is 'n meervoudige keuse vraag oor {}. Antwoord asseblief slegs met die letter "
        "(A, B, C of D) wat ooreenstem met die korrekte antwoord, sonder enige bykomende verduideliking.",
        "Antwoord:",
        ("Afrikaans Huistaal", "Wiskunde", "Sosiale Wetenskappe", "Natuurwetenskap"),
    ),
    "en": Language(
        "english",
        "The following is a multiple choice question about {}. Please only respond with the letter "
        "(A, B, C, or D) corresponding to the correct answer, without any additional explanation.",
        "Answer:",
        ("English", "Math", "Social Science", "Natural Science"),
    ),
    "it": Language(
        "italian",
        "La seguente è una domanda a scelta multipla su {}. Si prega di rispondere solo con la lettera "
        "(A, B, C o D) corrispondente alla risposta corretta, senza alcuna spiegazione aggiuntiva.",
        "La risposta:",
        ("Italiano", "Matematica", "Scienze sociali", "Scienze naturali"),
    ),
    "pt": Language(
        "portuguese",
        "A seguir está uma questão de múltipla escolha sobre {}. Por favor, responda apenas com a letra "
        "(A, B, C ou D) correspondente à resposta correta, sem qualquer explicação adicional.",
        "Responder:",
        ("Linguagens", "Matemática", "Ciências Humanas", "Ciências da Natureza"),
    ),
    "th": Language(
        "thai",
        "ต่อไปนี้เป็นคำถามแบบปรนัย วิชา{} โปรดตอบเพียงตัวอักษร (A, B, C หรือ D) "
        "ที่ตรงกับคำตอบที่ถูกต้อง โดยไม่ต้องมีคำอธิบายเพิ่มเติม",
        "คำตอบ:",
        ("ภาษาไทย", "คณิตศาสตร์", "สังคมศึกษา", "วิทยาศาสตร์"),
    ),
    "vi": Language(
        "vietnamese",
        "Sau đây là câu hỏi trắc nghiệm về {}. Vui lòng chỉ trả lời bằng chữ cái (A, B, C hoặc D) "
        "tương ứng với câu trả lời đúng, không cần giải thích thêm.",
        "Câu trả lời:",
        ("Tiếng Việt", "Toán", "Khoa học xã hội", "Khoa học tự nhiên"),
    ),
    "zh": Language(
        "chinese",
        "以下是关于{}的单项选择题。 请仅给出正确选项对应的选项序号（A, B, C, 或 D） 而非其他细节。",
        "答案：",
        ("语文", "数学", "社会科学", "自然科学"),
    ),
}


class M3Exam(Task):
    """School exams in seven languages: letters of options."""

    languages = tuple(LANGUAGES)
    name = "m3exam"
    title = "M3Exam"
    version = "2"
    contamination = f"{UNSEEN} The exams are on the web, where a language model may have read them."
    protocols = {
        # Pangea's parser takes the first a to d in any word, and guesses if it finds none; the default does not.
        "strict": "M3Exam (2306.05179), asked as Pangea (2410.16153); this package's parser",
        "pangea": "as strict, but Pangea's parser; where that guesses, the answer is wrong",
    }

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS["choice_pangea_cvqa" if protocol == "pangea" else "choice"]
        self.left_out: dict[str, dict[str, int]] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": "{hint}\n\n{background}\n{question}\n(A) ...\n(B) ...\n{Answer:}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
            "left out": self.left_out,
        }

    def load(self, selection: Selection) -> Loaded:
        known = in_order(LANGUAGES)
        if selection.split is not None:
            names = {own.split: language for language, own in LANGUAGES.items()}
            chosen_languages([selection.split], list(names), REPOSITORY)
            known = [names[selection.split]]
        splits: dict[str, Split] = {}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int, int]] = {}
        self.left_out = {}
        for language in chosen_languages(selection.languages, known, REPOSITORY):
            own = LANGUAGES[language]
            split = Split(selection, REPOSITORY, None, "default", own.split, COLUMNS, IMAGES)
            splits[language] = split
            pictured = _pictured(split)
            count = self.left_out[language] = {"other marks than pictures": 0, "no right option": 0}
            for number, row in split.rows():
                options = letters_for(_texts(row["options"] or []))
                right = _place(row["answer_text"])
                if right is None or right >= len(options):
                    count["no right option"] += 1
                    continue
                key = f"{language}/{number}"
                shown = {f"{key}/{column}": column for column in pictured[number]}
                content = _content(own, row, options, list(shown))
                if content is None:
                    count["other marks than pictures"] += 1
                    continue
                places |= {picture: (split, number, column) for picture, column in shown.items()}
                requests.append(
                    Request(
                        id=key,
                        language=language,
                        content=content,
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=key,
                        expected=LATIN[right],
                        about={"options": {k: MARK.sub("", v) for k, v in options.items()}},
                        chance=1 / len(options),
                    )
                )
        return loaded_in(selection, splits, requests, _Pictures(places), ", ".join(splits))

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        return Score({"accuracy": float(letter == request.expected)}, letter, letter is None)


def _pictured(split: Split) -> list[list[int]]:
    """Return, for each row, the indices of the columns that hold a picture."""
    columns = [
        pc.invert(pc.is_in(split.table.column(name), value_set=NO_PICTURE)).to_pylist()
        for name in IMAGES
    ]
    return [[place for place, has in enumerate(row) if has] for row in zip(*columns, strict=True)]


def _content(
    own: Language, row: Mapping[str, Any], options: Mapping[str, str], pictures: Sequence[str]
) -> tuple[str | Picture, ...] | None:
    """Return the prompt with pictures at their marks; a single picture without a mark goes in front.

    Several marks may name the same picture. The result is None if marks and pictures do not match.
    """
    subject = dict(zip(SUBJECTS, own.subjects, strict=True)).get(
        row["subject_category"], row["subject_category"]
    )
    lines = [
        own.hint.format(subject) + "\n",
        *(row["background_description"] or []),
        row["question_text"],
        *(f"({letter}) {text}" for letter, text in options.items()),
        own.answer,
    ]
    text = "\n".join(lines)
    marks = MARK.findall(text)
    if not pictures:
        return (MARK.sub("", text),)
    if len(pictures) == 1 and not marks:
        return Picture(pictures[0]), text
    names = marks if len(marks) == len(pictures) else list(dict.fromkeys(marks))
    if len(names) != len(pictures):
        return None
    keys = pictures if names is marks else [pictures[names.index(mark)] for mark in marks]
    content: list[str | Picture] = []
    for part, key in itertools.zip_longest(MARK.split(text), keys):
        content += [part, *([Picture(key)] if key else [])]
    return tuple(part for part in content if part)


def _texts(options: Sequence[str]) -> list[str]:
    """Return the options, without their labels if these number the options in order."""
    found = [LABEL.match(text) for text in options]
    if [match and _place(match[1]) for match in found] == list(range(len(options))):
        return [text[match.end() :] for text, match in zip(options, found, strict=True) if match]
    return list(options)


def _place(label: str | None) -> int | None:
    """Return the index for a letter or number such as A, (A), 1 or (1); None for any other text."""
    sign = (label or "").strip("()（）.． ").upper()
    if len(sign) == 1 and sign in LATIN:
        return LATIN.index(sign)
    return int(sign) - 1 if sign.isascii() and sign.isdecimal() and int(sign) > 0 else None


class _Pictures:
    """Pictures that the dataset stores as base64 text."""

    def __init__(self, rows: Mapping[str, tuple[Split, int, int]]):
        self.rows = rows

    def load(self, key: str) -> Image.Image:
        split, number, column = self.rows[key]
        cell = split.table.column(IMAGES[column])[number].as_py()
        try:
            return to_rgb(decode_picture(base64.b64decode(cell, validate=True), key))
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                one_line(f"{split.place}: picture {key!r} cannot be decoded: {error}")
            ) from None
