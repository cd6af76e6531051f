"""Secrets are removed from files that others will read."""

import pytest

from maya_vlm.training.common.secrets import (
    REDACTED,
    is_secret_name,
    redact,
    redact_text,
    without_secrets,
)


def test_secrets_go_by_the_name_of_their_key():
    values = {
        "hub_token": "x1",
        "args": [
            {"token": "x2", "api_key": "x3"},
            {"password": "x4", "AWS_SECRET_ACCESS_KEY": "x5"},
        ],
        "wandb-token": "x6",
    }
    found = str(redact(values))
    assert not any(f"x{n}" in found for n in range(1, 7))
    assert found.count(REDACTED) == 6


def test_other_keys_and_values_stay():
    values = {
        "max_tokens": 3, "pad_token": "<pad>", "eos_token": "</s>", "api_key_env": "MY_KEY", "key": "a",
        "token": None, "path": "user/name", "secretary": "Ann", "steps": [1, 2.5, None, True],
    }  # fmt: skip
    assert redact(values) == values


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "a" * 34, "sk-proj-" + "b" * 30, "ghp_" + "c" * 36, "AKIA" + "D" * 16,
        "Authorization: Bearer abcdefgh1234", "-----BEGIN RSA PRIVATE KEY-----\nMII\n",
    ],
)  # fmt: skip
def test_secrets_go_by_what_they_look_like(text):
    found = redact({"note": f"see {text} there", "more": [text]})
    assert text not in str(found)
    assert found["note"].startswith("see ")


def test_users_in_addresses():
    assert redact_text("https://me:pw@example.org/x") == "https://example.org/x"
    assert redact_text("https://example.org/a@b") == "https://example.org/a@b"


@pytest.mark.parametrize(
    "name",
    ["hub_token", "token", "WANDB_API_KEY", "apiKey", "aws.secretAccessKey", "db-password", "keys",
     "HF_TOKEN", "credentials", "client_secret_file", "Authorization", "basic_auth"],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret_name(name)
    assert without_secrets({"args": {name: "abcdef"}, "other": 1}) == {"args": {}, "other": 1}
    assert without_secrets([{name: ["abc"]}]) == [{}]
    assert without_secrets({name: {"inner": "abc"}}) == {}
    assert redact({"args": {name: "abcdef"}}) == {"args": {name: REDACTED}}


@pytest.mark.parametrize(
    "values",
    [
        {"keywords": "a", "tokenizer": "b", "api_key_env": "OPENAI_API_KEY", "monkey": "c"},
        {"token": 1.0, "max_new_tokens": 5, "hub_token": None, "key": True},
        {"eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "[PAD]", "token": ""},
        {"path": "data/hf_mini/sk-1/rows.json", "url": "https://example.com/a?page=2"},
        {"eos_token": "EOS", "image_token": "IMAGE", "folder": "data/hf_datasets_2024"},
        {1: "a", None: ["b"]},
    ],
)
def test_what_is_no_secret_stays(values):
    assert without_secrets(values) == values
    assert redact(values) == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run of hf_abcdefghijklmnop", "run of [redacted]"),
        ("https://me:word@host/x", "https://host/x"),
        ("WANDB_API_KEY=0123 SEED=1", "WANDB_API_KEY=[redacted] SEED=1"),
        ("stages.0.args.hub_token=abc", "stages.0.args.hub_token=[redacted]"),
        ("nothing here", "nothing here"),
    ],
)
def test_secrets_inside_of_texts(text, expected):
    assert redact_text(text) == expected
    assert without_secrets({"a": [text]}) == {"a": [expected]}


def test_a_long_name_is_looked_at_by_its_end():
    name = "x" * 300_000
    assert redact_text(f"{name}_token=abcd {name}") == f"{name}_token={REDACTED} {name}"
