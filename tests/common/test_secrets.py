"""What is left out of files that are written for others."""

import pytest

from maya_vlm.training.common.secrets import REDACTED, redact, redact_text


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
