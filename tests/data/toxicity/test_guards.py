"""Test guards that write their verdict: over real HTTP, and with transformers in this process."""

import asyncio
import hashlib
import json
import math
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from maya_vlm.training.common.endpoint import EndpointError
from maya_vlm.training.common.schema import build
from maya_vlm.training.data.toxicity.decisions import decide_build, format_summary
from maya_vlm.training.data.toxicity.guards import GuardJudge, LocalChat
from maya_vlm.training.data.toxicity.plan import JudgePlan, ToxicityPlan
from maya_vlm.training.data.toxicity.protocols import PROTOCOLS
from maya_vlm.training.data.toxicity.step import ToxicityStep
from maya_vlm.training.data.toxicity.verdicts import ImageRef
from tests.data.toxicity.judges import GuardServer, picture, source_row, write_build
from tests.helpers.languages import PAPER
from tests.helpers.raw_server import completion, raw_server, reply
from tests.helpers.steps import run_step
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture
from tests.helpers.tiny_processing import tiny_tokenizer


def judged(judge, items):
    async def run():
        async with judge:
            return await judge.judge(items)

    return asyncio.run(run())


def guard(server, preset, **more) -> dict:
    return {"preset": preset, "endpoint": server.endpoint, **more}


def make(judge) -> GuardJudge:
    return build(JudgePlan, judge, "plan.yaml", "judge").make()


def llavaguard(text, pictures):
    """Answer in the format that the prompt asks for: red pictures are violent."""
    assert "O9: Disasters or Emergencies" in text
    red = pictures[0].convert("RGB").resize((1, 1)).getpixel((0, 0))[0]
    rating, category = (
        ("Unsafe", "O2: Violence, Harm, or Cruelty") if red > 100 else ("Safe", "NA: None applying")
    )
    answer = json.dumps({"rating": rating, "category": category, "rationale": f"red is {red}"})
    parts = answer.partition(rating)
    chance = red / 255
    top = [
        {"token": "Unsafe", "logprob": math.log(chance)},
        {"token": "Safe", "logprob": math.log(1 - chance)},
    ]
    content = [{"token": parts[0], "logprob": 0.0}]
    content.append(
        {"token": rating, "logprob": math.log(max(chance, 1 - chance)), "top_logprobs": top}
    )
    return answer, [*content, {"token": parts[2], "logprob": 0.0}]


def image_ref(red, format="PNG"):
    data = picture(red, format=format)
    return ImageRef("a", data, f"image/{format.lower()}", Image.new("RGB", (8, 8), (red, 0, 0)))


def test_llavaguard_over_http():
    with GuardServer(llavaguard) as server:
        judge = make(guard(server, "llavaguard-v1.2"))
        found = judged(judge, [image_ref(204), image_ref(51)])
    assert [each.label for each in found] == ["unsafe", "safe"]
    assert [each.score for each in found] == pytest.approx([0.8, 0.2])
    assert found[0].category == "O2: Violence, Harm, or Cruelty"
    assert found[1].rationale == "red is 51"
    body = server.bodies[0]
    assert (body["temperature"], body["model"], body["logprobs"]) == (0, "guard", True)
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == PROTOCOLS["llavaguard-v1.2"].prompt
    assert judge.model_revision == "r1"


def test_a_server_without_logprobs_and_a_prompt_of_ones_own(tmp_path):
    own = tmp_path / "prompt.txt"
    own.write_text("O9: Disasters or Emergencies, as the model card has it\n")
    with GuardServer(lambda text, pictures: llavaguard(text, pictures)[0]) as server:
        plain = make(guard(server, "llavaguard-v1.2", logprobs=False))
        other = make(guard(server, "llavaguard-v1.2", prompt=str(own)))
        assert judged(plain, [image_ref(204)])[0].score is None
        judged(other, [image_ref(204)])
    assert "logprobs" not in server.bodies[0]
    assert server.bodies[1]["messages"][0]["content"][1]["text"].endswith("card has it")
    assert plain.policy_sha != other.policy_sha
    assert len({plain.key, other.key, make(guard(server, "llavaguard-v1.2")).key}) == 3


def test_text_guards_over_http():
    def qwen(text, pictures):
        return (
            "Safety: Unsafe\nCategories: Violent"
            if "kill" in text
            else "Safety: Safe\nCategories: None"
        )

    with GuardServer(qwen) as server:
        found = judged(make(guard(server, "qwen3guard")), [("I kill", "en"), ("un chat", "fr")])
    assert [(each.label, each.category) for each in found] == [
        ("unsafe", "Violent"),
        ("safe", None),
    ]
    messages = [body["messages"] for body in server.bodies]
    assert [{"role": "user", "content": "I kill"}] in messages


