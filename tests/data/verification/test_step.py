"""Test the verification step: each row is accepted, rejected or failed, and nothing else happens."""

import asyncio
import json
import random
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from maya_vlm.training.cli import main
from maya_vlm.training.common.endpoint import EndpointPlan
from maya_vlm.training.data.checks.plan import CheckPlan
from maya_vlm.training.data.engine.unit_files import check_unit
from maya_vlm.training.data.engine.units import run_units
from maya_vlm.training.data.review.filled import read_sheet
from maya_vlm.training.data.review.sheets import write_sheet
from maya_vlm.training.data.translation.worker import TRANSLATED
from maya_vlm.training.data.verification.back_translation import BackTranslationPlan
from maya_vlm.training.data.verification.plan import VerificationPlan
from maya_vlm.training.data.verification.quality import QualityPlan, QualityScorer
from maya_vlm.training.data.verification.report import format_report, rows_to_review
from maya_vlm.training.data.verification.rows import VERIFIED, final_rows
from maya_vlm.training.data.verification.step import VerificationStep
from maya_vlm.training.data.verification.survey import (
    LengthHistogram,
    Miner,
    shares_start,
    starts,
)
from maya_vlm.training.data.verification.worker import VerifyWorker
from tests.helpers.endpoint_server import EndpointServer
from tests.helpers.steps import run_step

THINGS = {
    "dog": "chien", "house": "maison", "tree": "arbre", "garden": "jardin", "boat": "bateau",
    "horse": "cheval", "bridge": "pont", "table": "table", "window": "fenêtre", "flower": "fleur",
}  # fmt: skip
PLACES = {
    "in the street": "dans la rue", "near the river": "près de la rivière",
    "under the tree": "sous les feuilles", "behind the school": "derrière une école",
    "on the beach": "sur la plage", "in front of the church": "devant une vieille église",
}  # fmt: skip


def captions():
    """Return 60 pairs with varied beginnings."""
    pairs = []
    for n, (thing, chose) in enumerate(THINGS.items()):
        for m, (place, lieu) in enumerate(PLACES.items()):
            if (n + m) % 2:
                pairs.append((f"{place}, a {thing} of {n} years", f"{lieu}, {chose} de {n} ans"))
            else:
                pairs.append((f"{thing} number {n} {place}", f"{chose} numéro {n} {lieu}"))
    return pairs


def translated(pairs, lang="fr", **changes):
    rows = []
    for n, (source, text) in enumerate(pairs):
        row = dict.fromkeys(TRANSLATED.names) | {
            "id": f"{n:06d}", "lang": lang, "task": "caption", "text": text, "source_text": source,
            "source_lang": "en", "status": "ok", "flags": [], "finish_reason": "stop",
            "model": "m", "attempts": 1,
        }  # fmt: skip
        rows.append(row | changes)
    return rows


def build(folder, rows, lang="fr", unit_rows=20):
    """Write a build's folder as the translation leaves it, without manifests, because tests edit it."""
    for number, start in enumerate(range(0, len(rows), unit_rows)):
        table = pa.Table.from_pylist(rows[start : start + unit_rows], schema=TRANSLATED)
        for place in ("source", f"translate/{lang}"):
            path = folder / place / f"{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
    return folder


def step(folder, plan=None, languages=("fr",)):
    plan = plan or VerificationPlan()
    return VerificationStep(plan, folder, source_language="en", languages=list(languages))


def finals(folder, lang="fr"):
    return {row["id"]: row for row in final_rows(folder, lang)}


@pytest.fixture
def folder(tmp_path):
    rows = translated(captions())
    rows[3]["text"] = rows[3]["source_text"]
    rows[4] |= {"text": "Voici la traduction : " + rows[4]["text"]}
    rows[5] |= {"text": None, "status": "rejected", "flags": ["loop"], "reasons": "loop: again"}
    rows[6] |= {"text": None, "status": "failed", "reasons": "HTTP 400", "finish_reason": None}
    rows[7] |= {"finish_reason": "length"}
    return build(tmp_path, rows)


