"""Real outputs and edge cases with the numbers that other people's code computes for them.

The set is not part of this repository. Tests look for it next to the repository (`../shared/golden_eval`) or at
the path in the variable MAYA_GOLDEN_EVAL. The small cases in these tests do not need the set.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(
    os.environ.get("MAYA_GOLDEN_EVAL") or Path(__file__).parents[4] / "shared" / "golden_eval"
)
needs_golden = pytest.mark.skipif(
    not (GOLDEN / "README.md").is_file(), reason=f"no golden set in {GOLDEN}; set MAYA_GOLDEN_EVAL"
)


@functools.cache
def golden(name: str) -> Any:
    """Return the value of a JSON file of the set, or the values of its lines."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line]
    return json.loads(text)
