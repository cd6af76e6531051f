"""Secrets that are not written down: tokens, API keys and passwords in recipes and manifests."""

from __future__ import annotations

import re
from typing import Any

LEFT_OUT = "<left out>"
# The last word of a name, or any of its words, that makes its value a secret.
_LAST = {"token", "tokens", "key", "keys", "auth", "pass", "pwd"}
_ANYWHERE = {"secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential"}
_ANYWHERE |= {"credentials", "apikey", "authorization"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A token of a text, such as <|end|> or [PAD], is no secret.
_OF_TEXT = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s*")
# What the values look like: Hugging Face, OpenAI, GitHub, AWS, Google; name and password in an address.
_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# NAME=value inside of a text; the name may be dotted, as in --set.
_PAIR = re.compile(r"([A-Za-z_][\w.-]*)=([^\s,;'\"]+)")


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds a secret: hub_token, WANDB_API_KEY, aws.secretAccessKey."""
    words = [word.lower() for word in _WORD.findall(name)]
    return bool(words) and (words[-1] in _LAST or not _ANYWHERE.isdisjoint(words))


def without_secrets(value: Any) -> Any:
    """Plain values to write down: keys that hold a secret are left out, secrets in texts blotted out.

    Only texts are secrets: `token: 1.0`, the rate of a task, stays.
    """
    if isinstance(value, dict):
        return {
            name: without_secrets(each)
            for name, each in value.items()
            if not (isinstance(name, str) and is_secret_name(name) and _holds_text(each))
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(each) for each in value]
    return blot(value) if isinstance(value, str) else value


def _holds_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_text, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_text, value))
    return isinstance(value, str) and not _OF_TEXT.fullmatch(value)


def blot(text: str) -> str:
    """`text` with `<left out>` in place of what looks like a secret in it."""
    text = _VALUE.sub(LEFT_OUT, text)
    return _PAIR.sub(
        lambda found: f"{found[1]}={LEFT_OUT}" if is_secret_name(found[1]) else found[0], text
    )
