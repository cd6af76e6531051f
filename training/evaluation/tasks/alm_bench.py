"""ALM-bench: questions about culture in 100 languages, graded by a judge.

Source: ALM-bench (2411.16508) and its scripts. The judge gives 0 to 10, and only 0 or 10 for questions with a
right or wrong answer. The published number is the mean over all answers, in percent. The texts are under
CC-BY-NC-SA-4.0.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..judges.rubric import Case
from ..judges.rubrics import ALM, ALM_CRITERIA, ALM_STRICT
from ..protocol import Loaded, Picture, Request, Selection
from ..public import UNSEEN, RowPictures, Split, loaded
from .judged import Judged

REPOSITORY = "MBZUAI/ALM-Bench"
COLUMNS = (
    *("file_name", "ID", "Language", "Category", "Question_Type"),
    *("Translated_Question", "Translated_Answer", "Image_Url"),
)
# BCP-47 code -> the dataset's name. Rows in other languages are left out and counted in the results.
LANGUAGES = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "ar-AE": "Emirati Arabic",
    "ar-SA": "Saudi Arabic",
    "arz": "Egyptian Arabic",
    "as": "Assamese",
    "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bho": "Bhojpuri",
    "bn": "Bengali",
    "bs": "Bosnian",
    "ca": "Catalan",
    "ceb": "Cebuano",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fil": "Filipino",
    "fr": "French",
    "ga": "Irish",
    "gd": "Scots Gaelic",
    "gl": "Galician",
    "gu": "Gujarati",
    "ha": "Hausa",
    "haw": "Hawaiian",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "ig": "Igbo",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "jv": "Javanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "ku": "Kurdish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lb": "Luxembourgish",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mg": "Malagasy",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Myanmar (Burmese)",
    "ne": "Nepali",
    "nl": "Dutch",
    "no": "Norwegian",
    "or": "Odia (Oriya)",
    "pa": "Punjabi",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "sa": "Sanskrit",
    "sd": "Sindhi",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sn": "Shona",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "su": "Sundanese",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "tr": "Turkish",
    "ug": "Uyghur",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "zh": "Chinese (Simplified)",
    "zh-Hant": "Chinese (Traditional)",
    "zu": "Zulu",
}
CODES = {name.casefold(): code for code, name in LANGUAGES.items()}
# The dataset's question types. Every other type is a short question, as in the benchmark's script.
TYPES = {
    "Multiple Choice Questions": "choice",
    "True False Question": "true_false",
    "Long Question": "long",
}
PROMPTS = {
    # The first sentence is this package's own: the benchmark's script says the same in more words.
    "choice": "Answer the multiple choice question with one of the options below, and with nothing else.\n"
    "{question}\n{choices}",
    "true_false": "{question}\nThe above question is a True/False question. Please provide the answer as one "
    "word in {language}",
    "long": "{question}\nAnswer the question in detail in {language} language.",
    "short": "{question}\nPlease provide brief, clear responses in {language} language.",
}
# The answer of a multiple-choice row ends with the options in brackets.
BRACKET = re.compile(r"\s*[(（](.*)[)）]\s*$", re.S)
# The benchmark's script leaves the limit to each model.
MAX_NEW_TOKENS = 1024


class AlmBench(Judged):
    """22,763 questions in 19 categories."""

    languages = tuple(LANGUAGES)
    name = "alm_bench"
    title = "ALM-bench"
    contamination = UNSEEN
    protocols = {
        "paper": "ALM-bench (2411.16508): a score of 10, one criterion a type of question",
        "strict": "this package: reasons first, temperature 0; criteria and prompts as paper",
    }
    rubrics = {"paper": ALM, "strict": ALM_STRICT}
    parts = {"type": "by type of question", "category": "by category"}
    metrics = {"score": {"title": "score", "higher_is_better": True, "percent": True}}
    metric = "score"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.left_out: Counter[str] = Counter()
        self.subsets = {
            "type/all": "all",
            "type/choice": "multiple choice",
            "type/true_false": "true or false",
            "type/short": "short answer",
            "type/long": "long answer",
        }

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": PROMPTS["short"],
            "prompts": PROMPTS,
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "criteria": ALM_CRITERIA,
            "rows left out, by language that is not known": dict(self.left_out),
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "file_name")
        requests: dict[str, Request] = {}
        places: dict[str, tuple[Split, int]] = {}
        self.left_out = Counter()
        for number, row in split.rows():
            language = CODES.get(str(row["Language"]).replace("_", " ").strip().casefold())
            if language is None:
                self.left_out[str(row["Language"])] += 1
                continue
            own = f"{language}/{str(row['ID']).strip()}"
            question, answer, category = (
                split.text(number, row, each).strip()
                for each in ("Translated_Question", "Translated_Answer", "Category")
            )
            if own in requests or not question or not answer:
                raise ValueError(
                    f"{split.place}: row {number}: expected a unique ID in {row['Language']}, a question "
                    f"and an answer, found {row['ID']!r}, {question!r} and {answer!r}"
                )
            kind = TYPES.get(row["Question_Type"], "short")
            options = BRACKET.search(answer) if kind == "choice" else None
            self.subsets = {**self.subsets, f"category/{category}": category}
            places[own] = (split, number)
            requests[own] = Request(
                id=own,
                language=language,
                content=(
                    Picture(own),
                    PROMPTS[kind]
                    .format(
                        question=question,
                        language=LANGUAGES[language],
                        choices=options[1] if options else "",
                    )
                    .rstrip("\n"),
                ),
                max_new_tokens=MAX_NEW_TOKENS,
                item=row["Image_Url"] or own,
                answer_language=language,
                subset=f"type/{kind}",
                expected=answer[: options.start()] if options else answer,
                about={"question": question, "category": category},
            )
        return loaded(selection, split, list(requests.values()), RowPictures(places), name)

    def cases(self, request: Request, text: str) -> list[Case]:
        fields = {
            "question": request.about["question"],
            "reference": request.expected,
            "answer": text,
            "criteria": ALM_CRITERIA[request.subset.partition("/")[2]],
        }
        return [Case(self.rubric, fields)]

    def values(self, request: Request, judged: Sequence[Any]) -> Mapping[str, float | None]:
        return {"score": judged[0] / 10}

    def belongs(self, request: Request, subset: str) -> bool:
        part, _, name = subset.partition("/")
        if part == "category":
            return name == request.about["category"]
        return name == "all" or subset == request.subset
