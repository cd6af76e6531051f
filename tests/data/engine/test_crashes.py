"""Test crashes at every step of a unit: the next run finishes it, and repeats only lost requests."""

import json
import subprocess
import sys

import pytest

from tests.data.engine.crash_points import ROWS


@pytest.mark.slow
def test_every_crash_point_of_a_unit(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.data.engine.crash_points", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    crashes = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    *crashes, last = crashes
    # 1 session line, 5 answers, their fsyncs; two files with fsync, rename, fsync; the clean-up.
    assert len(crashes) > 15
    for crash in crashes:
        found = crash["found"]
        assert crash["whole"], crash
        assert crash["left"] == [], crash
        assert found["parquet"] in (None, ROWS)
        assert len(set(found["journal"])) == len(found["journal"])
        if crash["finished"]:
            assert crash["asked"] == {}, crash
        else:
            # Rows in the journal are not requested again, and no row is requested twice.
            assert len(crash["asked"]) == ROWS - len(found["journal"]), crash
            assert set(crash["asked"].values()) <= {1}
        if found["manifest"]:
            assert crash["finished"], crash
    stages = {(c["found"]["parquet"] is not None, c["found"]["manifest"]) for c in crashes}
    assert stages == {(False, False), (True, False), (True, True)}
    assert [len(c["found"]["journal"]) for c in crashes[:2]] == [0, 0]
    assert last["finished"]
    assert last["asked"] == {}
