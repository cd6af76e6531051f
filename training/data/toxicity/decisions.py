"""Apply the policy to a build's stored verdicts: decisions, audit and counts. No model runs.

`decide_build` reads every verdict once, then every row once. It writes `toxicity/decisions.parquet`, one
row per (id, lang) that has a text; `audit.parquet`, one row per verdict; and `summary.json`, the counts.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from ...common.files import sha256_text, write_json
from ...common.reading import parse_json
from ...common.schema import build, to_dict
from ...rows.parquet import Row, parquet_file
from ..engine.progress import text_table
from ..engine.storage import ShaTable, write_rows
from ..engine.unit_files import Key
from ..review.decisions import read_overrides
from .plan import JudgePlan
from .policy import (
    Outcome,
    Policy,
    RowDecision,
    RowOutcomes,
    combine,
    confirmed,
    decide,
    outcome,
    overridden,
)
from .step import ToxicityStep
from .verdicts import VERDICT_SCHEMA, image_sha, text_of

DECISION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("category", pa.string()),
        ("override", pa.bool_()),
        ("stage", pa.string()),
    ]
)
AUDIT_SCHEMA = pa.schema([*VERDICT_SCHEMA, ("decided", pa.string()), ("reason", pa.string())])
DECISIONS = ("clean", "review", "flagged")


@dataclass
class Summary:
    """Row counts. `rows`: rows with a text; `without_text`: rejected and failed rows.

    found: (decision, stage, category, lang) -> rows, for all rows that are not clean.
    verdicts: (judge, label) -> verdicts.
    failures: judge -> verdicts without an answer.
    """

    policy: str
    policy_sha: str
    languages: list[str]
    unjudged: list[str]
    rows: Counter[str] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    overrides: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    """Decisions of people about texts or rows that no longer exist."""
    without_text: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def count(self, made: RowDecision) -> None:
        self.rows[made.lang] += 1
        self.decisions[made.lang, made.decision] += 1
        self.overrides[made.lang] += made.override
        if made.decision != "clean":
            place = (made.decision, made.stage, made.category or "none named", made.lang)
            self.found[place] += 1

    def check(self) -> None:
        """Raise AssertionError unless rows = clean + review + flagged in every language."""
        for lang, rows in self.rows.items():
            parts = [self.decisions[lang, decision] for decision in DECISIONS]
            if rows != sum(parts):
                raise AssertionError(f"{lang}: {rows} rows in, {parts} {DECISIONS} out")

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "policy_sha": self.policy_sha,
            "unjudged": self.unjudged,
            "stale_overrides": self.stale,
            "languages": {
                lang: {
                    "rows": self.rows[lang],
                    **{name: self.decisions[lang, name] for name in DECISIONS},
                    "overrides": self.overrides[lang],
                    "without_text": self.without_text[lang],
                }
                for lang in self.languages
            },
            "found": [
                {"decision": d, "stage": s, "category": c, "lang": lang, "rows": n}
                for (d, s, c, lang), n in sorted(self.found.items())
            ],
            "verdicts": [
                {"judge": judge, "label": label, "verdicts": n}
                for (judge, label), n in sorted(self.verdicts.items())
            ],
            "failures": dict(sorted(self.failures.items())),
        }


def decide_build(
    step: ToxicityStep,
    policy: Policy | None = None,
    overrides: Mapping[Key, Row] | None = None,
) -> Summary:
    """Apply a policy to the stored verdicts of a build, and write its files.

    Args:
        step: toxicity step of the build.
        policy: the policy; default: the plan's.
        overrides: people's decisions, (id, lang) -> {"decision", "reviewer", "note", "text_sha256"};
            default: those in `review/overrides.parquet`. They override the judges; lang "" means all
            languages of the id. A decision about another text than the row's current one (for lang "", the
            current source text) is counted but not applied.

    Raises:
        ValueError: the policy does not fit the judges, or a judge has no verdict on a row it should read.
    """
    # 1. The policy, people's decisions
    policy = policy or Policy.read(step.plan.policy)
    step.plan.check(step.languages)
    step.plan.check_policy(policy)
    summary = Summary(policy.name, policy.sha, step.languages, list(step.plan.unjudged))
    if overrides is None:
        overrides = read_overrides(step.folder, "toxicity")
    # 2. The outcome of every verdict, then the decision on every row
    used: set[Key] = set()
    about = {
        "policy": json.dumps(to_dict(policy), ensure_ascii=False),
        "policy_sha": policy.sha,
    }
    with ShaTable() as table:
        audit = _audited(step, policy, table, summary)
        write_rows(step.root / "audit.parquet", AUDIT_SCHEMA.with_metadata(about), audit)
        found = _reader(step, policy, table, summary)

        def decided() -> Iterator[Row]:
            for group in rows_by_id(step):
                texts = {row["lang"]: text_of(row) for row in group}
                texts[""] = texts.get(step.source_language)
                for made in decide(found(group), policy):
                    for key in ((made.id, made.lang), (made.id, "")):
                        given = overrides.get(key)
                        if given is not None and _same_text(given, texts[key[1]]):
                            made = overridden(made, {**given, "lang": key[1]})
                            used.add(key)
                            break
                    summary.count(made)
                    yield asdict(made)

        schema = DECISION_SCHEMA.with_metadata(about)
        write_rows(step.root / "decisions.parquet", schema, decided())
    # 3. Counts
    summary.stale = len(overrides.keys() - used)
    summary.check()
    write_json(step.root / "summary.json", summary.to_json())
    return summary


def stored_policy(step: ToxicityStep) -> Policy | None:
    """Return the policy of a build's last decisions, or None."""
    path = step.root / "decisions.parquet"
    if not path.is_file():
        return None
    with parquet_file(path) as file:
        about = file.schema_arrow.metadata or {}
    if b"policy" not in about:
        raise ValueError(
            f"{path}: expected a policy in its metadata, found none: run the step toxicity again"
        )
    return build(Policy, parse_json(about[b"policy"], f"{path}: policy"), str(path))


