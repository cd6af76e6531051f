"""Test the translation step with a local endpoint that knows the correct translations."""

import asyncio
import json
import pickle

import pyarrow as pa
import pytest

from maya_vlm.training.common.endpoint import EndpointError
from maya_vlm.training.common.schema import build
from maya_vlm.training.data.checks.plan import CheckPlan
from maya_vlm.training.data.translation.plan import LocalPlan, TranslatorPlan
from maya_vlm.training.data.translation.text_pieces import Piece, lost_code, split
from maya_vlm.training.data.translation.worker import TRANSLATED, TranslateWorker
from tests.helpers.endpoint_server import EndpointServer, Faults

FRENCH = {
    "a black cat sits on a wooden chair": "un chat noir est assis sur une chaise en bois",
    "two children play football in the park": "deux enfants jouent au football dans le parc",
    "an old bridge over a quiet river at night": "un vieux pont sur une rivière calme la nuit",
    "a bowl of rice with vegetables on the table": "un bol de riz aux légumes sur la table",
    "What is the man holding in his hand?": "Que tient l’homme dans sa main ?",
    "He is holding a large yellow umbrella.": "Il tient un grand parapluie jaune.",
}
TRUTHS = {
    "fr": FRENCH,
    "ru": {
        "a black cat sits on a wooden chair": "чёрная кошка сидит на деревянном стуле",
        "two children play football in the park": "двое детей играют в футбол в парке",
    },
}
CAT, CHILDREN, BRIDGE, BOWL, QUESTION, REPLY = FRENCH


def row(text: str | None, turns: list[tuple[str, str]] | None = None, **changes) -> dict:
    found = {
        "id": "000000033471",
        "image": "00000/1.jpg",
        "image_sha256": "ab",
        "lang": "en",
        "task": "conversation" if turns else "caption",
        "text": text,
        "turns": turns and [{"role": r, "content": c} for r, c in turns],
    }
    return {**found, **changes}


def plan(url: str, **changes) -> TranslatorPlan:
    endpoint = {"base_url": url, "model": "aya", "model_revision": "abc", "backoff": 0.001}
    return build(TranslatorPlan, {"endpoint": {**endpoint, "max_attempts": 3}, **changes}, "plan")


def translate(settings: TranslatorPlan, *rows: dict, lang: str = "fr", **options) -> list[dict]:
    worker = TranslateWorker(settings, lang, **options)

    async def run() -> list[dict]:
        async with worker:
            found = await asyncio.gather(*(worker.process([r]) for r in rows))
            return [r for batch in found for r in batch]

    found = asyncio.run(run())
    # The engine's requirements for an answer.
    table = pa.Table.from_pylist(found, schema=TRANSLATED)
    assert table.to_pylist() == json.loads(json.dumps(found))
    assert all(r.keys() == set(TRANSLATED.names) for r in found)
    return found


# ------------------------------------------------------------------------------ captions


def test_a_caption_with_all_that_is_known_of_it():
    with EndpointServer(TRUTHS, record=True) as server:
        settings = plan(server.url, parameters={"max_tokens": 99, "top_p": 0.9})
        (found,) = translate(settings, row(CAT), run_id="run-1")
    worker = TranslateWorker(settings, "fr")
    assert found == {
        "id": "000000033471",
        "lang": "fr",
        "image": "00000/1.jpg",
        "image_sha256": "ab",
        "task": "caption",
        "text": FRENCH[CAT],
        "turns": None,
        "source_text": CAT,
        "source_lang": "en",
        "status": "ok",
        "flags": [],
        "reasons": None,
        "finish_reason": "stop",
        "model": "aya",
        "model_revision": "abc",
        "prompt_id": worker.prompts[0].id,
        "parameters": json.dumps({"max_tokens": 99, "seed": 0, "temperature": 0.0, "top_p": 0.9}),
        "attempts": 1,
        "run_id": "run-1",
    }
    ((_, body),) = server.seen
    assert body["messages"] == worker.prompts[0].messages(CAT)
    assert body["temperature"] == 0.0


