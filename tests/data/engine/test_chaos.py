"""Test random kills of a whole build with a faulty endpoint: nothing is lost, nothing is done twice."""

import itertools
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from tests.helpers.endpoint_server import Faults, endpoint_process, stats

THINGS = {
    "dog": ("un chien", "un perro"),
    "cat": ("un chat", "un gato"),
    "horse": ("un cheval", "un caballo"),
    "boat": ("un bateau", "un barco"),
    "child": ("un enfant", "un niño"),
    "bird": ("un oiseau", "un pájaro"),
    "train": ("un train", "un tren"),
    "book": ("un livre", "un libro"),
}
PLACES = {
    "near the old bridge": ("près du vieux pont", "cerca del puente viejo"),
    "in the garden": ("dans le jardin", "en el jardín"),
    "on the beach": ("sur la plage", "en la playa"),
    "in front of the house": ("devant la maison", "delante de la casa"),
    "under a big tree": ("sous un grand arbre", "bajo un árbol grande"),
    "beside the river": ("au bord de la rivière", "junto al río"),
}
WHEN = {
    "in the morning": ("le matin", "por la mañana"),
    "in the evening": ("le soir", "por la tarde"),
    "in the snow": ("sous la neige", "bajo la nieve"),
    "in the rain": ("sous la pluie", "bajo la lluvia"),
    "in summer": ("en été", "en verano"),
}


def captions(count: int) -> dict[str, tuple[str, str]]:
    """Return English captions with French and Spanish translations."""
    found = {}
    numbers = itertools.count(1)
    while len(found) < count:
        number = next(numbers)
        for thing, place, when in itertools.product(THINGS, PLACES, WHEN):
            text = f"a {thing} {place} {when}, picture {number}"
            found[text] = tuple(
                f"{THINGS[thing][i]} {PLACES[place][i]} {WHEN[when][i]}, {name} {number}"
                for i, name in enumerate(("photo", "foto"))
            )
    return dict(itertools.islice(found.items(), count))


KILLS = 22
ROWS = 2400


@pytest.mark.slow
def test_random_kills_lose_and_double_nothing(tmp_path):
    truth = captions(ROWS)
    records = [
        {
            "id": f"{n * 7:09d}",
            "image": f"{n}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the image concisely."},
                {"from": "gpt", "value": text},
            ],
        }
        for n, text in enumerate(truth)
    ]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    truths = {
        lang: {text: pair[i] for text, pair in truth.items()} for i, lang in enumerate(("fr", "es"))
    }
    faults = Faults(overloaded=0.03, unavailable=0.02, hang=0.004, reset=0.02, broken_json=0.02)
    with endpoint_process(truths, faults=faults, latency=0.02) as url:
        plan = {
            "name": "chaos",
            "output_dir": str(tmp_path / "build"),
            "source": {
                "kind": "llava",
                "path": str(tmp_path / "captions.json"),
                "language": "en",
                "task": "caption",
            },
            "languages": ["fr", "es"],
            "unit_rows": ROWS // 6,
            "translator": {
                "endpoint": {
                    "base_url": url,
                    "model": "truth",
                    "concurrency": 8,
                    "timeout": 2.0,
                    "backoff": 0.01,
                }
            },
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        command = [
            sys.executable,
            "-m",
            "tests.data.engine.chaos",
            str(tmp_path / "plan.yaml"),
            url,
        ]
        run = subprocess.run(
            [*command, str(KILLS), "20261121"], capture_output=True, text=True, check=False
        )
        asked = stats(url)
    assert run.returncode == 0, run.stderr
    *looks, last = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(looks) == KILLS
    for look in [*looks, last]:
        assert look["unreadable"] == look["wrong_hash"] == []
        assert look["doubled"] == 0
    # Answered rows stay answered.
    assert sorted(look["rows"] for look in looks) == [look["rows"] for look in looks]
    assert last["finished"] == 12
    assert last["rows"] == 2 * ROWS

    for lang in ("fr", "es"):
        files = sorted((tmp_path / "build" / "translate" / lang).glob("*.parquet"))
        out = [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]
        assert [row["id"] for row in out] == [record["id"] for record in records]
        for row in out:
            assert row["status"] in ("ok", "rejected")
            assert row["text"] == (
                truths[lang][row["source_text"]] if row["status"] == "ok" else None
            )
        assert sum(row["status"] == "ok" for row in out) >= 0.98 * ROWS

    # A key needs one good answer. Further requests, except injected faults, were lost by a kill.
    repeated = asked["requests"] - sum(asked["faults"].values()) - 2 * ROWS
    assert 0 <= repeated <= 0.05 * asked["requests"], (repeated, asked["requests"])
