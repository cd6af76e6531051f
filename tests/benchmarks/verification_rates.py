"""Detection and false-alarm rates of the translation checks, measured with inserted failures.

    pip install --no-deps --target PACKAGES kolibri==0.19.5 django==5.2.19 djangorestframework==3.18.3 \
        django-allauth==65.21.1 wagtail==8.0.1
    python tests/benchmarks/verification_rates.py PACKAGES

Clean texts are human translations from English into nine languages: sentences of 30 to 250 characters in the message
catalogues of those packages, and names with keywords from the mini dataset. Half of the sentences calibrate the
lengths. The other half is measured, both unchanged (every flag is a false alarm) and with one inserted failure. The
phrases of prefaces, remarks and refusals are in verification_phrases.yaml, which was written independently of the
checks' lists. Each number has a 95 % interval (Wilson). Writes results/verification_rates.json.
"""

import argparse
import gettext
import importlib.metadata
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "verification_rates.json"
PHRASES = Path(__file__).parent / "verification_phrases.yaml"
sys.path.insert(0, str(ROOT))

from maya_vlm.training.data.checks.plan import HARD, CheckPlan  # noqa: E402
from maya_vlm.training.data.checks.rules import RowChecker  # noqa: E402
from maya_vlm.training.data.translation.worker import TRANSLATED  # noqa: E402
from maya_vlm.training.data.verification.plan import VerificationPlan  # noqa: E402
from maya_vlm.training.data.verification.survey import (  # noqa: E402
    LengthHistogram,
    Miner,
    shares_start,
)
from tests.helpers.languages import MINI  # noqa: E402
from tests.helpers.steps import run_step  # noqa: E402

LANGUAGES = MINI[1:]  # English is the source language
# Language -> its folder in the packages' catalogues.
CATALOGUES = {
    "zh": ("zh_Hans",),
    "es": ("es", "es_ES"),
    "fr": ("fr", "fr_FR"),
    "hi": ("hi", "hi_IN"),
    "bn": ("bn", "bn_BD"),
    "ur": ("ur", "ur_PK"),
}
DISTRIBUTIONS = ("kolibri", "django", "djangorestframework", "django-allauth", "wagtail")
# Most captions have no end mark, and an end mark would make a truncation easy to detect.
_MARKS = ".。।۔"
# Formats, markup and URLs, which sentences about pictures do not have.
_TECHNICAL = re.compile(r"%|[{}<>\n|&_]|http|www\.")
ROWS_OF_THE_PAPER = 4_465_024


def sentences(packages: Path) -> dict[str, list[tuple[str, str]]]:
    """Return per language the pairs of English and translation, each English text once."""
    found: dict[str, dict[str, str]] = {lang: {} for lang in LANGUAGES}
    for lang in LANGUAGES:
        for name in CATALOGUES.get(lang, (lang,)):
            for file in sorted(packages.glob(f"**/locale/{name}/LC_MESSAGES/*.mo")):
                with file.open("rb") as handle:
                    catalogue = gettext.GNUTranslations(handle)._catalog  # type: ignore[attr-defined]
                for key, text in catalogue.items():
                    if isinstance(key, str) and isinstance(text, str):
                        found[lang].setdefault(key.split("\x04")[-1], text)
            folder = packages / "kolibri" / "locale"
            for file in sorted((folder / name / "LC_MESSAGES").glob("*-messages.json")):
                english = json.loads((folder / "en" / "LC_MESSAGES" / file.name).read_text())
                for key, text in json.loads(file.read_text()).items():
                    if key in english:
                        found[lang].setdefault(english[key], text)
    return {
        lang: [
            (source.strip().rstrip(_MARKS), text.strip().rstrip(_MARKS))
            for source, text in sorted(pairs.items())
            if 30 <= len(source.strip()) <= 250
            and text.strip() not in ("", source.strip())
            and not _TECHNICAL.search(source + text)
        ]
        for lang, pairs in found.items()
    }