class TestStep:
    def test_accepts_and_rejects(self, folder):
        run_step(step(folder))
        rows = finals(folder)
        assert len(rows) == 60
        assert {k for k, row in rows.items() if row["status"] == "rejected"} == {
            f"{n:06d}" for n in (3, 4, 5, 7)
        }
        assert rows["000003"]["reasons"].startswith("copy: ")
        assert "preface" in rows["000004"]["flags"]
        assert rows["000005"]["reasons"] == "loop: again"
        assert rows["000007"]["reasons"] == "finish_reason: length"
        assert (rows["000006"]["status"], rows["000006"]["reasons"]) == ("failed", "HTTP 400")
        for row in rows.values():
            assert (row["text"] is None) == (row["status"] != "ok")
            assert row["status"] != "ok" or row["reasons"] is None

    def test_report_adds_up(self, folder):
        one = step(folder)
        run_step(one)
        report = one.report()
        found = report["languages"]["fr"]
        assert (found["rows"], found["ok"], found["rejected"], found["failed"]) == (60, 55, 4, 1)
        assert found["rejected_by"]["loop"] == found["rejected_by"]["finish_reason"] == 1
        assert json.loads((folder / "verify/report.json").read_text()) == report
        table = format_report(report)
        assert "fr          60  55         4       1" in table
        assert "copy 1" in table

    def test_twice_is_once(self, folder):
        run_step(step(folder))
        before = {p: p.read_bytes() for p in (folder / "verify").rglob("*.parquet")}
        run_step(step(folder))
        assert before == {p: p.read_bytes() for p in (folder / "verify").rglob("*.parquet")}
        assert len(before) == 3

    def test_other_checks_or_rows_verify_again(self, folder):
        run_step(step(folder))
        key = step(folder).worker("verify/fr").key
        soft = VerificationPlan(checks=CheckPlan(hard=()))
        assert step(folder, soft).worker("verify/fr").key != key
        run_step(step(folder, soft))
        assert sum(row["status"] == "rejected" for row in finals(folder).values()) == 1
        rows = translated(captions())
        build(folder, rows)
        again = step(folder)
        again.survey()
        unit = folder / "translate/fr/00000.parquet"
        assert isinstance(
            check_unit(again.worker("verify/fr").key, unit, folder / "verify/fr/00000.parquet"), str
        )
        with pytest.raises(
            ValueError, match="translated again after verification: run the step verify"
        ):
            finals(folder)
        run_step(again)
        assert all(row["status"] == "ok" for row in finals(folder).values())

    def test_the_report_reads_every_unit_once(self, folder, monkeypatch):
        one = step(folder)
        run_step(one)
        seen = []
        opened = pq.ParquetFile

        def counted(path, **options):
            seen.append(path)
            return opened(path, **options)

        monkeypatch.setattr(pq, "ParquetFile", counted)
        one.report()
        assert len(seen) == len(set(seen)) == 6

    def test_a_plan_of_nothing_is_refused(self):
        for name in ("calibration_rows", "survey_rows", "review_rows"):
            with pytest.raises(ValueError, match=rf"verification: {name}: expected 1 or more"):
                VerificationPlan(**{name: 0})

    def test_norwegian_is_no_other_language(self, tmp_path):
        text = "En hund løper i gaten ved siden av et gammelt hus av tre"
        source = "A dog runs in the street beside an old house made of wood"
        build(tmp_path, translated([(source, text)] * 3, "no"), "no")
        one = step(tmp_path, languages=("no",))
        run_step(one)
        found = one.report()["languages"]["no"]
        assert (found["ok"], found["other_language"]) == (3, {})

    def test_what_is_missing_is_said(self, folder):
        with pytest.raises(
            ValueError, match="expected source units, found none: run the step source first"
        ):
            run_step(step(folder / "translate"))
        with pytest.raises(
            ValueError, match=r"expected 3 units translated into es, found 3 missing"
        ):
            run_step(step(folder, languages=("fr", "es")))
        with pytest.raises(ValueError, match="expected a survey of fr"):
            step(folder).worker("verify/fr")
        with pytest.raises(ValueError, match="expected a verified unit"):
            finals(folder)
        with pytest.raises(ValueError, match=r"language 'am' cannot be identified"):
            VerifyWorker(VerificationPlan(), "am")
        worker = VerifyWorker(VerificationPlan(), "es")
        with pytest.raises(ValueError, match=r"verify/es: row '000000': lang: expected 'es'"):
            asyncio.run(worker.process(translated(captions())))

    def test_conversations(self, tmp_path):
        turns = [
            {"role": "user", "content": "<image>\nWhat do you see in this picture?"},
            {"role": "assistant", "content": "A brown dog is running in the garden."},
        ]
        good = [
            {"role": "user", "content": "<image>\nQue voyez-vous sur cette image ?"},
            {"role": "assistant", "content": "Un chien brun court dans le jardin."},
        ]
        rows = translated([(json.dumps(turns), None)] * 2)
        rows[0]["turns"], rows[1]["turns"] = good, [good[0], turns[1]]
        build(tmp_path, rows)
        run_step(step(tmp_path))
        found = finals(tmp_path)
        assert found["000000"]["turns"] == good
        assert found["000001"]["turns"] is None
        assert "turn 2" in found["000001"]["reasons"]