def _audited(
    step: ToxicityStep, policy: Policy, table: ShaTable, summary: Summary
) -> Iterator[Row]:
    """Yield the rows of the audit; store the outcome of each verdict in `table` under "<judge>/<lang>"."""
    # Process rationale judges first: the judges that they confirm need their outcomes.
    for judge in sorted(step.plan.judges, key=lambda judge: judge.stage != "rationale"):
        assert judge.name is not None
        rule = policy.rule(judge.name, judge.preset)
        by = step.plan.confirmer(judge, policy)
        for verdict in step.verdicts(judge):
            found = outcome(rule, verdict)
            if by is not None:
                found = confirmed(found, _second(table, by, verdict), str(by.name))
            table.set(verdict["input_sha256"], f"{judge.name}/{verdict['lang']}", _pack(found))
            summary.verdicts[judge.name, verdict["label"]] += 1
            summary.failures[judge.name] += verdict["error"] is not None
            yield {**verdict, "decided": found.decided, "reason": found.reason}


def _second(table: ShaTable, by: JudgePlan, verdict: Row) -> Outcome | None:
    if not verdict["rationale"]:
        return None
    return _get(table, sha256_text(verdict["rationale"]), f"{by.name}/")


def _pack(found: Outcome) -> str:
    clean = found.decided == "clean" and found.labels == {"safe"}
    # Nearly all outcomes are clean: store them as "".
    if clean:
        return ""
    return json.dumps([found.decided, found.reason, found.category, sorted(found.labels)])


def _get(table: ShaTable, sha256: str, name: str) -> Outcome | None:
    packed = table.get(sha256, name)
    if packed is None:
        return None
    if not packed:
        return Outcome("clean", f"{name.split('/')[0]}: safe", None, frozenset(["safe"]))
    decided, reason, category, labels = json.loads(packed)
    return Outcome(decided, reason, category, frozenset(labels))


def _same_text(override: Row, text: str | None) -> bool:
    shown = override.get("text_sha256")
    return shown is None or shown == sha256_text(text or "")


