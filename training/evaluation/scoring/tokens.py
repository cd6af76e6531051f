"""Captions cut into tokens for pycocoevalcap's counting, without Java and without a download.

The name of the tokenizer belongs to a score: the same captions give other numbers with another one.
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

# Languages that put no spaces between words; spaces as tokens give them a score of 0.
_UNSPACED = {"zh": "jieba", "yue": "jieba", "ja": "mecab", "th": "characters", "lo": "characters"}
_UNSPACED |= {"km": "characters", "my": "characters"}
TOKENIZERS = ("words", "jieba", "mecab", "characters", "as_given")


def default_tokenizer(language: str) -> str:
    """The tokenizer of a BCP-47 language: jieba for zh, mecab for ja, characters or words for others."""
    return _UNSPACED.get(language.lower().replace("_", "-").split("-")[0], "words")


def tokenizer_id(name: str) -> str:
    """The tokenizer with the versions that its output depends on."""
    packages = {"jieba": ("jieba",), "mecab": ("mecab-python3", "unidic-lite")}.get(name, ())
    return "+".join(
        [f"{name}@1", *(f"{package} {metadata.version(package)}" for package in packages)]
    )


def tokenize(text: str, tokenizer: str, language: str) -> str:
    """A caption as tokens with single spaces between, in small letters, without punctuation.

    Args:
        text: the caption.
        tokenizer: words (split at spaces), jieba, mecab, characters, or as_given, for a text that is
            tokenized already and is only split at spaces.
        language: BCP-47, to refuse words where there are none.

    Raises:
        ValueError: an unknown tokenizer, or words for a language without spaces.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer: expected one of {', '.join(TOKENIZERS)}, found {tokenizer!r}")
    if tokenizer == "as_given":
        return " ".join(text.split())
    if tokenizer == "words" and default_tokenizer(language) != "words":
        raise ValueError(
            f"tokenizer: {language} puts no spaces between words, so words would score 0: use "
            f"{default_tokenizer(language)} or characters"
        )
    text = unicodedata.normalize("NFC", text).lower()
    # Other spaces than " " would end MeCab's text or stand within a token.
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
    """Each character with the marks on it."""
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
        # Of its source and of a package that it tries to import.
        warnings.simplefilter("ignore")
        jieba = need("jieba", "jieba", "tokens of Chinese captions")
    # It reports the loading of its dictionary.
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # By default it reads its dictionary from a file in the system's temporary folder, whoever wrote it.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer


@lru_cache(maxsize=1)
def _mecab() -> Any:
    mecab = need("MeCab", "mecab-python3", "tokens of Japanese captions")
    dictionary = need("unidic_lite", "unidic-lite", "tokens of Japanese captions")
    return mecab.Tagger(f'-O wakati -d "{dictionary.DICDIR}"')
