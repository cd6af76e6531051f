"""Tokenizers of captions for pycocoevalcap's metrics, without Java and without a download.

A score stores its tokenizer's name, since another tokenizer gives the same captions another score.
"""

from __future__ import annotations

import logging
import tempfile
import unicodedata
import warnings
from functools import lru_cache
from importlib import metadata
from typing import Any

from .packages import need

# Languages without spaces between words: tokens split at spaces would score 0.
_UNSPACED = {"zh": "jieba", "yue": "jieba", "ja": "mecab", "th": "characters", "lo": "characters"}
_UNSPACED |= {"km": "characters", "my": "characters"}
TOKENIZERS = ("words", "jieba", "mecab", "characters", "as_given")


def default_tokenizer(language: str) -> str:
    """Return the tokenizer of a BCP-47 language: jieba for zh, mecab for ja, characters or words for others."""
    return _UNSPACED.get(language.lower().replace("_", "-").split("-")[0], "words")


def tokenizer_id(name: str) -> str:
    """Return the tokenizer's id, with the versions of the packages that its output depends on."""
    packages = {"jieba": ("jieba",), "mecab": ("mecab-python3", "unidic-lite")}.get(name, ())
    return "+".join(
        [f"{name}@1", *(f"{package} {metadata.version(package)}" for package in packages)]
    )


def tokenize(text: str, tokenizer: str, language: str) -> str:
    """Return a caption as lower-case tokens with single spaces between them, without punctuation.

    Args:
        text: the caption.
        tokenizer: words (split at spaces), jieba, mecab, characters, or as_given, for a text that is already
            tokenized and is only split at spaces.
        language: BCP-47; words is refused for a language without spaces.

    Raises:
        ValueError: the tokenizer is unknown, or it is words and the language has no spaces.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer: expected one of {', '.join(TOKENIZERS)}, found {tokenizer!r}")
    if tokenizer == "as_given":
        return " ".join(text.split())
    if tokenizer == "words" and default_tokenizer(language) != "words":
        raise ValueError(
            f"tokenizer: expected one for text without spaces, since words would score 0 for {language}: use "
            f"{default_tokenizer(language)} or characters"
        )
    text = unicodedata.normalize("NFC", text).lower()
    # Other whitespace would end MeCab's input or remain inside a token.
    text = " ".join("".join(c for c in text if not unicodedata.category(c).startswith("P")).split())
    if tokenizer == "jieba":
        parts = _jieba().cut(text)
    elif tokenizer == "mecab":
        parts = _mecab().parse(text).split()
    elif tokenizer == "characters":
        parts = _characters(text)
    else:
        parts = text.split()
    return " ".join(part.strip() for part in parts if part.strip())


def _characters(text: str) -> list[str]:
    """Return each character with its combining marks."""
    found: list[str] = []
    for char in text:
        if found and unicodedata.category(char).startswith("M"):
            found[-1] += char
        else:
            found.append(char)
    return found


@lru_cache(maxsize=1)
def _jieba() -> Any:
    with warnings.catch_warnings():
        # Warnings of jieba's own source and of a package that it tries to import.
        warnings.simplefilter("ignore")
        jieba = need("jieba", "jieba", "tokens of Chinese captions")
    # jieba logs that it loads its dictionary.
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # By default jieba loads a cached dictionary from the shared temporary folder, which any user can write to.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer


@lru_cache(maxsize=1)
def _mecab() -> Any:
    mecab = need("MeCab", "mecab-python3", "tokens of Japanese captions")
    dictionary = need("unidic_lite", "unidic-lite", "tokens of Japanese captions")
    return mecab.Tagger(f'-O wakati -d "{dictionary.DICDIR}"')
