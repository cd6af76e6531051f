"""The policy: from stored verdicts to a decision on every (id, lang). Pure: no model, no file.

1. A verdict becomes an outcome (drop, review, clean) by its judge's thresholds or by its label.
2. The outcomes of the judges that read the same image or text are combined: any drop is a drop; a
   review is a review; judges whose labels contradict each other are a review.
3. An id's rows are decided together: a toxic image or source text flags all its languages; a
   translation that alone is toxic is flagged alone, and the id's other rows go to review.

The project's thresholds are `policies/default.yaml`, the papers' `policies/paper.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ...common.schema import build, digest, read_mapping, to_dict
from ...rows.parquet import Row

Decided: TypeAlias = Literal["clean", "review", "drop"]
Decision: TypeAlias = Literal["clean", "review", "flagged"]

SHIPPED = Path(__file__).with_name("policies")
_WORSE: dict[Decided, int] = {"clean": 0, "review": 1, "drop": 2}
_BY_LABEL: dict[str, Decided] = {"safe": "clean", "review": "review", "unsafe": "drop"}


@dataclass
class Thresholds:
    """Probabilities from which an input is dropped, and from which people review it."""

    drop_at: float
    review_at: float

    def __post_init__(self) -> None:
        if not 0 <= self.review_at <= self.drop_at <= 1:
            raise ValueError(
                f"expected 0 <= review_at <= drop_at <= 1, found review_at {self.review_at} and "
                f"drop_at {self.drop_at}"
            )


@dataclass
class JudgeRule:
    """The rule for one judge's verdicts: thresholds for scores, or labels.

    by: "score", where a verdict without a score is taken by its label; or "label", whatever the
        score.
    compare: whether a score that equals a threshold reaches it (">=") or not (">").
    languages: other thresholds for these languages.
    confirmed_by: a rationale judge; what this judge would drop is dropped only if that one, reading
        its rationale, says unsafe too, and is clean if it says safe.
    because: the reason for these numbers, published with them.
    """

    by: Literal["score", "label"] = "score"
    drop_at: float = 0.90
    review_at: float = 0.50
    compare: Literal[">=", ">"] = ">="
    languages: dict[str, Thresholds] = field(default_factory=dict)
    confirmed_by: str | None = None
    because: str | None = None

    def __post_init__(self) -> None:
        Thresholds(self.drop_at, self.review_at)

    def thresholds(self, lang: str) -> Thresholds:
        found = self.languages.get(lang) or self.languages.get(lang.split("-")[0])
        return found or Thresholds(self.drop_at, self.review_at)


@dataclass
class Policy:
    """A policy file.

    default: the rule of judges that `judges` does not name.
    judges: by the judge's name in the plan, or its preset.
    agreement, translation_drop: see `policies/default.yaml`.
    """

    name: str
    default: JudgeRule = field(default_factory=JudgeRule)
    judges: dict[str, JudgeRule] = field(default_factory=dict)
    agreement: Literal["any", "all"] = "any"
    translation_drop: Literal["row", "all_languages"] = "row"

    @classmethod
    def read(cls, name: str | Path) -> Policy:
        """Read a policy file, or a shipped policy by its name ("default", "paper").

        Raises ValueError naming file and key for anything that does not fit.
        """
        shipped = SHIPPED / f"{name}.yaml"
        path = shipped if shipped.is_file() else Path(name)
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise ValueError(f"policy: no file {str(name)!r}; shipped policies are {names}")
        return build(cls, read_mapping(path), str(path))

    @property
    def sha(self) -> str:
        return digest(to_dict(self))

    def rule(self, judge: str, preset: str | None = None) -> JudgeRule:
        if judge in self.judges:
            return self.judges[judge]
        return self.judges.get(preset or "", self.default)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one verdict, or of several together.

    labels: of the judges whose answers it is made of ("safe", "unsafe", "review").
    """

    decided: Decided
    reason: str
    category: str | None = None
    labels: frozenset[str] = frozenset()


def outcome(rule: JudgeRule, verdict: Row) -> Outcome:
    """Return the outcome of one verdict under its judge's rule, without confirmation."""
    judge, label, score = verdict["judge"], verdict["label"], verdict["score"]
    labels = frozenset([label])
    category = verdict["category"]
    if not verdict["parse_ok"]:
        why = verdict["error"] or "an answer that is not in its form"
        return Outcome("review", f"{judge}: {why}", None, labels)
    if rule.by == "label" or score is None:
        decided = _BY_LABEL[label]
        named = f" ({category})" if category and decided != "clean" else ""
        return Outcome(decided, f"{judge}: {label}{named}", category, labels)
    at = rule.thresholds(verdict["lang"])
    for limit, decided in ((at.drop_at, "drop"), (at.review_at, "review")):
        if score > limit or (score == limit and rule.compare == ">="):
            reason = f"{judge}: {score:.4g} {rule.compare} {limit:g}"
            return Outcome(decided, reason, category, labels)  # type: ignore[arg-type]
    return Outcome("clean", f"{judge}: {score:.4g}", category, labels)