class TestSurvey:
    def test_lengths_are_calibrated_on_the_build(self, tmp_path):
        pairs = captions() * 5
        # In this build, French is twice as long as usual.
        long = [(source, f"{text} et {text[::-1]}") for source, text in pairs]
        build(tmp_path, translated(long), unit_rows=200)
        one = step(tmp_path)
        bins = one.survey()["fr"]["lengths"]
        assert bins[0]["least"] == 0
        assert all(b["median"] > 0.6 for b in bins)
        assert sum(b["rows"] for b in bins) == 300
        run_step(one)
        checked = pq.read_table(tmp_path / "verify/fr/00000.parquet").to_pylist()
        assert all(abs(row["length_z"]) < 3 for row in checked)
        # Too few rows to calibrate.
        few = VerificationPlan(calibration_rows=301)
        assert step(tmp_path, few).survey()["fr"]["lengths"] == []

    def test_outliers_do_not_move_the_lengths(self):
        assert LengthHistogram().bins() == []
        clean, dirty = LengthHistogram(), LengthHistogram()
        for n in range(400):
            source, text = "x" * (20 + n % 40), "y" * (22 + n % 43)
            clean.add(source, text)
            dirty.add(source, text * 20 if n % 20 == 0 else text)
        for a, b in zip(clean.bins(), dirty.bins(), strict=True):
            assert abs(a.median - b.median) < 0.05
            assert b.spread < 2 * a.spread

    @pytest.mark.parametrize("end", [False, True])
    def test_the_miner_finds_a_phrase_that_has_nothing_to_do_with_its_sources(self, end):
        pairs = captions() * 3
        phrase = "maneno mengine kabisa"
        rows, carriers = [], set(random.Random(0).sample(range(len(pairs)), 20))
        for n, (source, text) in enumerate(pairs):
            if n in carriers:
                text = f"{text} {phrase}" if end else f"{phrase} {text}"
            rows.append((str(n), source, text))
        miner = Miner(end=end)
        for _, source, text in rows:
            miner.count(source, text)
        for row in rows:
            miner.look(*row)
        found = miner.found()
        assert found[0]["text"] == phrase
        assert found[0]["rows"] == 20
        caught = {i for i, _, text in rows if shares_start(text, {phrase}, end=end)}
        assert caught == {str(n) for n in carriers}

    def test_what_many_sources_begin_with_is_not_suspicious(self):
        # "a photo of" begins half of the sources, and "une photo de" their translations.
        pairs = [("a photo of " + a, "une photo de " + b) for a, b in captions()] + captions()
        miner = Miner()
        for source, text in pairs:
            miner.count(source, text)
        for n, (source, text) in enumerate(pairs):
            miner.look(str(n), source, text)
        assert miner.counts["une photo de"] == 60
        assert miner.found() == []

    def test_memory_of_the_miner_is_bounded(self):
        miner = Miner(capacity=500)
        for n in range(3000):
            miner.count(f"source {n}", f"preface common {n} and {n + 1} other words {n}")
        assert len(miner.counts) <= 500 + 8
        assert miner.counts["preface common"] + miner._floor == 3000

    def test_starts_without_spaces(self):
        assert starts("以下是中文翻译这是一只猫") == ["以下是", "以下是中文"]
        assert starts("une photo de mon chien noir") == ["une", "une photo", "une photo de"]
        assert starts("une photo de chien", end=True) == ["de chien"]
        assert starts("chien") == []

    def test_a_shared_start_is_a_soft_flag(self, tmp_path):
        rows = translated(captions() * 3)
        for row in random.Random(0).sample(rows, 20):
            row["text"] = "alors je dirais " + row["text"]
        build(tmp_path, rows, unit_rows=90)
        one = step(tmp_path)
        run_step(one)
        report = one.report()["languages"]["fr"]
        assert report["starts"][0]["text"] == "alors je dirais"
        assert report["flagged"]["same_start"] == 20
        assert report["ok"] == 180
        assert "20 texts with unrelated sources begin with 'alors je dirais'" in format_report(
            one.report()
        )


