"""Count the results of verification, and select rows for review."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median

from ...rows.parquet import Row
from ..checks.identify import code_of
from ..engine.progress import text_table
from ..review.decisions import ReviewRow, read_overrides
from ..review.sheets import stratified
from .back_translation import back_translations, plain_source, plain_text
from .plan import VerificationPlan
from .rows import final_row, verified_rows
from .survey import LENGTH_BINS, read_survey

_SHOWN_STARTS = 20


def verify_report(folder: Path, languages: Sequence[str], plan: VerificationPlan) -> Row:
    """Return counts per language, with people's decisions applied.

    Keys of each language: "rows"; "ok", "rejected", "failed" (their sum is "rows"); "rejected_by" and
    "flagged" (rejected rows by hard check, accepted rows by soft check); "other_language" (accepted rows
    that identification assigns to another language, by language); "reviewed"; "quality" and
    "back_translation" if the build has them; "starts" and "ends" of the survey.

    Raises:
        ValueError: a unit is not verified.
    """
    return {
        "languages": {lang: _language(folder, lang, plan) for lang in languages},
        "hard": list(plan.checks.hard),
    }


def _language(folder: Path, lang: str, plan: VerificationPlan) -> Row:
    status: Counter[str] = Counter()
    rejected_by: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    others: Counter[str] = Counter()
    reviewed: Counter[str] = Counter()
    scores: list[float] = []
    overrides = read_overrides(folder, "translation")
    for before in verified_rows(folder, lang):
        row, verified = final_row(before, overrides), before["verified"]
        status[row["status"]] += 1
        if row["reviewed"]:
            reviewed[row["reviewed"]] += 1
        elif row["status"] == "rejected":
            # A row that the translation rejected has the flags of its last answer.
            hard = verified["hard"] or [f for f in row["flags"] if f in plan.checks.hard]
            rejected_by.update(hard or ["other"])
        if row["status"] == "ok":
            flagged.update(f for f in verified["flags"] if f not in verified["hard"])
            if verified["lid"] and verified["lid"] != code_of(lang):
                others[verified["lid"]] += 1
        if verified["quality"] is not None:
            scores.append(verified["quality"])
    survey = read_survey(folder, lang) or {}
    found = {
        "rows": status.total(),
        **{name: status[name] for name in ("ok", "rejected", "failed")},
        "rejected_by": dict(rejected_by.most_common()),
        "flagged": dict(flagged.most_common()),
        "other_language": dict(others.most_common()),
        "reviewed": dict(sorted(reviewed.items())),
        "lengths": survey.get("lengths", []),
        "starts": survey.get("starts", [])[:_SHOWN_STARTS],
        "ends": survey.get("ends", [])[:_SHOWN_STARTS],
    }
    assert found["ok"] + found["rejected"] + found["failed"] == found["rows"]
    if scores:
        found["quality"] = {"n": len(scores), "mean": fmean(scores), "median": median(scores)}
    if plan.back_translation is not None:
        path = folder / "back_translation" / lang / "00000.parquet"
        if path.is_file():
            rows = [row["chrf"] for row in back_translations(path)]
            values = [value for value in rows if value is not None]
            found["back_translation"] = {
                "n": len(values),
                "failed": len(rows) - len(values),
                "chrf": fmean(values) if values else None,
                "below": sum(value < plan.back_translation.flag_below for value in values),
                "flag_below": plan.back_translation.flag_below,
            }
    return found


def format_report(report: Row) -> str:
    """Return the counts as a table with one line per language, then the most frequent reasons."""
    head = ["language", "rows", "ok", "rejected", "failed", "flagged", "quality", "chrF++"]
    lines = [head]
    for lang, found in report["languages"].items():
        quality, back = found.get("quality"), found.get("back_translation")
        lines.append(
            [
                lang,
                *(f"{found[name]:,}" for name in ("rows", "ok", "rejected", "failed")),
                f"{sum(found['flagged'].values()):,}",
                f"{quality['mean']:.3f}" if quality else "",
                f"{back['chrf']:.1f}" if back and back["chrf"] is not None else "",
            ]
        )
    used = [n for n in range(len(head)) if n < 6 or any(line[n] for line in lines[1:])]
    text = text_table([[line[n] for n in used] for line in lines], right=range(1, len(used)))
    for title, name in (("rejected by", "rejected_by"), ("flagged, but kept", "flagged")):
        for lang, found in report["languages"].items():
            if found[name]:
                listed = ", ".join(f"{check} {n:,}" for check, n in found[name].items())
                text.append(f"{lang} {title}: {listed}")
    for lang, found in report["languages"].items():
        for where in ("starts", "ends"):
            for item in found[where][:3]:
                text.append(
                    f"{lang}: {item['rows']:,} texts with unrelated sources "
                    f"{'begin' if where == 'starts' else 'end'} with {item['text']!r}"
                )
    return "\n".join(text)


def rows_to_review(folder: Path, lang: str, plan: VerificationPlan) -> list[ReviewRow]:
    """Return `plan.review_rows` rows of a language, equally many of each flag and each length of clean rows.

    Rows without a text, and rows that people have decided about, are excluded.
    """
    back: dict[str, float | None] = {}
    path = folder / "back_translation" / lang / "00000.parquet"
    if plan.back_translation is not None and path.is_file():
        back = {row["id"]: row["chrf"] for row in back_translations(path)}

    def stratum(row: Row) -> str:
        if row["verified"]["flags"]:
            return row["verified"]["flags"][0]
        chrf = back.get(row["id"])
        if chrf is not None and plan.back_translation and chrf < plan.back_translation.flag_below:
            return "back_translation"
        size = max(n for n in LENGTH_BINS if n <= len(plain_source(row)))
        return f"clean, source of {size} characters or more"

    def candidates() -> Iterator[Row]:
        decided = read_overrides(folder, "translation")
        for row in verified_rows(folder, lang):
            has_text = row["text"] is not None or row["turns"] is not None
            if has_text and (row["id"], lang) not in decided:
                yield row

    chosen = stratified(candidates(), plan.review_rows, stratum, plan.seed)
    return [
        ReviewRow(
            id=row["id"],
            lang=lang,
            text=row["text"] if row["turns"] is None else plain_text(row["turns"]),
            source=plain_source(row),
            source_lang=row["source_lang"],
            image=row["image"],
            reason=_reason(row, back.get(row["id"])),
        )
        for row in chosen
    ]


def _reason(row: Row, chrf: float | None) -> str:
    verified = row["verified"]
    reasons = [
        f"{flag}: {detail}"
        for flag, detail in zip(verified["flags"], verified["details"], strict=True)
    ]
    if verified["hard"]:
        reasons.insert(0, "rejected")
    if verified["quality"] is not None:
        reasons.append(f"quality {verified['quality']:.2f}")
    if chrf is not None:
        reasons.append(f"back-translation chrF++ {chrf:.0f}")
    return "; ".join(reasons) or "drawn at random"