def test_what_fails_is_for_people_and_can_be_asked_again(tmp_path):
    """One text is rejected with 400; the next run with retry_failed requests only that text."""
    broken = {"a cat"}

    def qwen(text, pictures):
        return 400 if text in broken else "Safety: Safe\nCategories: None"

    rows = [source_row(str(n), text) for n, text in enumerate(["a dog", "a cat", "a cow"])]
    write_build(tmp_path, rows, {})
    with GuardServer(qwen) as server:
        plan = build(ToxicityPlan, {"judges": [guard(server, "qwen3guard")]}, "plan", "")
        step = ToxicityStep(plan, tmp_path, source_language="en", languages=[], images=None)
        run_step(step)
        summary = decide_build(step)
        assert summary.decisions["en", "review"] == 1
        assert summary.failures["qwen3guard"] == 1
        assert "build with --retry-failed): qwen3guard 1" in format_summary(summary)
        decisions = pq.read_table(tmp_path / "toxicity" / "decisions.parquet").to_pylist()
        assert "HTTP 400" in decisions[1]["reason"]
        sent = len(server.bodies)
        run_step(step)
        assert len(server.bodies) == sent
        broken.clear()
        run_step(step, retry_failed=True)
        assert len(server.bodies) == sent + 1
        run_step(step, retry_failed=True)
        assert len(server.bodies) == sent + 1
    summary = decide_build(step)
    assert summary.decisions["en", "clean"] == 3
    # The audit contains both verdicts.
    assert pq.read_metadata(tmp_path / "toxicity" / "audit.parquet").num_rows == 4


def test_a_judge_that_nobody_serves_ends_the_run(tmp_path):
    write_build(tmp_path, [source_row("1", "a dog")], {})
    with GuardServer(lambda text, pictures: 404) as server:
        plan = build(ToxicityPlan, {"judges": [guard(server, "qwen3guard")]}, "plan", "")
        step = ToxicityStep(plan, tmp_path, source_language="en", languages=[], images=None)
        with pytest.raises(EndpointError, match="does not know the model"):
            run_step(step)


@pytest.mark.parametrize("where", ["folder", "zip", "parquet"])
def test_images_from_anywhere_and_broken_ones_for_people(tmp_path, where):
    files = {
        "red.png": picture(250),
        "blue.webp": picture(5, format="WEBP"),
        "old.gif": picture(6, format="GIF"),
    }
    files["broken.png"] = files["red.png"][:40]
    files["changed.png"] = picture(7)
    place = tmp_path / "place"
    place.mkdir()
    if where == "folder":
        for name, data in files.items():
            (place / name).write_bytes(data)
    elif where == "zip":
        with zipfile.ZipFile(place / "images.zip", "w") as file:
            for name, data in files.items():
                file.writestr(name, data)
        place = place / "images.zip"
    else:
        rows = [
            {"image": name, "picture": {"bytes": data, "path": name}}
            for name, data in files.items()
        ]
        (place / "images").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), place / "images" / "a.parquet")
    shas = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    shas["changed.png"] = "0" * 64
    shas["missing.png"] = "1" * 64
    sources = [source_row(f"{n}", "a cat", name, sha) for n, (name, sha) in enumerate(shas.items())]
    write_build(tmp_path, sources, {})
    with GuardServer(llavaguard) as server:
        judges = {"judges": [guard(server, "llavaguard-v1.2")], "unjudged": ["en"]}
        plan = build(ToxicityPlan, judges, "plan", "")
        step = ToxicityStep(plan, tmp_path, source_language="en", languages=[], images=place)
        run_step(step)
    decide_build(step)
    decisions = pq.read_table(tmp_path / "toxicity" / "decisions.parquet").to_pylist()
    found = {row["id"]: (row["decision"], row["reason"]) for row in decisions}
    assert [found[str(n)][0] for n in range(6)] == [
        "flagged",
        "clean",
        "clean",
        "review",
        "review",
        "review",
    ]
    for n, reason in {
        "3": "broken.png",
        "4": "changed after the rows were read",
        "5": "missing.png",
    }.items():
        assert reason in found[n][1]
    assert len(server.bodies) == 3
    sent = {body["messages"][0]["content"][0]["image_url"]["url"][:16] for body in server.bodies}
    assert sent == {"data:image/png;b", "data:image/webp;"}  # the GIF was sent as PNG


# The papers' mode


def toxic_bert(texts):
    """Imitate Detoxify's first label: exactly 0.8 for "on the line"."""
    return [0.8 if "on the line" in t else 0.97 if "scum" in t else 0.01 for t in texts]


def command_r(text, pictures):
    return "unsafe" if int(text.rpartition(" ")[2]) > 200 else "safe"


