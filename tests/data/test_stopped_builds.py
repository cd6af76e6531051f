"""Test builds of two workers, stopped by signals to the process group, at any time, and twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.helpers.endpoint_server import EndpointServer

TEXTS = {f"A boat number {n} on a lake.": f"Un bateau numéro {n} sur un lac." for n in range(60)}
ROWS = ",".join(
    f'{{"id": "{n:03d}", "conversations": [{{"from": "human", "value": "Describe it."}}, '
    f'{{"from": "gpt", "value": "{text}"}}]}}'
    for n, text in enumerate(TEXTS)
)


def write(folder, url):
    (folder / "rows.json").write_text(f"[{ROWS}]")
    plan = {
        "name": "tiny",
        "output_dir": "./build",
        "source": {"kind": "llava", "path": "./rows.json", "language": "en", "task": "caption"},
        "languages": ["fr"],
        "unit_rows": 10,
        "executor": {"workers": 2},
        "translator": {"endpoint": {"base_url": url, "model": "truth", "concurrency": 1}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def start(plan):
    code = "import sys; from maya_vlm.training.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "data", "build", str(plan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def dataset(folder):
    place = folder / "build" / "dataset"
    return {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_builds_end_in_one_line_and_continue_to_the_same(tmp_path, number):
    chance = random.Random(number)
    with EndpointServer({"fr": TEXTS}, latency=0.05) as server:
        plan = write(tmp_path, server.url)
        whole = start(plan)
        _, errors = whole.communicate(timeout=120)
        assert whole.returncode == 0, errors
        expected = dataset(tmp_path)
        shutil.rmtree(tmp_path / "build")
        for attempt in range(4):
            build = start(plan)
            begun = time.monotonic()
            wait = chance.uniform(2, 9)
            while time.monotonic() - begun < wait and build.poll() is None:
                time.sleep(0.02)
            if build.poll() is None:
                os.killpg(build.pid, number)
            if attempt % 2 and build.poll() is None:
                time.sleep(chance.uniform(0, 1))
                if alive(build.pid):
                    os.killpg(build.pid, number)
            _, errors = build.communicate(timeout=60)
            assert build.returncode in (0, 128 + number, -number), (attempt, errors)
            assert "Traceback" not in errors, (attempt, errors)
            lines = [line for line in errors.replace("\r", "\n").split("\n") if "maya data" in line]
            assert len(lines) <= 1, lines
            deadline = time.monotonic() + 15
            while alive(build.pid):
                assert time.monotonic() < deadline, "a process outlives its parent"
                time.sleep(0.1)
        last = start(plan)
        _, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
    assert dataset(tmp_path) == expected
