"""Languages: BCP-47 codes, by their shape. Any language is known."""

from __future__ import annotations

import re
from typing import Any

# Language, and behind it script, region, variants.
CODE = re.compile("[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def is_language(value: Any) -> bool:
    """Whether a value is shaped like a BCP-47 code: en, pt-BR, zh-Hant."""
    return isinstance(value, str) and CODE.fullmatch(value) is not None
