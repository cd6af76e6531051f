"""Real outputs and edge cases with the numbers that other people's code gives for them.

The set is not part of this repository: it is looked for beside it (`../shared/golden_eval`) or where the
variable MAYA_GOLDEN_EVAL says. The small cases in these tests need no set.
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
    """The value of a JSON file of the set, or the values of its lines."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line]
    return json.loads(text)