SCORER = """
    import json, sys
    print(json.dumps({"ready": "tiny 1.0"}), flush=True)
    rows = []
    for line in sys.stdin:
        if line.strip():
            rows.append(json.loads(line))
            continue
        for row in rows:
            answer = {"id": row["id"], "score": 1 - abs(len(row["text"]) / len(row["source"]) - 1)}
            print(json.dumps(BROKEN(row, answer)), flush=True)
        rows = []
"""


def scorer(tmp_path, broken="answer", **options):
    path = tmp_path / "scorer.py"
    code = textwrap.dedent(SCORER).replace("BROKEN(row, answer)", broken)
    path.write_text(code)
    return QualityPlan([sys.executable, str(path)], "tiny", batch_rows=7, **options)


async def score(plan, rows):
    async with QualityScorer(plan) as one:
        return one.model, await one.score(rows)


ROWS = [
    {"id": str(n), "source_lang": "en", "lang": "fr", "source": "a" * 10, "text": "b" * n}
    for n in range(1, 21)
]


class TestQuality:
    def test_scores_in_order(self, tmp_path):
        model, scores = asyncio.run(score(scorer(tmp_path), ROWS))
        assert model == "tiny 1.0"
        assert scores[9] == 1.0
        assert scores[0] == pytest.approx(0.1)
        assert len(scores) == 20

    def test_long_texts_do_not_block_the_pipes(self, tmp_path):
        rows = [{**row, "text": "b" * 100_000} for row in ROWS]
        plan = scorer(tmp_path, '{**answer, "padding": "x" * 100_000}')
        assert len(asyncio.run(score(plan, rows))[1]) == 20

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ("exit(3)", "ended with status 3 before it answered"),
            ('{"id": "x", "score": 1}', "expected the answer of row '1'"),
            ('{**answer, "score": float("nan")}', "row '1': expected a score"),
            ('{**answer, "score": "good"}', "row '1': expected a score"),
            ("[1]", "expected a JSON object a line"),
            ("__import__('time').sleep(60)", "expected an answer within 1 s"),
        ],
    )
    def test_a_broken_program_ends_the_run(self, tmp_path, broken, message):
        with pytest.raises((OSError, ValueError), match=message) as error:
            asyncio.run(score(scorer(tmp_path, broken, timeout=1), ROWS))
        assert "scorer.py" in str(error.value)

    @pytest.mark.parametrize(
        "odd",
        ['"x\x1b[2J"', "None", '{"id": row["id"], "score": float("nan")}', '{"id": row["id"]}',
         '{"id": row["id"], "score": 10**400}', '{"id": row["id"], "score": True}',
         r'{"id": row["id"], "score": "\ud800"}', '[[[[' * 20 + ']]]]' * 20],
    )  # fmt: skip
    def test_an_odd_answer_is_that_of_one_row(self, tmp_path, odd):
        broken = f'{odd} if row["id"] == "3" else answer'
        _, scores = asyncio.run(score(scorer(tmp_path, broken), ROWS))
        assert [n for n, each in enumerate(scores, 1) if each is None] == [3]

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("print('[' * 200_000, flush=True)", "expected .*ready.* first.*nested deeper"),
            (
                "sys.stdout.write('x' * 30_000_000); sys.stdout.flush(); time.sleep(60)",
                "found a longer one",
            ),
            (
                "import os; os.fork(); print('x' * 30_000_000, flush=True); time.sleep(60)",
                "found a longer one",
            ),
            ("print('null', flush=True); time.sleep(60)", "expected .*ready.* first"),
            ("print('\x1b[2J', flush=True)", "expected .*ready.* first"),
            ("time.sleep(60)", "expected an answer within 1 s"),
        ],
    )
    def test_a_program_that_begins_with_nonsense_is_ended(self, code, message):
        plan = QualityPlan([sys.executable, "-c", f"import sys, time; {code}"], "tiny", timeout=1)
        with pytest.raises((OSError, ValueError), match=message) as error:
            asyncio.run(score(plan, ROWS))
        assert str(error.value).isprintable()

    def test_a_program_that_is_not_there(self, tmp_path):
        with pytest.raises(OSError, match="expected a program that starts, found '/no/such'"):
            asyncio.run(score(QualityPlan(["/no/such"], "x"), ROWS))
        with pytest.raises(ValueError, match="expected a program"):
            QualityPlan([], "x")

    def test_an_error_of_the_step_reaches_the_program(self, tmp_path, monkeypatch):
        """Otherwise the scorer would wait for the program, as after a normal end."""
        left = []
        leave = QualityScorer.__aexit__

        async def seen(self, kind=None, *error):
            left.append(kind)
            await leave(self, kind, *error)

        monkeypatch.setattr(QualityScorer, "__aexit__", seen)

        async def fails():
            async with VerifyWorker(VerificationPlan(quality=scorer(tmp_path)), "fr"):
                raise KeyError("a fault")

        with pytest.raises(KeyError, match="a fault"):
            asyncio.run(fails())
        assert left == [KeyError]

    def test_in_the_step(self, folder, tmp_path):
        broken = 'answer if row["id"] != "000010" else {"id": row["id"], "error": "too long"}'
        quality = scorer(tmp_path, broken, flag_below=0.6)
        one = step(folder, VerificationPlan(quality=quality))
        run_step(one)
        rows = finals(folder)
        # Rejected rows and rows without a text are not scored.
        scored = {k for k, row in rows.items() if row["quality"] is not None}
        assert scored == {k for k, row in rows.items() if row["status"] == "ok"} - {"000010"}
        assert "quality_failed" in rows["000010"]["flags"]
        for row in rows.values():
            if row["quality"] is not None:
                assert ("quality" in row["flags"]) == (row["quality"] < 0.6)
        assert one.report()["languages"]["fr"]["quality"]["n"] == 54

    def test_a_share_is_the_same_rows_every_time(self, folder, tmp_path):
        plan = VerificationPlan(quality=scorer(tmp_path, share=0.5))
        run_step(step(folder, plan))
        scored = {k for k, row in finals(folder).items() if row["quality"] is not None}
        assert 10 < len(scored) < 45
        # The key depends on the model, not on the program's path.
        key = step(folder, plan).worker("verify/fr").key
        moved = VerificationPlan(quality=QualityPlan(["elsewhere"], "tiny", share=0.5))
        other = VerificationPlan(quality=QualityPlan(["elsewhere"], "big", share=0.5))
        assert step(folder, moved).worker("verify/fr").key == key
        assert step(folder, other).worker("verify/fr").key != key

    def test_the_shipped_program_speaks_the_protocol(self, tmp_path):
        """Uses a stand-in for the comet package, whose weights tests cannot load."""
        (tmp_path / "comet.py").write_text(
            textwrap.dedent(
                """
                import types
                print("noise on standard output")
                def download_model(name): return "path of " + name
                class Model:
                    def predict(self, data, batch_size, gpus, progress_bar):
                        print("more noise")
                        return types.SimpleNamespace(scores=[len(d["mt"]) / len(d["src"]) for d in data])
                def load_from_checkpoint(path):
                    assert path == "path of Unbabel/wmt22-cometkiwi-da"
                    return Model()
                """
            )
        )
        import maya_vlm.training.data

        program = Path(maya_vlm.training.data.__file__).parent / "verification/scorers/cometkiwi.py"
        plan = QualityPlan(
            [sys.executable, str(program), "--gpus", "0"],
            "Unbabel/wmt22-cometkiwi-da",
            environment={"PYTHONPATH": str(tmp_path)},
        )
        model, scores = asyncio.run(score(plan, ROWS))
        assert model == "Unbabel/wmt22-cometkiwi-da"
        assert scores == [n / 10 for n in range(1, 21)]


