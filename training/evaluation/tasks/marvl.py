"""MaRVL: is a statement about two pictures true? Five languages, and NLVR2 for English.

Source: MaRVL (2109.13238). Two harnesses publish numbers, which cannot be compared: one model has 79.0 in one
and 70.5 in the other. Pangea's dataset (2410.16153) joins the two pictures into one and has its own question
about them. Centurio (2501.05122) shows two pictures, puts a question around the bare statement, and accepts only
yes or no. Maya's published numbers use Centurio's harness, which needs another dataset, with separate pictures and
without English.
"""

from typing import Any

from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Request, Score, Selection, Task
from ..public import MAX_NEW_TOKENS, UNSEEN, RowPictures, Split, language_splits, loaded
from ..scoring.parsed import Parser
from ..scoring.plain import normalise
from ..scoring.short_answers import METRIC, RULES
from ..scoring.yes_no import parse_yes_no

REPOSITORY = "neulab/PangeaBench-marvl"
COLUMNS = ("image", "conversations")
LANGUAGES = {lang: lang for lang in ("en", "zh", "id", "sw", "ta", "tr")}
SUFFIX = ". Answer with the option directly."
APART, APART_COLUMNS = "floschne/marvl", ("hypothesis", "label", "left_img", "right_img")
CENTURIO = 'is it correct to say "{}"? Answer yes or no.'
CENTURIO_MAX_NEW_TOKENS = 512


def parse_truth(response: str) -> str | None:
    """Return "true" or "false" for such an answer or for a yes or no in ten languages, None for any other."""
    said = {"yes": "true", "no": "false"}.get(parse_yes_no(response) or "", normalise(response))
    return said if said in ("true", "false") else None


PARSER = Parser("true_false", 1, "this package: training/evaluation/tasks/marvl.py", parse_truth)


class MaRvl(Task):
    """Reasoning about two pictures, 1,012 to 1,242 statements in each of five languages, 6,982 in English."""

    languages = tuple(LANGUAGES)
    name = "marvl"
    title = "MaRVL"
    contamination = UNSEEN
    # The default is the protocol of Pangea's published numbers.
    protocols = {
        "pangea": "Pangea (2410.16153), lmms_eval/tasks/marvl: yes anywhere is true, else no anywhere is false",
        "strict": "as pangea, but an answer that is not true or false, yes or no is wrong",
        "centurio": "Centurio (2501.05122): the pictures apart; exactly yes or no is an answer",
    }

    def describe(self) -> dict[str, Any]:
        if self.protocol == "centurio":
            return {
                "prompt": CENTURIO.format("{hypothesis}"),
                "pictures": "two, one after the other",
                "max_new_tokens": CENTURIO_MAX_NEW_TOKENS,
                "stop": "none",
                "parser": f"{METRIC} centurio_exact",
            }
        return {
            "prompt": f"{{the dataset's question}}{SUFFIX}",
            "pictures": "two, joined into one",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "parser": PARSER.id if self.protocol == "strict" else f"{METRIC} pangea",
        }

    def load(self, selection: Selection) -> Loaded:
        return self._apart(selection) if self.protocol == "centurio" else self._joined(selection)

    def _apart(self, selection: Selection) -> Loaded:
        names = {lang: name for lang, name in LANGUAGES.items() if lang != "en"}
        sides = ("left_img", "right_img")
        splits = language_splits(selection, APART, None, "default", names, APART_COLUMNS, sides)
        requests = []
        places: dict[str, tuple[Split, int, int]] = {}
        for language, split in splits.items():
            pairs = list(zip(split.picture_names(0), split.picture_names(1), strict=True))
            for number, row in split.rows():
                if not isinstance(row["label"], bool):
                    raise ValueError(
                        f"{split.place}: row {number}: label: expected true or false, found {row['label']!r}"
                    )
                for side, picture in enumerate(pairs[number]):
                    places.setdefault(picture, (split, number, side))
                question = CENTURIO.format(split.text(number, row, "hypothesis").strip())
                requests.append(
                    Request(
                        id=f"{language}/{number}",
                        language=language,
                        content=(*map(Picture, pairs[number]), question),
                        max_new_tokens=CENTURIO_MAX_NEW_TOKENS,
                        item="+".join(pairs[number]),
                        expected=str(row["label"]).lower(),
                        chance=0.5,
                    )
                )
        first, *others = splits.values()
        return loaded(selection, first, requests, RowPictures(places), ", ".join(splits), others)

    def _joined(self, selection: Selection) -> Loaded:
        splits = language_splits(
            selection, REPOSITORY, None, "default", LANGUAGES, COLUMNS, "image"
        )
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for language, split in splits.items():
            # Several statements share one pair of pictures.
            pictures = split.picture_names()
            for number, row in split.rows():
                turns = [(turn or {}).get("value") or "" for turn in row["conversations"] or ()]
                label = turns[1].lower() if len(turns) == 2 else ""
                told = [word for word in ("true", "false") if word in label]
                if len(told) != 1:
                    raise ValueError(
                        f"{split.place}: row {number}: conversations: expected a question and its answer, "
                        f"true or false, found {len(turns)} turns, the answer {label[:80]!r}"
                    )
                picture = pictures[number]
                places.setdefault(picture, (split, number))
                question = turns[0].replace("<image>\n", "").strip()
                requests.append(
                    Request(
                        id=f"{language}/{number}",
                        language=language,
                        content=(Picture(picture), question + SUFFIX),
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=picture,
                        expected=told[0],
                        chance=0.5,
                    )
                )
        first, *others = splits.values()
        names = ", ".join(splits)
        return loaded(selection, first, requests, RowPictures(places), names, others)

    def score(self, request: Request, answer: Answer) -> Score:
        if self.protocol == "strict":
            said = PARSER(answer.text)
            return Score({"accuracy": float(said == request.expected)}, said, said is None)
        if self.protocol == "centurio":
            known = answer.text.strip().lower()
            right = RULES["marvl"]["centurio_exact"](answer.text, [request.expected])
            said = {"yes": "true", "no": "false"}.get(known)
            return Score({"accuracy": float(right)}, said, said is None)
        # Pangea's rule counts an answer with both words as right, whatever the label.
        rule = RULES["marvl"]["pangea"]
        found = " ".join(word for word in ("true", "false") if rule(answer.text, [word]))
        right = rule(answer.text, [request.expected])
        return Score({"accuracy": float(right)}, found or None, not found)
