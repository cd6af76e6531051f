"""Which errors are shown as one line."""

import pytest

from maya_vlm.training.common.errors import in_one_line, is_bad_input


@pytest.mark.parametrize("reason", ["Connection closed by peer", "Connection reset by peer"])
def test_a_process_that_is_gone_is_no_fault_of_the_others(reason):
    # Gloo's message, with the position in its source code.
    error = RuntimeError(f"[gloo/transport/tcp/pair.cc:547] {reason} [127.0.0.1]:4242")
    assert is_bad_input(error)
    assert in_one_line(error, "train").startswith("another process of this run has died (")


def test_other_runtime_errors_are_faults_of_ours():
    assert not is_bad_input(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