def test_the_papers_rule(tmp_path):
    """60 images: 9 toxic captions, 10 unsafe images of which 7 are confirmed, 5 in both: 11 are dropped.

    The papers: 892 + 7,111 - 472 = 7,531 of 558,128, in each of eight languages.
    """
    languages = list(PAPER[1:])
    captions, images = set(range(9)), set(range(4, 11))
    unconfirmed = {20, 21, 22}
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for n in range(60):
        # All pictures differ. Red above 100 is unsafe, above 200 confirmed.
        data = picture(250 if n in images else 150 if n in unconfirmed else 20, seed=n)
        (folder / f"{n}.png").write_bytes(data)
        text = f"this scum {n}" if n in captions else f"a cat on the line {n}"
        rows.append(source_row(f"{n:09d}", text, f"{n}.png", hashlib.sha256(data).hexdigest()))
    write_build(
        tmp_path, rows, {lang: [f"{lang} scum {n}" for n in range(60)] for lang in languages}, 16
    )
    with GuardServer(llavaguard) as first, GuardServer(command_r) as second:
        judges = [
            {
                "name": "toxic-bert",
                "kind": "function",
                "stage": "text",
                "function": "tests.data.toxicity.test_guards:toxic_bert",
                "languages": ["en"],
                "only": ["en"],
            },
            guard(first, "llavaguard-v1.2"),
            guard(second, "command-r-plus", reads="llavaguard-v1.2"),
        ]
        data = {"policy": "paper", "unjudged": languages, "judges": judges}
        plan = build(ToxicityPlan, data, "plan", "")
        step = ToxicityStep(
            plan, tmp_path, source_language="en", languages=languages, images=folder
        )
        run_step(step)
        asked = (len(first.bodies), len(second.bodies))
        summary = decide_build(step)
    # Each image is judged once. Only rationales of unsafe images are judged, equal ones once.
    assert asked == (60, 2)
    for lang in ("en", *languages):
        assert summary.decisions[lang, "flagged"] == 9 + 7 - 5
        assert summary.decisions[lang, "clean"] == 60 - 11
        assert summary.decisions[lang, "review"] == 0
    decisions = pq.read_table(tmp_path / "toxicity" / "decisions.parquet").to_pylist()
    assert sum(row["decision"] == "clean" for row in decisions) == 8 * 49
    dropped = {int(row["id"]) for row in decisions if row["decision"] == "flagged"}
    assert dropped == captions | images


# In this process


TEXTS = {
    "the cat sits": "Safe",
    "I kill you all now": "Unsafe",
    "a dog": "Safe",
    "kill it": "Unsafe",
}
CATEGORIES = {"Safe": "None", "Unsafe": "Violent"}