class TestBackTranslation:
    def test_a_sample_is_translated_back(self, folder):
        truths = {"en": {text: source for source, text in captions()}}
        # The translator returns another caption for one row.
        wrong = captions()[20][1]
        truths["en"][wrong] = "something else entirely, quite another thing"
        with EndpointServer(truths) as server:
            back = BackTranslationPlan(EndpointPlan(server.url, "truth", backoff=0.01), rows=40)
            plan = VerificationPlan(back_translation=back)
            one = step(folder, plan)
            run_step(one)
            assert server.requests == 40
            found = one.report()["languages"]["fr"]["back_translation"]
            run_step(one)
            assert server.requests == 40
        rows = pq.read_table(folder / "back_translation/fr/00000.parquet").to_pylist()
        assert found["n"] == len(rows) == 40
        verified = finals(folder)
        assert all(verified[row["id"]]["status"] == "ok" for row in rows)
        by_id = {row["id"]: row["chrf"] for row in rows}
        assert all(chrf == 100 for key, chrf in by_id.items() if key != "000020")
        if "000020" in by_id:
            assert by_id["000020"] < 30
            assert found["below"] == 1

    def test_an_endpoint_that_refuses_a_row_fails_that_row(self, folder):
        with EndpointServer({"en": {}}) as server:
            back = BackTranslationPlan(EndpointPlan(server.url, "truth", max_attempts=2), rows=5)
            one = step(folder, VerificationPlan(back_translation=back))
            run_step(one)
            found = one.report()["languages"]["fr"]["back_translation"]
        assert (found["n"], found["failed"], found["chrf"]) == (0, 5, None)