def names() -> dict[str, list[tuple[str, str]]]:
    """Return per language the pairs of names with keywords, English and translated, from the mini dataset."""
    folder = ROOT / "training/data/mini/texts"

    def read(lang: str) -> dict[str, str]:
        rows = ds.dataset(sorted((folder / lang).glob("test-*.parquet"))).to_table(
            columns=["id", "text", "keywords"]
        )
        return {
            row["id"]: ", ".join(dict.fromkeys([row["text"], *row["keywords"]]))
            for row in rows.to_pylist()
        }

    english = read("en")
    return {
        lang: [(english[key], text) for key, text in sorted(read(lang).items()) if key in english]
        for lang in LANGUAGES
    }


# ------------------------------------------------------------------------------- failures

Failure = Callable[[str, str, str, random.Random, dict[str, list[tuple[str, str]]]], str]
_COMMENTS = yaml.safe_load(PHRASES.read_text(encoding="utf-8"))


def _spaceless(lang: str) -> bool:
    return lang in ("zh", "ja")


def _half_english(source, text, lang, rng, pools):
    words = source.split()
    half = " ".join(words[len(words) // 2 :])
    if _spaceless(lang):
        return text[: len(text) // 2] + half
    parts = text.split()
    return " ".join(parts[: len(parts) // 2]) + " " + half


def _looped_tail(source, text, lang, rng, pools):
    if _spaceless(lang):
        size = rng.randint(2, 6)
        return text + text[-size:] * rng.randint(3, 12)
    words = text.split()
    tail = words[-rng.randint(1, min(4, len(words))) :]
    return " ".join(words + tail * rng.randint(3, 12))


def _cut(share):
    def cut(source, text, lang, rng, pools):
        return text[: max(1, int(share * len(text)))].rstrip()

    return cut


def _another(source, text, lang, rng, pools):
    for _ in range(50):
        other, found = rng.choice(pools[lang])
        if other != source and 0.8 < len(other) / len(source) < 1.25:
            return found
    return found


def _wrong_language(source, text, lang, rng, pools):
    others = [other for other in LANGUAGES if other != lang and pools[other]]
    for _ in range(200):
        other = rng.choice(others)
        # The same sentence in that language if there is one, else another sentence.
        found = dict(pools[other]).get(source) if rng.random() < 0.1 else None
        candidate = found or rng.choice(pools[other])[1]
        if candidate != text:
            return candidate
    return candidate


def _comment(kind, english):
    def comment(source, text, lang, rng, pools):
        phrase = rng.choice(_COMMENTS["en" if english else lang][kind])
        if kind == "refusals":
            return phrase
        return phrase + text if kind == "prefaces" else text + phrase

    return comment


def _brackets(source, text, lang, rng, pools):
    return rng.choice(["〘" + text + "〙", text + "〙", "〘" + text])


FAILURES: dict[str, Failure] = {
    "untranslated": lambda source, text, lang, rng, pools: source,
    "wrong_language": _wrong_language,
    "half_english": _half_english,
    "looped_tail": _looped_tail,
    "cut_at_40": _cut(0.4),
    "cut_at_70": _cut(0.7),
    # The source text with an end mark.
    "cut_at_70_of_a_sentence": _cut(0.7),
    "english_preface": _comment("prefaces", True),
    "english_note": _comment("notes", True),
    "english_refusal": _comment("refusals", True),
    "target_preface": _comment("prefaces", False),
    "target_note": _comment("notes", False),
    "target_refusal": _comment("refusals", False),
    "another_image": _another,
    "brackets": _brackets,
    # The same truncation, reported by the server.
    "cut_with_finish_reason": _cut(0.7),
}
# Failures that need more than one or two words.
SENTENCES_ONLY = {
    "half_english",
    "cut_at_40",
    "cut_at_70",
    "cut_at_70_of_a_sentence",
    "cut_with_finish_reason",
}


# ------------------------------------------------------------------------------- measurement


def wilson(hits: int, n: int) -> dict[str, Any]:
    """Return a share with its 95 % interval."""
    if not n:
        return {"share": None, "n": 0}
    z, p = 1.96, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "share": round(p, 4),
        "n": n,
        "interval": [round(centre - half, 4), round(centre + half, 4)],
    }


def calibrated(pools: dict[str, list[tuple[str, str]]]) -> CheckPlan:
    lengths = {}
    for lang, pairs in pools.items():
        histogram = LengthHistogram()
        for source, text in pairs:
            histogram.add(source, text)
        if bins := histogram.bins():
            lengths[lang] = bins
    return CheckPlan(lengths=lengths)


def measure(
    checker: RowChecker,
    pools: dict[str, list[tuple[str, str]]],
    failures: dict[str, Failure],
    seed: int,
    examples: dict[str, list[list[str]]],
) -> dict[str, Any]:
    """Return the shares with a hard flag and with any flag, per failure and language and for clean texts."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    by_check: dict[str, Counter[str]] = defaultdict(Counter)
    for lang, pairs in pools.items():
        for name, failure in {"clean": None, **failures}.items():
            rng = random.Random(f"{seed} {lang} {name}")
            for source, text in pairs:
                bad = failure(source, text, lang, rng, pools) if failure else text
                given = source + "." if name == "cut_at_70_of_a_sentence" else source
                reason = "length" if name == "cut_with_finish_reason" else "stop"
                flags = checker.check(given, bad, lang, reason)
                count = counts[name][lang]
                count["n"] += 1
                count["hard"] += any(flag.hard for flag in flags)
                count["any"] += bool(flags)
                by_check[name].update(flag.name for flag in flags)
                wrong = any(f.hard for f in flags) if name == "clean" else not flags
                if wrong and len(examples[f"{name}/{lang}"]) < 5:
                    examples[f"{name}/{lang}"].append(
                        [source, bad, *(f"{f.name}: {f.detail}" for f in flags)]
                    )
    result = {}
    for name, languages in counts.items():
        total: Counter[str] = sum(languages.values(), Counter())
        result[name] = {
            "hard": wilson(total["hard"], total["n"]),
            "any": wilson(total["any"], total["n"]),
            "languages": {
                lang: {
                    "n": c["n"],
                    "hard": round(c["hard"] / c["n"], 4),
                    "any": round(c["any"] / c["n"], 4),
                }
                for lang, c in languages.items()
            },
            "checks": dict(by_check[name].most_common()),
        }
    return result


def measure_miner(
    pools: dict[str, list[tuple[str, str]]], share: float, seed: int
) -> dict[str, Any]:
    """Measure the phrase miner on texts of which `share` contain one phrase: the shares of these and of the others that it finds."""
    result = {}
    for kind, end in (("prefaces", False), ("refusals", False), ("notes", True)):
        hit = injected = false = clean = 0
        for lang, pairs in pools.items():
            for number, phrase in enumerate(_COMMENTS[lang][kind][:3]):
                rng = random.Random(f"{seed} {lang} {kind} {number}")
                rows = []
                for index, (source, text) in enumerate(pairs):
                    bad = rng.random() < share
                    if bad:
                        text = (
                            phrase
                            if kind == "refusals"
                            else text + phrase
                            if end
                            else phrase + text
                        )
                    rows.append((str(index), source, text, bad))
                miner = Miner(end=end)
                for _, source, text, _ in rows:
                    miner.count(source, text)
                for key, source, text, _ in rows:
                    miner.look(key, source, text)
                found = {item["text"] for item in miner.found()}
                for _, _, text, bad in rows:
                    flagged = shares_start(text, found, end=end) is not None
                    hit, injected = hit + (flagged and bad), injected + bad
                    false, clean = false + (flagged and not bad), clean + (not bad)
        result[kind] = {"found": wilson(hit, injected), "false": wilson(false, clean)}
    return {"share_of_rows": share, **result}


def _work(folder: str, rounds: int) -> list[tuple[float, float]]:
    """Return the CPU seconds of the survey and of the other parts of the step, after loading language models."""
    from maya_vlm.training.data.verification.step import VerificationStep

    languages = sorted(path.name for path in Path(folder, "translate").iterdir())
    checker = RowChecker("en", languages)
    for lang in languages:
        table = pq.read_table(f"{folder}/translate/{lang}/00000.parquet")
        for row in table.slice(0, 100).to_pylist():
            checker.examine_row(row)
    seconds = []
    for _ in range(rounds):
        shutil.rmtree(Path(folder, "verify"), ignore_errors=True)
        step = VerificationStep(
            VerificationPlan(), Path(folder), source_language="en", languages=languages
        )
        start = time.process_time()
        step.survey()
        surveyed = time.process_time()
        run_step(step)
        seconds.append((surveyed - start, time.process_time() - surveyed))
    return seconds


def measure_speed(
    pools: dict[str, list[tuple[str, str]]], rows: int, rounds: int
) -> dict[str, Any]:
    """Return the rows per CPU second of one process (sorted over rounds), for the paper's seven target languages.

    The whole step is measured: the survey of at most `survey_rows` rows per language, then checks, journal,
    parquet files and manifests of all rows, in units of at most 2,000 rows.
    """
    rng = random.Random(0)
    seven = [lang for lang in LANGUAGES if lang not in ("bn", "ur")]
    characters = []
    with tempfile.TemporaryDirectory() as folder:
        for lang in seven:
            found = []
            for number in range(rows // len(seven)):
                source, text = rng.choice(pools[lang])
                characters.append(len(text))
                found.append(
                    dict.fromkeys(TRANSLATED.names)
                    | {
                        "id": f"{number:09d}",
                        "lang": lang,
                        "text": text,
                        "source_text": source,
                        "source_lang": "en",
                        "status": "ok",
                        "flags": [],
                        "finish_reason": "stop",
                    }
                )
            for unit, start in enumerate(range(0, len(found), 2000)):
                table = pa.Table.from_pylist(found[start : start + 2000], schema=TRANSLATED)
                path = Path(folder, "translate", lang, f"{unit:05d}.parquet")
                source = Path(folder, "source", path.name)
                for file in (path, source):  # the step reads only the name of a source unit
                    file.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, path)
                source.touch()
        with get_context("spawn").Pool(1) as pool:
            seconds = pool.apply(_work, (folder, rounds))
    count = len(characters)
    surveyed = sorted(count / survey for survey, _ in seconds)
    checked = sorted(count / rest for _, rest in seconds)
    middle = len(seconds) // 2
    survey_rows = VerificationPlan().survey_rows * (len(seven) + 1)
    cpu = survey_rows / surveyed[middle] + ROWS_OF_THE_PAPER / checked[middle]
    return {
        "rows": count,
        "mean_characters": round(sum(characters) / count, 1),
        "surveyed_rows_per_cpu_second": [round(rate) for rate in surveyed],
        "rows_per_cpu_second": [round(rate) for rate in checked],
        "rows_of_the_paper": ROWS_OF_THE_PAPER,
        "cpu_minutes_for_the_paper": round(cpu / 60, 1),
        "minutes_for_the_paper_on_2_cores": round(cpu / 2 / 60, 1),
    }


def run(
    packages: Path, *, limit: int = 120, seed: int = 0, rows: int = 14_000, rounds: int = 3
) -> dict[str, Any]:
    """Run all measurements, and return the content of the results file."""
    rng = random.Random(seed)
    everything = sentences(packages)
    for pairs in everything.values():
        rng.shuffle(pairs)
    halves = {lang: len(pairs) // 2 for lang, pairs in everything.items()}
    calibration = {lang: pairs[: halves[lang]] for lang, pairs in everything.items()}
    pools = {lang: pairs[halves[lang] :][:limit] for lang, pairs in everything.items()}
    plan = calibrated(calibration)
    checker = RowChecker("en", LANGUAGES, plan)
    examples: dict[str, list[list[str]]] = defaultdict(list)
    record: dict[str, Any] = {
        "sentences": measure(checker, pools, FAILURES, seed, examples),
        "sentences_before_calibration": measure(
            RowChecker("en", LANGUAGES), pools, {}, seed, defaultdict(list)
        ),
        "miner": [measure_miner(everything, share, seed) for share in (0.02, 0.05)],
    }
    short = names()
    for pairs in short.values():
        rng.shuffle(pairs)
    short_calibration = {lang: pairs[:400] for lang, pairs in short.items()}
    short_pools = {lang: pairs[400 : 400 + limit // 2] for lang, pairs in short.items()}
    record["names"] = measure(
        RowChecker("en", LANGUAGES, calibrated(short_calibration)),
        short_pools,
        {name: failure for name, failure in FAILURES.items() if name not in SENTENCES_ONLY},
        seed,
        defaultdict(list),
    )
    record["speed"] = measure_speed(pools, rows, rounds)
    record["examples"] = {key: value for key, value in examples.items() if value}
    record["setup"] = {
        "seed": seed,
        "rows": {lang: len(pairs) for lang, pairs in pools.items()},
        "calibration_rows": {lang: len(pairs) for lang, pairs in calibration.items()},
        "names": {lang: len(pairs) for lang, pairs in short_pools.items()},
        "checks_key": checker.key,
        "hard": list(HARD),
    }
    return record


def environment(packages: Path) -> dict[str, Any]:
    """Return machine, load, versions and commit."""
    # Imported here, because the measured processes need no torch.
    from maya_vlm.training.common.provenance import provenance

    found = provenance("lingua-language-detector", "pyarrow")
    for package in importlib.metadata.distributions(path=[str(packages)]):
        if package.metadata["Name"].lower() in DISTRIBUTIONS:
            found["versions"][package.metadata["Name"].lower()] = package.version
    return {
        **found,
        "load_average": round(os.getloadavg()[0], 1),
    }


def table(record: dict[str, Any]) -> str:
    lines = [
        f"{'failure':24s} {'n':>6s} {'hard':>6s} {'any':>6s}   "
        + " ".join(f"{x:>5s}" for x in LANGUAGES)
    ]
    for part in ("sentences", "names"):
        lines.append(part)
        for name, found in record[part].items():
            row = " ".join(f"{found['languages'][lang]['any']:5.2f}" for lang in LANGUAGES)
            lines.append(
                f"  {name:22s} {found['any']['n']:6d} {found['hard']['share']:6.3f} {found['any']['share']:6.3f}   {row}"
            )
    for found in record["miner"]:
        for kind in ("prefaces", "refusals", "notes"):
            lines.append(
                f"  miner, {kind} in {found['share_of_rows']:.0%}: found {found[kind]['found']['share']:.3f}, "
                f"false {found[kind]['false']['share']:.4f}"
            )
    speed = record["speed"]
    lines.append(
        f"{speed['rows_per_cpu_second'][len(speed['rows_per_cpu_second']) // 2]:,} rows a CPU second: {ROWS_OF_THE_PAPER:,} rows in "
        f"{speed['minutes_for_the_paper_on_2_cores']} minutes on 2 cores"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", type=Path, help="where pip put the packages")
    parser.add_argument("--limit", type=int, default=120, help="most sentences a language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--speed-only",
        action="store_true",
        help="measure the speed again, keep the rates there are",
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.speed_only:
        record = json.loads(arguments.output.read_text(encoding="utf-8"))
        record["speed"] = measure_speed(sentences(arguments.packages), 14_000, 3)
        record["speed"] |= environment(arguments.packages)
        write(record, arguments.output)
        return
    record = run(arguments.packages, limit=arguments.limit, seed=arguments.seed)
    record = {**environment(arguments.packages), **record}
    write(record, arguments.output)


def write(record: dict[str, Any], output: Path) -> None:
    from maya_vlm.training.common.files import write_json

    write_json(output, record)
    print(table(record))


if __name__ == "__main__":
    main()