def taught_guard(folder):
    """Train a tiny Llama to answer the four texts in Qwen3Guard's format."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[-1]['content'] }}{% if add_generation_prompt %}<|CHATBOT_TOKEN|>{% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    batch = []
    for text, label in TEXTS.items():
        prompt = tokenizer.encode(text + "<|CHATBOT_TOKEN|>")
        answer = f"Safety: {label}\nCategories: {CATEGORIES[label]}"
        ids = tokenizer.encode(answer, add_special_tokens=False)
        batch.append((prompt, [*ids, tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for n, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[n, :end], mask[n, :end] = torch.tensor(prompt + answer), 1
        labels[n, len(prompt) : end] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_text_guard_through_transformers(tmp_path):
    folder = taught_guard(tmp_path)
    judge = make({"preset": "qwen3guard", "model": folder, "max_tokens": 40, "device": "cpu"})
    together = judged(judge, [(text, "en") for text in TEXTS])
    assert [each.label for each in together] == [label.lower() for label in TEXTS.values()]
    assert [each.category for each in together] == [None, "Violent", None, "Violent"]
    for each in together:
        assert each.score > 0.9 if each.label == "unsafe" else each.score < 0.1
    # Batched (and padded) answers equal single ones.
    for text, each in zip(TEXTS, together, strict=True):
        (alone,) = judged(judge, [(text, "en")])
        assert alone.raw == each.raw
        assert alone.score == pytest.approx(each.score, abs=1e-4)
    # An answer that is cut off does not count.
    cut = make({"preset": "qwen3guard", "model": folder, "max_tokens": 4, "device": "cpu"})
    assert judged(cut, [("a dog", "en")])[0].label == "review"


def test_an_image_guard_through_transformers(tmp_path):
    """A random Maya answers noise, which goes to people; the code path is real."""
    folder = save_tiny_maya(tmp_path)
    chat = LocalChat(str(folder), images=True, device="cpu", trust_remote_code=True)
    judge = GuardJudge(PROTOCOLS["llavaguard-v1.2"], chat, prompt="Is it safe?", max_tokens=6)
    refs = [ImageRef(f"{n}", b"", "image/png", tiny_picture(n)) for n in (1, 5)]
    together = judged(judge, refs)
    assert [(each.label, each.parse_ok) for each in together] == [("review", False)] * 2
    for ref, each in zip(refs, together, strict=True):
        assert judged(judge, [ref])[0].raw == each.raw
        assert each.raw


# ------------------------------------------------------------------------------ odd answers

SAFE = {
    "qwen3guard": "Safety: Safe\nCategories: None",
    "polyguard": "Harmful request: no\nResponse refusal: n/a\nHarmful response: n/a",
    "llavaguard-v1.2": '{"rating": "Safe", "category": "NA: None applying", "rationale": "a"}',
}


def sent(protocol, *bodies, **more):
    """Return a guard's judgements of a server's raw responses."""
    found = []
    for body in bodies:
        with raw_server(reply(body)) as url:
            endpoint = {"base_url": url, "model": "guard", "max_attempts": 1}
            judge = make({"preset": protocol, "endpoint": endpoint, **more})
            item = image_ref(9) if protocol.startswith("llava") else ("a dog", "en")
            found += judged(judge, [item])
    return found


@pytest.mark.parametrize("protocol", SAFE)
def test_a_verdict_that_was_cut_off_is_not_clean(protocol):
    for reason, label in (
        ("stop", "safe"),
        (None, "safe"),
        ("length", "review"),
        ("content_filter", "review"),
    ):
        said = {"message__content": SAFE[protocol], "choice__finish_reason": reason}
        (found,) = sent(protocol, completion(**said))
        assert found.label == label, reason
        assert found.raw == SAFE[protocol]
        assert (found.error is None) == (label == "safe")


ODD = [0, True, "x", [], {}, {"content": True}, {"content": [3]}, {"content": [{}]},
       {"content": [{"token": None, "logprob": -1}]}, {"content": [{"token": "Safe", "logprob": "x"}]},
       {"content": [{"token": "Safe", "logprob": -1, "top_logprobs": [{"token": 3}]}]},
       {"content": [{"token": "Safety: Safe", "logprob": -(10**400)}]}]  # fmt: skip


def test_log_probabilities_of_any_shape_are_for_people():
    bodies = [completion(message__content=SAFE["qwen3guard"], choice__logprobs=odd) for odd in ODD]
    found = sent("qwen3guard", *bodies)
    # An empty list or mapping carries no judgement.
    assert [each.label for each in found] == ["review"] * 3 + ["safe"] * 2 + ["review"] * 7
    for each in found:
        assert each.error is None or each.error.isprintable()
    # Without logprobs in the request, they are ignored in the response.
    assert {each.label for each in sent("qwen3guard", *bodies, logprobs=False)} == {"safe"}


@pytest.mark.parametrize("protocol", SAFE)
def test_answers_of_any_text_are_for_people(protocol):
    texts = [
        "", "[" * 50_000, '{"rating": ' * 5_000, '{"rating": ' + "[" * 900 + "]" * 900 + "}", "\x1b[2J",
        '{"rating": ["Safe"], "category": "NA: x", "rationale": "a"}', '{"rating": null}', "Safety: Safe",
        "Harmful request: no\nHarmful request: yes\nHarmful response: n/a", "x" * 90_000,
    ]  # fmt: skip
    found = sent(protocol, *(completion(message__content=text) for text in texts))
    assert {each.label for each in found} == {"review"}


def test_odd_answers_do_not_end_a_build(tmp_path):
    odd = [
        completion(message__content=SAFE["qwen3guard"] + " half \ud83d"),
        b"[" * 100_000,
        completion(choice__finish_reason=0),
        completion(message__content="Safety: Unsafe\nCategories: \x1b[2J\u202e"),
        completion(message__content=SAFE["qwen3guard"]),
    ]
    rows = [source_row(str(n), f"a dog {n}") for n in range(len(odd))]
    write_build(tmp_path, rows, {})
    with raw_server(*map(reply, odd)) as url:
        endpoint = {"base_url": url, "model": "guard", "max_attempts": 1, "concurrency": 1}
        judges = {"judges": [{"preset": "qwen3guard", "endpoint": endpoint}]}
        plan = build(ToxicityPlan, judges, "plan", "")
        step = ToxicityStep(plan, tmp_path, source_language="en", languages=[], images=None)
        run_step(step)
    summary = decide_build(step)
    assert summary.decisions["en", "review"] == 3
    assert summary.failures["qwen3guard"] == 3
    for line in format_summary(summary).splitlines():
        assert line.isprintable()
    decisions = pq.read_table(tmp_path / "toxicity" / "decisions.parquet").to_pylist()
    assert all(row["reason"].isprintable() for row in decisions)
    assert all(row["category"] is None or row["category"].isprintable() for row in decisions)