class TestPeopleWin:
    def test_over_checks(self, folder):
        run_step(step(folder))
        asked = rows_to_review(folder, "fr", VerificationPlan(review_rows=1000))
        # All rows with a text; the translation rejected one row and failed at one.
        assert len(asked) == 58
        reasons = {row.id: row.reason for row in asked}
        assert reasons["000003"].startswith("rejected; copy: ")
        assert reasons["000000"] == "drawn at random"
        self.decide(folder, asked, {"000003": "accept", "000000": "reject"})
        rows = finals(folder)
        assert (rows["000003"]["status"], rows["000003"]["reviewed"]) == ("ok", "accept")
        assert rows["000003"]["text"] == captions()[3][0]
        assert (rows["000000"]["status"], rows["000000"]["text"]) == ("rejected", None)
        assert rows["000000"]["reasons"] == "review: a note"
        report = step(folder).report()["languages"]["fr"]
        assert report["reviewed"] == {"accept": 1, "reject": 1}
        assert report["ok"] + report["rejected"] + report["failed"] == 60
        # Reviewed rows are not asked again.
        again = rows_to_review(folder, "fr", VerificationPlan(review_rows=1000))
        assert len(again) == 56

    def test_not_about_another_text(self, folder):
        run_step(step(folder))
        asked = rows_to_review(folder, "fr", VerificationPlan(review_rows=1000))
        self.decide(folder, asked, {"000000": "reject", "000001": "reject"})
        rows = translated(captions())
        rows[0]["text"] = "une autre traduction du même texte"
        build(folder, rows)
        run_step(step(folder))
        assert finals(folder)["000000"]["reviewed"] is None
        assert finals(folder)["000001"]["reviewed"] == "reject"

    def test_a_sheet_has_every_kind_of_row(self, folder):
        run_step(step(folder))
        asked = rows_to_review(folder, "fr", VerificationPlan(review_rows=12))
        assert len(asked) == 12
        ids = {row.id for row in asked}
        assert {"000003", "000004", "000007"} <= ids

    @staticmethod
    def decide(folder, asked, decisions):
        sheet = write_sheet(folder, "translation", asked)
        lines = sheet.csv.read_text(encoding="utf-8-sig").split("\n")
        filled = [lines[0]]
        for line, row in zip(lines[1:], asked, strict=False):
            word = decisions.get(row.id, "")
            filled.append(line.removesuffix('"","",""') + f'"{word}","Ana","a note"')
        path = folder / "filled.csv"
        path.write_text("\n".join(filled))
        assert read_sheet(folder, path).undecided == len(asked) - len(decisions)