def confirmed(first: Outcome, second: Outcome | None, judge: str) -> Outcome:
    """Return a drop after a second judge has read its rationale; other outcomes are unchanged.

    second: None where there was no rationale to read.
    """
    if first.decided != "drop":
        return first
    if second is None:
        return Outcome(
            "review", f"{first.reason}; no rationale for {judge}", first.category, first.labels
        )
    labels = first.labels if second.decided == "drop" else second.labels
    return Outcome(second.decided, f"{first.reason}; {second.reason}", first.category, labels)


def combine(outcomes: Iterable[Outcome], agreement: str = "any") -> Outcome | None:
    """Return the outcome of several judges on one image or text; None without judges."""
    found = list(outcomes)
    if not found:
        return None
    worst = max(found, key=lambda each: _WORSE[each.decided])
    labels = frozenset().union(*(each.labels for each in found))
    if len({each.decided for each in found}) > 1 and agreement == "all":
        reasons = "; ".join(each.reason for each in found)
        return Outcome("review", f"judges disagree: {reasons}", worst.category, labels)
    if worst.decided == "clean" and {"safe", "unsafe"} <= labels:
        reasons = "; ".join(each.reason for each in found)
        unsafe = next(each for each in found if "unsafe" in each.labels)
        return Outcome("review", f"judges disagree: {reasons}", unsafe.category, labels)
    return Outcome(worst.decided, worst.reason, worst.category, labels)


@dataclass(frozen=True)
class RowOutcomes:
    """One (id, lang) with its findings; a finding is None if no judge read the input."""

    id: str
    lang: str
    source: bool
    text: Outcome | None
    image: Outcome | None


@dataclass(frozen=True)
class RowDecision:
    """stage: what decided: "image"; "source", the source's text; "translation", the row's own text;
    "other_language", the text of another translation; "" for clean.
    """

    id: str
    lang: str
    decision: Decision
    reason: str
    category: str | None
    stage: str
    override: bool = False


def decide(rows: Sequence[RowOutcomes], policy: Policy) -> list[RowDecision]:
    """Return the decisions on all rows of one id, in order.

    A source text is the text in the language that the others are translated from; every other text
    stands for itself.
    """
    images = [("image", row.image) for row in rows if row.image is not None]
    sources = [("source", row.text) for row in rows if row.source and row.text is not None]
    for_all = [*images, *sources]
    dropped = [(s, o) for s, o in for_all if o.decided == "drop"]
    reviewed = [(s, o) for s, o in for_all if o.decided == "review"]
    translated = {
        row.lang: row.text
        for row in rows
        if not row.source and row.text is not None and row.text.decided == "drop"
    }
    if not dropped and policy.translation_drop == "all_languages":
        dropped = [("translation", each) for each in translated.values()]

    def one(row: RowOutcomes) -> RowDecision:
        decision: Decision
        if dropped:
            decision, (stage, found) = "flagged", dropped[0]
        elif row.lang in translated and not row.source:
            decision, stage, found = "flagged", "translation", translated[row.lang]
        elif reviewed:
            decision, (stage, found) = "review", reviewed[0]
        elif row.text is not None and row.text.decided == "review":
            decision, stage, found = "review", "translation", row.text
        elif translated:
            lang, found = next(iter(translated.items()))
            reason = f"only {lang} is toxic, so the image is to be seen: {found.reason}"
            return RowDecision(row.id, row.lang, "review", reason, found.category, "other_language")
        else:
            reason = "" if row.text is not None else "text not judged"
            return RowDecision(row.id, row.lang, "clean", reason, None, "")
        reason = f"{stage}: {found.reason}"
        return RowDecision(row.id, row.lang, decision, reason, found.category, stage)

    return [one(row) for row in rows]


def overridden(made: RowDecision, override: Mapping[str, Any]) -> RowDecision:
    """Return a person's decision, which overrides all judges.

    Where it is about the id as a whole (lang ""), "clean" clears the image and the source text; what
    a judge found in the row's own translation stands.
    """
    decision: Decision = override["decision"]
    if override["lang"] == "" and decision == "clean" and made.stage == "translation":
        return made
    note = f": {override['note']}" if override.get("note") else ""
    reason = f"{override.get('reviewer') or 'a reviewer'}{note}"
    if decision == "clean":
        return RowDecision(made.id, made.lang, decision, reason, None, "", override=True)
    stage = made.stage or ("image" if override["lang"] == "" else "translation")
    return RowDecision(made.id, made.lang, decision, reason, made.category, stage, override=True)