def test_one_caption_in_one_language_per_request():
    with EndpointServer(TRUTHS) as server:
        found = translate(plan(server.url), *(row(text, id=text) for text in FRENCH))
        translate(plan(server.url), row(CAT), lang="ru")
    assert [r["text"] for r in found] == list(FRENCH.values())
    assert server.counts == {**{("fr", text): 1 for text in FRENCH}, ("ru", CAT): 1}


def test_without_letters_nothing_is_asked():
    with EndpointServer(TRUTHS) as server:
        (found,) = translate(plan(server.url), row("12:30 – 14:00"))
    assert (found["text"], found["status"], found["attempts"]) == ("12:30 – 14:00", "ok", 0)
    assert server.requests == 0


def test_comments_outside_of_the_brackets_are_cut_off():
    with EndpointServer(TRUTHS, always={CAT: "preface"}) as server:
        kept = translate(plan(server.url), row(CAT))[0]
        bare = translate(plan(server.url, brackets=""), row(CAT))[0]
    assert (kept["text"], kept["status"], kept["attempts"]) == (FRENCH[CAT], "ok", 1)
    assert (bare["text"], bare["status"], bare["attempts"]) == (None, "rejected", 3)
    assert "preface" in bare["flags"]


# ------------------------------------------------------------------------------ retries


@pytest.mark.parametrize(
    ("fault", "flag"),
    [
        ("refusal", "brackets"),
        ("length", "finish_reason"),
        ("untranslated", "copy"),
        ("wrong_language", "language"),
    ],
)
def test_hard_flags_are_asked_again_then_rejected(fault, flag):
    truths = {**TRUTHS, "es": {CAT: "un gato negro está sentado en una silla de madera"}}
    with EndpointServer({"fr": FRENCH, **truths}, always={CAT: fault}, record=True) as server:
        (found,) = translate(plan(server.url, retries=2), row(CAT), languages=["fr", "es", "ru"])
    assert found["status"] == "rejected"
    assert found["text"] is None
    assert flag in found["flags"]
    assert f"{flag}: " in found["reasons"]
    assert "\n" not in found["reasons"]
    assert found["attempts"] == server.requests == 3
    sent = [(body["temperature"], body["seed"]) for _, body in server.seen]
    assert sent == [(0.0, 0), (0.3, 1), (0.3, 2)]
    assert json.loads(found["parameters"])["seed"] == 2


def test_a_good_second_answer_is_kept():
    faults = Faults(refusal=0.4, untranslated=0.2)
    rows = [row(text, id=text) for text in FRENCH]
    with EndpointServer(TRUTHS, faults=faults, seed=3) as server:
        found = translate(plan(server.url, retries=8), *rows)
    assert [r["text"] for r in found] == list(FRENCH.values())
    assert {r["status"] for r in found} == {"ok"}
    assert server.met
    assert sum(r["attempts"] for r in found) == server.requests > len(rows)
    assert all(r["flags"] == [] for r in found)
    seeds = [json.loads(r["parameters"])["seed"] for r in found]
    assert seeds == [r["attempts"] - 1 for r in found]


def test_a_second_preamble_asks_again():
    with EndpointServer(TRUTHS, always={CAT: "refusal"}, record=True) as server:
        settings = plan(server.url, preamble="bare", second_preamble="native", retries=1)
        (found,) = translate(settings, row(CAT))
    systems = [body["messages"][0]["content"] for _, body in server.seen]
    assert systems[0].startswith("Translate the message from English into French.")
    assert systems[1].startswith("Tu traduis en français")
    assert found["prompt_id"] == TranslateWorker(settings, "fr").prompts[1].id


def test_a_seed_is_left_out_where_servers_do_not_know_it():
    with EndpointServer(TRUTHS, record=True) as server:
        (found,) = translate(plan(server.url, seed=None), row(CAT))
    assert "seed" not in server.seen[0][1]
    assert "seed" not in found["parameters"]


def test_which_checks_are_hard_is_plan_data():
    with EndpointServer(TRUTHS, always={CAT: "length"}) as server:
        checks = CheckPlan(hard=("empty",))
        (found,) = translate(plan(server.url, brackets=""), row(CAT), checks=checks)
    assert found["status"] == "ok"
    assert "finish_reason" in found["flags"]
    assert found["finish_reason"] == "length"