def test_schema_is_the_engines(folder):
    assert VERIFIED.names[:2] == ["id", "lang"]
    worker = VerifyWorker(VerificationPlan(), "fr")
    units = [(folder / "translate/fr/00000.parquet", folder / "out/00000.parquet")]
    assert run_units(worker, units)[0].counts == {"failed": 1, "ok": 15, "rejected": 4}


def test_from_plan_to_people_by_the_command(tmp_path, capsys):
    """`maya data build` verifies; `maya data review` writes sheets with pictures, and reads them."""
    pairs = captions()[:12]
    (tmp_path / "images").mkdir()
    for n in range(11):
        Image.new("RGB", (32, 24), (20 * n, 0, 0)).save(tmp_path / f"images/{n}.jpg")
    (tmp_path / "images/11.jpg").write_bytes(b"no picture")
    records = [
        {
            "id": f"{n:06d}",
            "image": f"{n}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the image concisely."},
                {"from": "gpt", "value": source},
            ],
        }
        for n, (source, _) in enumerate(pairs)
    ]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    truth = dict(pairs)
    truth[pairs[2][0]] = pairs[2][0]
    with EndpointServer({"fr": truth, "en": {b: a for a, b in pairs}}) as server:
        endpoint = {"base_url": server.url, "model": "truth", "backoff": 0.01}
        plan = {
            "name": "small",
            "output_dir": str(tmp_path / "build"),
            "source": {
                "kind": "llava",
                "path": str(tmp_path / "captions.json"),
                "images": str(tmp_path / "images"),
                "language": "en",
                "task": "caption",
            },
            "languages": ["fr"],
            "unit_rows": 5,
            "translator": {"endpoint": endpoint},
            "verification": {
                "checks": {"length_z": 4.0},
                "back_translation": {"endpoint": endpoint, "rows": 4},
            },
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        assert main(["data", "build", str(tmp_path / "plan.yaml")]) == 0
        asked = server.requests
        assert main(["data", "build", str(tmp_path / "plan.yaml")]) == 0
        assert server.requests == asked
    printed = capsys.readouterr().out
    assert "fr rejected by: copy 1" in printed
    assert "chrF++" in printed
    folder = tmp_path / "build"
    assert main(["data", "review", str(folder), "--rows", "20", "--blur"]) == 0
    assert "11 rows to review: " in capsys.readouterr().out
    page = (folder / "review/translation-1.html").read_text()
    assert page.count('class="blurred"') == 10
    assert "no picture: Cannot read" in page
    sheet = folder / "review/translation-1.csv"
    filled = sheet.read_text(encoding="utf-8-sig").replace('"","",""', '"reject","Ana","odd"', 1)
    sheet.with_name("filled.csv").write_text(filled)
    assert main(["data", "review", str(folder), "--read", str(sheet.with_name("filled.csv"))]) == 0
    assert "11 rows: reject 1; 10 left open; 0 changed" in capsys.readouterr().out
    report = json.loads((folder / "verify/report.json").read_text())["languages"]["fr"]
    assert (report["ok"], report["rejected"], report["reviewed"]) == (10, 2, {"reject": 1})
    with pytest.raises(ValueError, match="expected units translated into es"):
        finals(folder, "es")
    for arguments, message in (
        ([str(tmp_path / "images")], "expected the output_dir of `maya data build`"),
        ([str(folder), "--languages", "de"], "language 'de': expected a language of the plan (fr)"),
        ([str(folder), "--rows", "0"], "--rows: expected at least 1"),
        ([str(folder), "--read", str(tmp_path / "captions.json")], "expected the columns"),
    ):
        assert main(["data", "review", *arguments]) == 2
        assert message in capsys.readouterr().err
