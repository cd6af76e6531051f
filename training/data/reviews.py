"""`maya data review DIR`, `maya data policy DIR`: write review sheets of a build, and apply people's decisions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..common.files import write_json
from .plan import plan_of, toxicity_step_of_build
from .review.filled import ReadBack, read_sheet
from .review.sheets import Sheet, write_sheet
from .sources.pictures import Pictures
from .toxicity.decisions import Summary, decide_build
from .toxicity.policy import Policy
from .toxicity.sheets import write_sheets
from .verification.plan import VerificationPlan
from .verification.report import rows_to_review, verify_report


def write_reviews(
    folder: Path,
    *,
    languages: Sequence[str] | None = None,
    rows: int | None = None,
    blur: bool = False,
) -> list[Sheet]:
    """Write one translation sheet per language of a verified build, with pictures if the plan has them.

    Args:
        folder: folder of the build.
        languages: languages of the plan to write sheets for; default: all.
        rows: rows per sheet; default: `verification.review_rows` of the plan.
        blur: blur each picture until it is clicked.

    Raises:
        ValueError: the folder is not a build, the build is not verified, the plan lacks a language,
            or no row is left to review.
    """
    plan = plan_of(folder)
    verification = plan.verification or VerificationPlan()
    if rows is not None:
        if rows < 1:
            raise ValueError(f"--rows: expected at least 1, found {rows}")
        verification = replace(verification, review_rows=rows)
    wanted = list(languages or plan.languages)
    for lang in wanted:
        if lang not in plan.languages:
            raise ValueError(
                f"language {lang!r}: expected a language of the plan ({', '.join(plan.languages)})"
            )
    images = plan.images
    pictures = Pictures(images, follow_links=True) if images is not None else None
    sheets = []
    for lang in wanted:
        asked = rows_to_review(folder, lang, verification)
        if not asked:
            continue
        sheets.append(
            write_sheet(
                folder,
                "translation",
                asked,
                title=f"{plan.name}, translations into {lang}",
                pictures=pictures,
                blur=blur,
            )
        )
    if not sheets:
        raise ValueError(
            f"{folder}: expected rows to review, found none: every row with a text is reviewed"
        )
    return sheets


def read_review(folder: Path, path: Path) -> ReadBack:
    """Read a filled sheet of any kind, and update the report of a verified build.

    Raises:
        ValueError, OSError: see `read_sheet`.
    """
    plan = plan_of(folder)
    found = read_sheet(folder, path)
    if found.kind == "translation" and (folder / "verify" / "report.json").is_file():
        report = verify_report(folder, plan.languages, plan.verification or VerificationPlan())
        write_json(folder / "verify" / "report.json", report)
    return found


def format_read_back(found: ReadBack) -> str:
    decisions = ", ".join(f"{name} {n:,}" for name, n in found.decisions.items()) or "no decisions"
    return (
        f"{found.sheet}: {found.rows:,} rows: {decisions}; {found.undecided:,} left open; "
        f"{found.changed:,} changed an earlier decision; {found.in_force:,} {found.kind} "
        "decisions are now in force"
    )


def apply_policy(
    folder: Path, policy: str | None = None, sheets: bool = False
) -> tuple[Summary, list[Sheet]]:
    """Decide the rows of a build again, from stored verdicts and people's later decisions.

    Args:
        folder: folder of the build.
        policy: file or name of a shipped policy; default: the policy of the plan.
        sheets: also write review sheets.

    Raises:
        ValueError: the folder has no plan with a toxicity section; or see `decide_build`.
    """
    plan = plan_of(folder)
    if plan.toxicity is None:
        raise ValueError(
            f"{folder / 'plan.yaml'}: expected a toxicity section, found none: no verdicts to decide on"
        )
    step = toxicity_step_of_build(plan)
    summary = decide_build(step, Policy.read(policy) if policy is not None else None)
    return summary, write_sheets(step) if sheets else []
