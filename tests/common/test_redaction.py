"""Secrets leave a recipe or manifest before it is written; what only sounds like one stays."""

import pytest

from maya_vlm.training.common.redaction import blot, is_secret_name, without_secrets


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


@pytest.mark.parametrize(
    "values",
    [
        {"keywords": "a", "tokenizer": "b", "api_key_env": "OPENAI_API_KEY", "monkey": "c"},
        {"token": 1.0, "max_new_tokens": 5, "hub_token": None, "key": True},
        {"eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "[PAD]", "token": ""},
        {"path": "data/hf_mini/sk-1/rows.json", "url": "https://example.com/a?page=2"},
        {1: "a", None: ["b"]},
    ],
)
def test_what_is_no_secret_stays(values):
    assert without_secrets(values) == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run of hf_abcdefghijklmnop", "run of <left out>"),
        ("https://me:word@host/x", "https://<left out>@host/x"),
        ("WANDB_API_KEY=0123 SEED=1", "WANDB_API_KEY=<left out> SEED=1"),
        ("stages.0.args.hub_token=abc", "stages.0.args.hub_token=<left out>"),
        ("nothing here", "nothing here"),
    ],
)
def test_secrets_inside_of_texts(text, expected):
    assert blot(text) == expected
    assert without_secrets({"a": [text]}) == {"a": [expected]}
