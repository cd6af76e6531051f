"""Keys, tokens and passwords in plain values that are written for others."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
# What ends the name of a key whose value is a secret: hub_token, api_key; but not pad_token or key.
_SECRET_NAME = re.compile(
    r"(?i)(^|[_\-.])(secret|password|passwd|passphrase|credentials?|authorization)$|^token$|"
    r"(access|api|auth|bearer|bot|hf|hub|id|refresh|session|user|wandb)[_\-.]?token$|"
    r"(access|api|auth|private|secret)[_\-.]?key$"
)
# Tokens of Hugging Face, OpenAI and others, GitHub, Amazon, Slack, Google; keys in PEM; bearers.
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9_]{8,}|\b(?:api_org|org)_[A-Za-z0-9]{30,}|\bsk-[\w-]{16,}|"
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|"
    r"\bAIza[\w-]{30,}|(?i:\bbearer\s+[\w.~+/=-]{8,})|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


def redact(value: Any) -> Any:
    """Plain values without the secrets in them: by the name of their key, or by what they look like."""
    if isinstance(value, dict):
        return {
            name: REDACTED if _is_secret(name, each) else redact(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(each) for each in value]
    if isinstance(value, str):
        return redact_text(value)
    return value


def redact_text(text: str) -> str:
    """A text without what looks like a token, and without users and passwords in addresses."""
    return _IN_ADDRESS.sub("", _SECRET_TEXT.sub(REDACTED, text))


def _is_secret(name: Any, value: Any) -> bool:
    # Names of variables (api_key_env) and numbers (max_tokens) are none.
    return isinstance(name, str) and isinstance(value, str) and bool(_SECRET_NAME.search(name))
