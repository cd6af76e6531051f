"""Test `maya data build` and `validate`: plans are checked, steps continue, failures give one line."""

import json
import os
import signal

import filelock
import pyarrow.parquet as pq
import pytest
import yaml

from maya_vlm.training.cli import main
from maya_vlm.training.common.schema import build as from_mapping
from maya_vlm.training.data.plan import load_plan, make_worker, write_plan
from maya_vlm.training.data.sources.plan import SourcePlan
from tests.helpers.endpoint_server import EndpointServer

CAPTIONS = {
    "a dog in the garden in the morning": "un chien dans le jardin le matin",
    "a cat under a big tree in summer": "un chat sous un grand arbre en été",
    "a bird beside the river in the rain": "un oiseau au bord de la rivière sous la pluie",
}


ETHIOPIC = {"am": ["ethiopic"], "ti": ["ethiopic"]}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes captions and a plan for an endpoint, and returns the plan's file."""
    rows = [
        {
            "id": f"00{n}",
            "image": f"{n}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": text},
            ],
        }
        for n, text in enumerate(CAPTIONS)
    ]
    (tmp_path / "captions.json").write_text(json.dumps(rows))

    def write(url="http://127.0.0.1:1", **changes):
        plan = {
            "name": "tiny",
            "output_dir": "./build",
            "source": {
                "kind": "llava",
                "path": "./captions.json",
                "language": "en",
                "task": "caption",
            },
            "languages": ["fr"],
            "unit_rows": 2,
            "translator": {
                "endpoint": {
                    "base_url": url,
                    "model": "truth",
                    "concurrency": 2,
                    "max_attempts": 2,
                    "backoff": 0.01,
                }
            },
        }
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = plan
            for parent in parents:
                node = node[parent]
            if value is None:
                del node[last]
            else:
                node[last] = value
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        return tmp_path / "plan.yaml"

    return write


def translated(tmp_path, lang="fr"):
    files = sorted((tmp_path / "build" / "translate" / lang).glob("*.parquet"))
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]


def build(plan, *options):
    return main(["data", "build", str(plan), "--steps", "source", "translate", *options])


def test_build_twice_and_ask_once(write, tmp_path, capsys):
    with EndpointServer({"fr": CAPTIONS}) as server:
        plan = write(server.url)
        assert build(plan) == 0
        assert [row["text"] for row in translated(tmp_path)] == list(CAPTIONS.values())
        out = capsys.readouterr().out
        assert "3 rows read: 3 good, 0 refused" in out
        assert "translate/fr: 3 rows, ok 3" in out
        assert build(plan) == 0
        assert sum(server.counts.values()) == 3
    assert main(["data", "status", str(tmp_path / "build")]) == 0
    assert "2/2" in capsys.readouterr().out


def test_written_plan_is_the_plan(write, tmp_path):
    plan = load_plan(write())
    assert plan.folder == tmp_path / "build"
    assert plan.source.paths == [str(tmp_path / "captions.json")]
    write_plan(plan, tmp_path / "again.yaml")
    assert load_plan(tmp_path / "again.yaml") == plan
    assert load_plan(write(), ["unit_rows=5", "executor.workers=3"]).executor.workers == 3


def test_worker_of_no_section(write):
    plan = load_plan(write())
    assert make_worker(plan, "translate/fr").name == "translate/fr"
    with pytest.raises(ValueError, match="toxicity/a/fr: expected a section of the plan"):
        make_worker(plan, "toxicity/a/fr")


def test_failed_rows_stay_failed_until_asked_again(write, tmp_path, capsys):
    texts = list(CAPTIONS)
    with EndpointServer({"fr": CAPTIONS}, always={texts[1]: "bad_request"}) as server:
        plan = write(server.url)
        assert build(plan) == 0
        row = translated(tmp_path)[1]
        assert (row["status"], row["text"]) == ("failed", None)
        assert row["reasons"]
        server.always = {}
        assert build(plan) == 0
        assert translated(tmp_path)[1]["status"] == "failed"
        assert build(plan, "--retry-failed") == 0
        assert [row["text"] for row in translated(tmp_path)] == list(CAPTIONS.values())
        assert server.counts[("fr", texts[0])] == server.counts[("fr", texts[2])] == 1
    assert "1 failed rows are requested again" in capsys.readouterr().out