# ------------------------------------------------------------------------------ failures


def test_a_request_that_fails_for_good_fails_its_row():
    faults = {CAT: "unavailable", BRIDGE: "bad_request", BOWL: "no_text"}
    with EndpointServer(TRUTHS, always=faults) as server:
        rows = [row(t, id=t) for t in (CAT, CHILDREN, BRIDGE, BOWL)]
        found = translate(plan(server.url), *rows)
    assert [r["status"] for r in found] == ["failed", "ok", "failed", "failed"]
    assert [r["attempts"] for r in found] == [3, 1, 1, 1]
    assert [r["text"] for r in found] == [None, FRENCH[CHILDREN], None, None]
    assert found[0]["reasons"] == "HTTP 503: the server is unavailable"
    assert found[2]["reasons"] == "HTTP 400: this text is refused"
    assert found[3]["reasons"].startswith("an answer without text")
    assert all(r["source_text"] for r in found)


def test_what_makes_the_run_pointless_is_raised():
    with EndpointServer(TRUTHS, model="other") as server:
        with pytest.raises(EndpointError, match="does not know the model"):
            translate(plan(server.url), row(CAT))
        turns = [("user", QUESTION), ("assistant", REPLY)]
        with pytest.raises(EndpointError, match="does not know the model"):
            translate(plan(server.url), row(None, turns))


def test_a_row_in_another_language_is_refused():
    with EndpointServer(TRUTHS) as server:
        with pytest.raises(
            ValueError, match=r"row '000000033471': lang: expected 'en'.*found 'de'"
        ):
            translate(plan(server.url), row("eine Katze", lang="de"))
    assert server.requests == 0


# ------------------------------------------------------------------------------ conversations


def test_a_conversation_is_translated_turn_by_turn():
    turns = [("user", f"<image>\n{QUESTION}"), ("assistant", REPLY), ("user", "[0.1, 0.2]")]
    with EndpointServer(TRUTHS) as server:
        (found,) = translate(plan(server.url), row(None, turns))
    assert found["status"] == "ok"
    assert found["text"] is None
    assert found["turns"] == [
        {"role": "user", "content": f"<image>\n{FRENCH[QUESTION]}"},
        {"role": "assistant", "content": FRENCH[REPLY]},
        {"role": "user", "content": "[0.1, 0.2]"},
    ]
    assert json.loads(found["source_text"])[0] == {"role": "user", "content": turns[0][1]}
    assert found["attempts"] == 2
    assert server.counts == {("fr", QUESTION): 1, ("fr", REPLY): 1}


@pytest.mark.parametrize(("fault", "status"), [("refusal", "rejected"), ("bad_request", "failed")])
def test_a_conversation_is_ok_only_with_all_its_turns(fault, status):
    turns = [("user", QUESTION), ("assistant", REPLY)]
    with EndpointServer(TRUTHS, always={REPLY: fault}) as server:
        (found,) = translate(plan(server.url), row(None, turns))
    assert found["status"] == status
    assert found["turns"] is None
    assert found["text"] is None
    assert server.counts[("fr", QUESTION)] == 1
    assert found["attempts"] == 1 + (3 if fault == "refusal" else 1)


def test_code_is_kept():
    code = "```python\nprint('a cat')\n```"
    truths = {
        "fr": {"Run `ls -l` to list all of the files.": "Lance `ls -l` pour voir les fichiers."}
    }
    text = f"Run `ls -l` to list all of the files.\n{code}"
    with EndpointServer(truths) as server:
        (found,) = translate(plan(server.url), row(text))
    assert found["text"] == f"Lance `ls -l` pour voir les fichiers.\n{code}"
    truths["fr"] = {"Run `ls -l` to list all of the files.": "Lance `dir` pour voir les fichiers."}
    with EndpointServer(truths) as server:
        (found,) = translate(plan(server.url), row(text))
    assert found["status"] == "rejected"
    assert "code: `ls -l` missing" in found["reasons"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "<image>",
        "<image>\nWhat is this? ",
        "What <image> is <image>",
        "```\ncode",
        "a ```b``` c",
        "1 + 1 = 2",
        "猫\n",
    ],
)
def test_pieces_joined_are_the_text(text):
    pieces = split(text)
    assert "".join(p.text for p in pieces) == text
    for piece in pieces:
        assert piece.text
        if piece.language:
            assert piece.text == piece.text.strip()
            assert "<image>" not in piece.text
            assert "```" not in piece.text
        else:
            kept = piece.text == "<image>" or piece.text.startswith("```")
            assert kept or not any(c.isalpha() for c in piece.text)


