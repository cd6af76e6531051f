"""Maya is held to transformers' own common model tests: it passes what stock LLaVA of the same parts passes.

The tests are in transformers' source distribution. It is fetched once through pip, in the version
installed, into the user's cache; where it cannot be had these tests are skipped with pip's reason.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers

REPOSITORY = Path(__file__).parents[2]
SUITE = Path(__file__).with_name("common_suite.py")

# Imported by the common tests, but kept out of the source distribution: what they would add
# (transformers' generation and export tests) does not run for either model.
ABSENT = {
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
}

# Passed by LLaVA and skipped, not failed, by Maya.
NOT_APPLICABLE = {
    "test_reverse_loading_mapping": "about renamed weights of LLaVA's old checkpoints; Maya has none",
}

# Failed by Maya on purpose.
ON_PURPOSE = {
    "test_bc_cache_name_forward": "wants a warning for `past_key_values`, the only name of the cache "
    "before transformers 5.24; Maya takes both names in every release",
}

# A few seconds each at most, and together they touch everything a model class declares.
QUICK = [
    "test_attention_outputs",
    "test_base_model_prefix_loads_base_weights",
    "test_batching_equivalence",
    "test_can_be_initialized_on_meta",
    "test_can_set_attention_dynamically_composite_model",
    "test_causal_lm_loss_honors_shift_labels",
    "test_config_attn_implementation_setter",
    "test_correct_missing_keys",
    "test_determinism",
    "test_enable_input_require_grads",
    "test_get_image_features_hidden_states",
    "test_get_image_features_pooler_output",
    "test_hidden_states_output",
    "test_inputs_embeds_matches_input_ids",
    "test_internal_model_config_and_subconfig_are_same",
    "test_load_with_mismatched_shapes",
    "test_model_get_set_embeddings",
    "test_resize_embeddings_untied",
    "test_tied_head_has_a_tp_plan_entry",
    "test_tied_weights_keys",
    "test_torch_save_load",
    "test_tp_plan_matches_params",
]


@pytest.fixture(scope="module")
def common_tests() -> Path:
    """A folder with transformers' common tests as the package `transformers_tests`."""
    version = transformers.__version__
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maya-vlm"
    folder = cache / f"transformers-{version}-tests"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "transformers"]
        command += ["--dest", temporary, f"transformers=={version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip did not deliver the sources of transformers {version} in 300 s")
        archives = list(Path(temporary).glob("*.tar.gz"))
        if not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive"])[-1]
            pytest.skip(f"the sources of transformers {version} cannot be had: {reason}")
        package = Path(temporary) / "done" / "transformers_tests"
        package.mkdir(parents=True)
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                parts = Path(member.name).parts
                if parts[1:-1] == ("tests",) and parts[-1].endswith(".py"):
                    source = archive.extractfile(member)
                    assert source is not None
                    (package / parts[-1]).write_bytes(source.read())
        (package / "__init__.py").touch()
        for path, stub in ABSENT.items():
            (package / path).parent.mkdir()
            (package / path).parent.joinpath("__init__.py").touch()
            (package / path).write_text(stub + "\n")
        package.parent.rename(folder)
    return folder


def outcomes(common_tests: Path, report: Path, only: list[str] | None) -> dict[str, dict[str, str]]:
    """Run both models' suites; for each model, every test's name and "passed", "failed" or "skipped"."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["--rootdir", str(report.parent), f"--junitxml={report}"]
    for suite in ("MayaCommonTest", "LlavaCommonTest"):
        command.append(f"{SUITE}::{suite}")
    if only:
        command += ["-k", " or ".join(only)]
    path = os.pathsep.join([str(REPOSITORY), str(common_tests)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        suite = case.attrib["classname"].rpartition(".")[-1]
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif case.find("skipped") is not None:
            outcome = "skipped"
        tests = found.setdefault(suite, {})
        # Subtests are cases of their own: one that fails or skips speaks for its test.
        if tests.get(case.attrib["name"], "passed") == "passed":
            tests[case.attrib["name"]] = outcome
    return found


def compare(found: dict[str, dict[str, str]]) -> set[str]:
    """Assert that Maya passes what LLaVA passes, and fails nothing; returns what LLaVA passes."""
    llava = found["LlavaCommonTest"]
    maya = {name: o for name, o in found["MayaCommonTest"].items() if name not in ON_PURPOSE}
    passed = {name for name, outcome in llava.items() if outcome == "passed"}
    behind = {name: o for name, o in maya.items() if name in passed and o != "passed"}
    assert {name: o for name, o in behind.items() if (name, o) not in not_applicable()} == {}
    assert [name for name, outcome in maya.items() if outcome == "failed"] == []
    return passed


def not_applicable() -> set[tuple[str, str]]:
    return {(name, "skipped") for name in NOT_APPLICABLE}


def test_maya_passes_what_llava_passes_quick(common_tests, tmp_path):
    found = outcomes(common_tests, tmp_path / "report.xml", QUICK)
    passed = compare(found)
    # Releases rename a test now and then; most must be there, and those must pass.
    there = set(QUICK) & set(found["LlavaCommonTest"])
    assert there <= passed
    assert len(there) >= len(QUICK) - 3


@pytest.mark.slow
def test_maya_passes_what_llava_passes(common_tests, tmp_path):
    passed = compare(outcomes(common_tests, tmp_path / "report.xml", None))
    assert len(passed) > 100
