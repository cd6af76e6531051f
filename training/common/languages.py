"""Maya's languages, and BCP-47 codes of any language."""

from __future__ import annotations

import re
from typing import Any

from .telling import shown

# English names of Maya's languages, in the order that tables use.
NAMES = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "es": "Spanish",
    "ru": "Russian",
    "hi": "Hindi",
    "ja": "Japanese",
    "ar": "Arabic",
    "bn": "Bengali",
    "ur": "Urdu",
}
LANGUAGES = tuple(NAMES)
# Maya's languages in their own language.
NATIVE_NAMES = {
    "en": "English",
    "zh": "中文",
    "fr": "Français",
    "es": "Español",
    "ru": "Русский",
    "hi": "हिन्दी",
    "ja": "日本語",
    "ar": "العربية",
    "bn": "বাংলা",
    "ur": "اردو",
}
# English names of other languages.
OTHER_NAMES = {
    "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "ga": "Irish",
    "gu": "Gujarati", "ha": "Hausa", "he": "Hebrew", "hr": "Croatian", "hu": "Hungarian",
    "id": "Indonesian", "ig": "Igbo", "it": "Italian", "ko": "Korean", "lt": "Lithuanian",
    "lv": "Latvian", "ml": "Malayalam", "mr": "Marathi", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "ps": "Pashto", "pt": "Portuguese",
    "ro": "Romanian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish",
    "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "uz": "Uzbek", "vi": "Vietnamese", "yo": "Yoruba", "zu": "Zulu",
}  # fmt: skip
# Name in lower case -> code: some datasets store names instead of codes.
CODES = {name.lower(): code for code, name in NAMES.items()}
_CODE = re.compile("[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def is_language(value: Any) -> bool:
    """Return whether a value has the form of a BCP-47 code: en, pt-BR, zh-Hant. Any language passes."""
    return isinstance(value, str) and _CODE.fullmatch(value) is not None


def as_language(value: Any) -> str | None:
    """Return the code of a cell that holds a code or a name such as Hindi; None for anything else."""
    if not isinstance(value, str):
        return None
    code = CODES.get(value.strip().lower(), value)
    return code if is_language(code) else None


def check_language(value: Any, where: str) -> None:
    """Raise ValueError, naming `where`, unless the value is a BCP-47 code."""
    if not is_language(value):
        raise ValueError(f"{where}: {no_language(value)}")


def no_language(value: Any) -> str:
    """Return the error text for a value that is not a language code."""
    return f"expected a language's BCP-47 code, such as en or pt-BR, found {shown(value)}"