def test_pieces():
    assert split("<image>\nWhat?") == [
        Piece("<image>", False),
        Piece("\n", False),
        Piece("What?", True),
    ]
    assert lost_code("use `a` and `b`", "utilise `b`") == ["`a`"]


# ------------------------------------------------------------------------------ plans


def test_presets_fill_in_what_is_not_said():
    settings = build(
        TranslatorPlan,
        {
            "preset": "aya-23-35b",
            "endpoint": {"base_url": "http://h"},
            "parameters": {"top_p": 0.5},
        },
        "plan",
    )
    assert settings.endpoint.model == "CohereLabs/aya-23-35B"
    assert settings.parameters == {"temperature": 0.0, "max_tokens": 2048, "top_p": 0.5}
    assert settings.brackets == "〘〙"
    named = build(
        TranslatorPlan,
        {"preset": "aya-23-35b", "endpoint": {"base_url": "http://h", "model": "aya"}},
        "plan",
    )
    assert named.endpoint.model == "aya"
    assert TranslateWorker(settings, "fr").key != TranslateWorker(named, "fr").key


@pytest.mark.parametrize("preset", ["aya-23-35b", "aya-expanse-32b"])
@pytest.mark.parametrize("lang", ["bn", "ur"])
def test_a_language_that_the_model_does_not_know_is_an_error(preset, lang):
    settings = build(
        TranslatorPlan, {"preset": preset, "endpoint": {"base_url": "http://h"}}, "plan"
    )
    with pytest.raises(ValueError, match=f"{preset} does not know {lang}; its languages: ar, zh"):
        TranslateWorker(settings, lang)
    with pytest.raises(ValueError, match="does not know sw; "):
        TranslateWorker(settings, "fr", source_language="sw")


def test_another_translator_for_some_languages():
    with EndpointServer(TRUTHS, record=True) as server:
        other = {"preset": "translategemma", "endpoint": {"base_url": server.url}}
        settings = plan("http://127.0.0.1:1", preset="aya-expanse-32b", per_language={"fr": other})
        settings.check_languages("en", ["fr", "ru"])
        (found,) = translate(settings, row(CAT))
    assert found["text"] == FRENCH[CAT]
    assert found["model"] == "google/translategemma-27b-it"
    ((_, body),) = server.seen
    assert body["messages"][0]["content"][0]["target_lang_code"] == "fr"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "expected one of endpoint and local, found neither"),
        (
            {"endpoint": {"base_url": "http://h", "model": "m"}, "local": {"model": "m"}},
            "expected one of endpoint and local, found both",
        ),
        ({"endpoint": {"base_url": "http://h"}}, "endpoint.model: expected a model"),
        ({"local": {}}, "local.model: expected a model"),
        (
            {"preset": "nope", "local": {"model": "m"}},
            "preset: expected a file or one of aya",
        ),
        ({"brackets": "[", "local": {"model": "m"}}, "brackets: expected two characters or none"),
        ({"retries": -1, "local": {"model": "m"}}, "retries: expected 0 or more, found -1"),
        ({"retrys": 1, "local": {"model": "m"}}, "unknown key 'retrys'; did you mean 'retries'"),
        (
            {"prompt": "none", "endpoint": {"base_url": "http://h", "model": "m"}},
            'prompt: expected a local model for "none"',
        ),
    ],
)
def test_plans_are_checked(data, message):
    with pytest.raises(ValueError, match=message):
        build(TranslatorPlan, data, "plan.yaml")


