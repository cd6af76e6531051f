"""For all tests: one thread, since tiny models only lose by more, and workers run side by side."""

import importlib.metadata
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NEWEST = f"transformers=={importlib.metadata.version('transformers')}\n" in (
    Path(__file__).parents[1] / "constraints.txt"
).read_text(encoding="utf-8")

# Started in the background by a script, a process ignores SIGINT, and so do its children; tests of
# interrupts need what a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are for `pytest -m gpu`: the other tests compare what a CPU computes, to its last digits."""
    if config.getoption("markexpr").strip() != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _Deprecations(logging.Handler):
    """Collects what libraries log about calls that a later release will not have."""

    said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if re.search(r"deprecated|will be removed|removed in", message):
            self.said.append(message)


@pytest.fixture(autouse=True, scope="session")
def _collect_deprecations() -> None:
    for library in ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub"):
        logging.getLogger(library).addHandler(_Deprecations(logging.WARNING))


@pytest.fixture(autouse=True)
def _no_deprecated_calls() -> Iterator[None]:
    """A call of ours that a library logs as deprecated fails the test, as a warning of it would.

    Older releases than the one in constraints.txt deprecate what there was no other name for.
    """
    _Deprecations.said.clear()
    yield
    if NEWEST:
        assert not _Deprecations.said, "; ".join(_Deprecations.said)
