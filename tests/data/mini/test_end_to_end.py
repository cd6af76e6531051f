"""Test the shipped plan on part of the mini dataset: build, publish, train. A benchmark runs it in full."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
FAILURES = ("length", "untranslated", "wrong_language", "refusal", "preface")


@pytest.mark.slow
def test_mini_comes_out_as_people_translated_it_and_trains_by_folder_and_by_name(tmp_path):
    output = tmp_path / "result.json"
    script = ROOT / "tests" / "benchmarks" / "mini_end_to_end.py"
    command = [sys.executable, str(script), "--concepts", "20", "--languages", "fr", "hi"]
    command += ["--steps", "2", "--work", str(tmp_path / "work"), "--output", str(output)]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(output.read_text(encoding="utf-8"))
    counts = result["counts"]
    assert counts["expected"] == counts["ok"] + counts["rejected"] + counts["failed"]
    assert counts["ok"] == counts["clean"] + counts["review"] + counts["flagged"]
    assert counts["flagged"] > 0
    assert counts["failed"] == 0
    assert sum(result["faults_met"].get(name, 0) for name in FAILURES) > 0
    # Only answers that look like a translation to every check may remain.
    kinds = Counter(each["what"] for each in result["differences"])
    assert kinds["other"] == 0
    assert kinds["untranslated"] <= result["faults_met"].get("untranslated", 0)
    assert kinds["foreign"] <= result["faults_met"].get("wrong_language", 0)
    for lang in ("en", "fr", "hi"):
        seen = result["after_review"][lang]
        assert seen["equal"] >= 0.95 * seen["rows"]
    losses = result["training"]["losses"]
    assert losses["folder, all"] == losses["name, all"]
    assert all(len(each) == 2 for each in losses.values())