def test_key_covers_what_changes_answers_and_nothing_else():
    def key(lang: str = "fr", url: str = "http://h", checks=None, source="en", **changes) -> str:
        endpoint = {"base_url": url, "model": "aya", **changes.pop("endpoint", {})}
        settings = build(TranslatorPlan, {"endpoint": endpoint, **changes}, "plan")
        return TranslateWorker(settings, lang, source, checks=checks).key

    same = key()
    assert same == key(url="http://elsewhere")
    assert same == key(endpoint={"concurrency": 1, "timeout": 5.0, "api_key_env": "KEY"})
    different = [
        key("ru"),
        key(source="es"),
        key(endpoint={"model": "other"}),
        key(endpoint={"model_revision": "abc"}),
        key(preamble="brief"),
        key(second_preamble="brief"),
        key(brackets="[]"),
        key(brackets=""),
        key(parameters={"temperature": 0.1}),
        key(retry_parameters={}),
        key(retries=1),
        key(seed=1),
        key(checks=CheckPlan(length_z=2.0)),
    ]
    assert len({same, *different}) == 1 + len(different)


def test_worker_travels_between_processes():
    worker = TranslateWorker(plan("http://h"), "fr")
    again = pickle.loads(pickle.dumps(TranslateWorker(plan("http://h"), "fr").plan))
    assert TranslateWorker(again, "fr").key == worker.key
    assert (worker.name, worker.batch_rows, worker.concurrency) == ("translate/fr", 1, 64)
    assert worker.schema.names[:2] == ["id", "lang"]
    local = TranslatorPlan(local=LocalPlan(model="m", batch_size=4), prompt="none")
    assert TranslateWorker(local, "fr").batch_rows == 4
    assert TranslateWorker(local, "fr").concurrency == 1


# ------------------------------------------------------------------------------ odd answers


def answered(write, *rows: dict, **changes) -> list[dict]:
    """Return rows of a model that writes `write(truth)` instead of a bracketed answer."""
    with EndpointServer(TRUTHS, rewrite=lambda _, truth: write(truth)) as server:
        return translate(plan(server.url, brackets="", retries=0, **changes), *rows)


@pytest.mark.parametrize("thought", ["I shall translate this.", "Between 〘 and 〙, so 〘...〙."])
def test_a_thought_is_no_part_of_the_translation(thought):
    def write(truth: str) -> str:
        return f"<think>\n{thought}\n</think>\n\n〘{truth}〙"

    with EndpointServer(TRUTHS, rewrite=lambda _, truth: write(truth)) as server:
        settings = plan(server.url, preamble="bare", brackets="〘〙")
        server._content = lambda fault, text, lang, truth, bracketed: truth
        found = translate(settings, row(CAT), row(BOWL))
    assert [r["text"] for r in found] == [FRENCH[CAT], FRENCH[BOWL]]
    assert {r["attempts"] for r in found} == {1}


def test_a_thought_without_an_answer_is_rejected():
    (found,) = answered(lambda truth: f"<think>{truth}", row(CAT))
    assert (found["status"], found["flags"]) == ("rejected", ["empty"])


@pytest.mark.parametrize("mark", ["</im_end/>", "<|im_end|>", "\x1b[2J", "\x00"])
def test_marks_of_a_template_and_control_characters_are_rejected(mark):
    (found,) = answered(lambda truth: truth + mark, row(CAT))
    assert found["status"] == "rejected"
    assert "markup" in found["flags"]
    assert found["reasons"].isprintable()
    off = CheckPlan(off=("markup",))
    with EndpointServer(TRUTHS, rewrite=lambda _, truth: truth + "</im_end/>") as server:
        (kept,) = translate(plan(server.url, brackets="", retries=0), row(CAT), checks=off)
    assert kept["status"] == "ok"


def test_reasons_are_one_short_line():
    (found,) = answered(lambda truth: "\x1b[2J\u202e" + "Here is " * 10_000, row(CAT))
    assert found["status"] == "rejected"
    assert found["reasons"].isprintable()
    assert len(found["reasons"]) <= 500
