"""Remove keys, tokens and passwords from values and texts that others will read."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
# Words that mark a secret as the last word of a key's name (_LAST), or anywhere in it (_ANYWHERE).
_LAST = {"token", "tokens", "key", "keys", "auth", "pass", "pwd"}
_ANYWHERE = {"secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential"}
_ANYWHERE |= {"credentials", "apikey", "authorization"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Words before `token` that make it a vocabulary token: pad_token, image_token.
_OF_VOCABULARY = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "eot", "image", "special"}
# Values that are not secrets: special tokens such as <|end|> or [PAD], and single characters.
_NO_SECRET = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s*|.")
# Tokens of Hugging Face, OpenAI and similar, GitHub, Amazon, Slack, Google; PEM keys; bearer tokens.
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{12,}|\b(?:api_org|org)_[A-Za-z0-9]{30,}|\bsk-[\w-]{16,}|"
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|"
    r"\bAIza[\w-]{30,}|(?i:\bbearer\s+[\w.~+/=-]{8,})|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
# User and password in a URL.
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
# NAME=value in a text; the name may be dotted, as in --set. The length limit on names keeps the search
# linear in the length of the text; of a longer name, the end is checked.
_PAIR = re.compile(r"([A-Za-z_][\w.-]{0,100})=([^\s,;'\"]+)")


def is_secret_name(name: str) -> bool:
    """Return whether a key's name marks a secret: hub_token, WANDB_API_KEY, aws.secretAccessKey."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or not _OF_VOCABULARY.isdisjoint(words[-2:-1]):
        return False
    return words[-1] in _LAST or not _ANYWHERE.isdisjoint(words)


def redact(value: Any) -> Any:
    """Replace secrets in plain values by REDACTED. A secret is found by its key's name or its own form."""
    if isinstance(value, dict):
        return {
            name: REDACTED if _is_secret(name, each) else redact(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(each) for each in value]
    return redact_text(value) if isinstance(value, str) else value


def without_secrets(value: Any) -> Any:
    """Return values as `redact`, but drop keys that hold a secret: for values that are read back."""
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if not _is_secret(name, each)}
        return {name: without_secrets(each) for name, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(each) for each in value]
    return redact(value)


def redact_text(text: str) -> str:
    """Redact secrets in a text, and remove users and passwords from its URLs."""
    text = _IN_ADDRESS.sub("", _VALUE.sub(REDACTED, text))
    return _PAIR.sub(
        lambda found: f"{found[1]}={REDACTED}" if is_secret_name(found[1]) else found[0], text
    )


def _is_secret(name: Any, value: Any) -> bool:
    # Names of variables (api_key_env) and numbers (max_tokens) are not secrets.
    return isinstance(name, str) and is_secret_name(name) and _holds_text(value)


def _holds_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_text, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_text, value))
    return isinstance(value, str) and not _NO_SECRET.fullmatch(value)