def test_a_build_whose_every_request_fails_says_why(write, tmp_path, capsys):
    always = dict.fromkeys(CAPTIONS, "bad_request")
    with EndpointServer({"fr": CAPTIONS}, always=always) as server:
        plan = write(server.url)
        for _ in range(2):
            assert build(plan) == 2
            told = capsys.readouterr()
            assert "translate/fr: 3 without an answer: HTTP 400: this text is refused" in told.out
            assert (
                "error: translate: all 3 rows failed: HTTP 400: this text is refused (3)"
                in told.err
            )
            assert "--retry-failed" in told.err
        assert main(["data", "status", str(tmp_path / "build")]) == 0
        assert "3 without an answer: HTTP 400: this text is refused" in capsys.readouterr().out
        server.always = {}
        assert build(plan, "--retry-failed") == 0
    assert "without an answer" not in capsys.readouterr().out


def test_reasons_of_single_rows_are_counted(write, tmp_path, capsys):
    texts = list(CAPTIONS)
    always = {texts[0]: "bad_request", texts[1]: "no_text"}
    with EndpointServer({"fr": CAPTIONS}, always=always) as server:
        assert build(write(server.url)) == 0
    capsys.readouterr()
    built, status = build(write(server.url)), main(["data", "status", str(tmp_path / "build")])
    out = capsys.readouterr().out
    assert (built, status) == (0, 0)
    assert out.count("1 without an answer: HTTP 400: this text is refused") == 2
    assert out.count("1 without an answer: an answer without text") == 2


def test_refused_key_is_one_line(write, capsys):
    with EndpointServer({"fr": CAPTIONS}, api_key="secret") as server:
        assert build(write(server.url)) == 2
    errors = capsys.readouterr().err
    assert "maya data: error: " in errors
    assert "401" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit_rows": 0}, "unit_rows: expected at least 1, found 0"),
        ({"languages": ["fr", "fr"]}, "languages: expected each once"),
        ({"languages": ["en"]}, "found the source language 'en'"),
        ({"languages": None}, "translator: expected languages to translate into"),
        ({"translator": None}, "languages: expected a translator section"),
        ({"source__kind": "zip"}, "source.kind: expected 'mini' | 'llava'"),
        ({"source__path": None}, "source.path: expected a path for kind llava"),
        ({"executor": {"workers": 0}}, "executor: workers: expected 1 or more, found 0"),
        ({"languages": ["fr", "tlh"]}, "languages[1]: language 'tlh' cannot be identified: lingua"),
        ({"source__language": "tlh"}, "source.language: language 'tlh' cannot be identified"),
        (
            {"languages": ["am", "ti"], "verification": {"checks": {"scripts": ETHIOPIC}}},
            "language 'am' cannot be distinguished from ti: lingua does not know it",
        ),
        ({"exekutor": {}}, "unknown key 'exekutor'; did you mean 'executor'?"),
    ],
)
def test_bad_plans_are_named_with_their_file(write, changes, message, capsys):
    plan = write(**changes)
    assert main(["data", "build", str(plan)]) == 2
    errors = capsys.readouterr().err
    assert f"error: {plan}: " in errors
    assert message in errors


def test_what_a_section_refuses_by_itself_is_named_with_its_file():
    with pytest.raises(ValueError, match=r"^x.yaml: source.path: expected a path for kind llava"):
        from_mapping(SourcePlan, {"kind": "llava"}, "x.yaml")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["translat"], "step 'translat': expected one of source, translate"),
        (["toxicity"], "expected a section for it"),
        (["translate"], "source: not read yet: run the step source first"),
    ],
)
def test_bad_steps(write, steps, message, capsys):
    assert main(["data", "build", str(write()), "--steps", *steps]) == 2
    assert message in capsys.readouterr().err


def test_second_build_in_the_same_folder_is_refused(write, tmp_path, capsys):
    plan = write()
    (tmp_path / "build").mkdir()
    with filelock.FileLock(tmp_path / "build" / ".build.lock"):
        assert build(plan) == 2
    assert "another build is running here" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_between_units_is_no_traceback(write, monkeypatch, number, capsys):
    before = signal.getsignal(number)
    monkeypatch.setattr(
        "maya_vlm.training.data.build.build_sources", lambda *args: os.kill(os.getpid(), number)
    )
    assert build(write()) == 128 + number
    assert f"stopped by {number.name}; the same command continues" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_validate_names_every_bad_row(write, tmp_path, capsys):
    plan = write()
    assert main(["data", "validate", str(plan)]) == 0
    rows = json.loads((tmp_path / "captions.json").read_text())
    rows += [rows[0], {**rows[1], "id": None}]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["data", "validate", str(tmp_path / "captions.json"), "--language", "en"])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "captions.json[3] (id '000'): id, lang: another row has this id" in out
    assert "captions.json[4]: id: missing" in out
    assert "5 rows read: 3 good, 2 refused" in out
