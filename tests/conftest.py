"""For all tests: one thread, since tiny models only lose by more, and workers run side by side."""

import os
import signal

import pytest

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Started in the background by a script, a process ignores SIGINT, and so do its children; tests of
# interrupts need what a terminal gives.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are for `pytest -m gpu`: the other tests compare what a CPU computes, to its last digits."""
    if config.getoption("markexpr").strip() != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
