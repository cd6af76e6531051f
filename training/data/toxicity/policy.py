"""The policy: stored verdicts -> a decision on every (id, lang), without models or files.

1. The thresholds of a judge, or its label, turn each verdict into an outcome (drop, review, clean).
2. The outcomes of all judges of the same image or text are combined: one drop is a drop, one review is a
   review, and judges whose labels contradict each other give a review.
3. All rows of an id are decided together: a toxic image or source text flags all languages; a toxic
   translation of a clean source is flagged alone, and the id's other rows go to review.

`policies/default.yaml` has this project's thresholds, `policies/paper.yaml` those of the papers.
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
    """Minimum probabilities for a drop and for a review by people."""

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
    """The rule for one judge's verdicts.

    by: "score" compares scores with thresholds, and uses the label of a verdict without a score; "label" uses
        labels only.
    compare: whether a score equal to a threshold reaches it (">=") or not (">").
    languages: language -> other thresholds.
    confirmed_by: a rationale judge that reads this judge's rationales. A drop of this judge counts only if
        the rationale judge says unsafe; if it says safe, the outcome is clean.
    because: the reason for these values, published with them.
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

    default: rule for judges that `judges` does not name.
    judges: name of a judge in the plan, or its preset -> rule.
    agreement, translation_drop: see `policies/default.yaml`.
    """

    name: str
    default: JudgeRule = field(default_factory=JudgeRule)
    judges: dict[str, JudgeRule] = field(default_factory=dict)
    agreement: Literal["any", "all"] = "any"
    translation_drop: Literal["row", "all_languages"] = "row"

    @classmethod
    def read(cls, name: str | Path) -> Policy:
        """Read a policy file, or a shipped policy ("default", "paper").

        Raises:
            ValueError: names file and key of a wrong value.
        """
        shipped = SHIPPED / f"{name}.yaml"
        path = shipped if shipped.is_file() else Path(name)
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise ValueError(f"policy: expected a file or one of {names}, found {str(name)!r}")
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
    """The outcome of one verdict, or of several combined.

    labels: labels of all judges involved ("safe", "unsafe", "review").
    """

    decided: Decided
    reason: str
    category: str | None = None
    labels: frozenset[str] = frozenset()


def outcome(rule: JudgeRule, verdict: Row) -> Outcome:
    """Return the outcome of one verdict by its judge's rule, before confirmation."""
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
    """Return a drop's outcome after a second judge read its rationale; other outcomes are unchanged.

    Args:
        first: outcome of the first judge.
        second: outcome of the second judge; None without a rationale.
        judge: name of the second judge.
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
    """Combine the outcomes of all judges of one image or text; None without judges."""
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
    """The findings about one (id, lang); None where no judge read the input."""

    id: str
    lang: str
    source: bool
    text: Outcome | None
    image: Outcome | None


@dataclass(frozen=True)
class RowDecision:
    """The decision on one row.

    stage: what decided: "image"; "source", the source text; "translation", the row's text; "other_language",
        the text of another translation; "" for clean.
    """

    id: str
    lang: str
    decision: Decision
    reason: str
    category: str | None
    stage: str
    override: bool = False


def decide(rows: Sequence[RowOutcomes], policy: Policy) -> list[RowDecision]:
    """Decide all rows of one id, in order.

    The source text is the text in the language that is translated; every other text counts for its own row
    only.
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
    """Apply a person's decision, which overrides all judges.

    For an id as a whole (lang ""), "clean" clears the image and the source text; a judge's finding about the
    row's own translation remains.
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