def _reader(
    step: ToxicityStep, policy: Policy, table: ShaTable, summary: Summary
) -> Callable[[list[Row]], list[RowOutcomes]]:
    """Return a function from the rows of one id to their findings; rows without a text are only counted."""
    looks = [judge for judge in step.plan.judges if judge.stage == "image"]
    reads = {
        lang: [j for j in step.plan.judges if lang in j.reading(step.languages)]
        for lang in step.languages
    }

    def found(judges: list[JudgePlan], sha256: str, lang: str, what: str) -> Outcome | None:
        known = []
        for judge in judges:
            each = _get(table, sha256, f"{judge.name}/{lang}")
            if each is None:
                raise ValueError(
                    f"{what}: expected a verdict of {judge.name!r}, found none: run the step toxicity of "
                    "`maya data build`, then decide again"
                )
            known.append(each)
        return combine(known, policy.agreement)

    def outcomes(group: list[Row]) -> list[RowOutcomes]:
        made: list[RowOutcomes] = []
        for row in group:
            text, lang = text_of(row), row["lang"]
            if text is None:
                summary.without_text[lang] += 1
                continue
            what = f"row {row['id']!r} ({lang})"
            sha = image_sha(row)
            made.append(
                RowOutcomes(
                    row["id"],
                    lang,
                    lang == step.source_language,
                    found(reads[lang], sha256_text(text), lang, what),
                    found(looks, sha, "", f"the image of {what}") if sha else None,
                )
            )
        return made

    return outcomes


def rows_by_id(step: ToxicityStep) -> Iterator[list[Row]]:
    """Yield the rows of each id together: source rows first, then translations.

    All files are read in parallel, each sorted by id, so that memory holds one id.

    Raises:
        ValueError: rows are not sorted by id, an (id, lang) occurs twice, or see `ToxicityStep.rows_in`.
    """
    # For equal ids, the merge keeps the order of the streams.
    merged = heapq.merge(*map(step.rows_in, step.places()), key=itemgetter("id"))
    last = ""
    for id_, group in groupby(merged, key=itemgetter("id")):
        rows = list(group)
        langs = [row["lang"] for row in rows]
        if id_ < last:
            raise ValueError(
                f"{step.folder}: expected rows sorted by id, found {id_!r} after {last!r}"
            )
        for lang in langs:
            if langs.count(lang) > 1:
                raise ValueError(
                    f"{step.folder}: row {id_!r}: expected it once in {lang}, found it twice"
                )
        last = id_
        yield rows


def format_summary(summary: Summary) -> str:
    """Return the counts as tables: decisions per language, then category by language and stage."""
    head = ["language", "rows", *DECISIONS, "by people", "without text"]
    lines: list[list[Any]] = [
        [
            lang,
            summary.rows[lang],
            *(summary.decisions[lang, name] for name in DECISIONS),
            summary.overrides[lang],
            summary.without_text[lang],
        ]
        for lang in summary.languages
    ]
    sums: list[Any] = [sum(line[n] for line in lines) for n in range(1, len(head))]
    total = ["all", *sums]
    columns = range(1, len(head))
    text = [
        f"policy {summary.policy} ({summary.policy_sha})",
        *text_table([head, *lines, total], right=columns),
    ]
    if summary.unjudged:
        text.append(f"texts not judged: {', '.join(summary.unjudged)}")
    places = sorted({place[:3] for place in summary.found})
    if places:
        rows: list[list[Any]] = [["decision", "stage", "category", *summary.languages, "all"]]
        for decision, stage, category in places:
            counts = [summary.found[decision, stage, category, x] for x in summary.languages]
            rows.append([decision, stage, category, *counts, sum(counts)])
        text += ["", *text_table(rows, right=range(3, len(rows[0])))]
    if summary.stale:
        text.append(
            f"decisions of people about rows or texts that no longer exist: {summary.stale:,}"
        )
    failed = [f"{judge} {n:,}" for judge, n in sorted(summary.failures.items()) if n]
    if failed:
        text.append(
            f"without an answer, left to people (or build with --retry-failed): {', '.join(failed)}"
        )
    return "\n".join(text)
