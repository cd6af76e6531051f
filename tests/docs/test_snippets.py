"""Every Python snippet of the pages runs as it is printed, on tiny models and a Hub of this machine.

The README's is in tests/test_readme.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.docs.blocks import blocks
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_llava import save_tiny_llava
from tests.helpers.tiny_maya import tiny_maya, tiny_picture
from tests.modeling_maya.llava_cohere import tiny_original as original

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = [(page, text) for page, text in blocks("python") if page != "README.md"]
# bitsandbytes' kernel for CPUs needs such widths.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
CARD = """---
configs:
- config_name: messages
  data_files:
  - {split: train, path: messages/train.parquet}
---
"""
# Words of a snippet -> what the test runs in their place. A GPU is what they are for.
CHANGED = {
    # TRL computes in bfloat16 on a GPU where nothing is said.
    "SFTConfig(max_length=None)": "SFTConfig(max_length=None, use_cpu=True)",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `runs/mini` and `picture.png`, and the environment of a Hub with what the snippets name."""
    folder = tmp_path_factory.mktemp("world")
    tiny_picture().save(folder / "picture.png")
    for part in tiny_maya(text=WIDE):
        part.save_pretrained(folder / "runs" / "mini")
    # Rows of the mini dataset: its config `messages` has the form of every dataset's.
    rows = load_dataset(str(ROOT / "training/data/mini"), "messages", split="test").select(range(8))
    (folder / "captions" / "messages").mkdir(parents=True)
    rows.to_parquet(folder / "captions" / "messages" / "train.parquet")
    (folder / "captions" / "README.md").write_text(CARD, encoding="utf-8")
    original.write_checkpoint(folder / "original" / "checkpoint", mm_vision_tower="someone/tower")
    save_tiny_llava(folder / "llava")
    with HubServer() as hub:
        hub.put("model", "maya-multimodal/maya", folder / "original" / "checkpoint")
        hub.put("model", "someone/tower", folder / "original" / "tower")
        hub.put("model", "llava-hf/llava-1.5-7b-hf", folder / "llava")
        hub.put("dataset", "your-name/captions", folder / "captions")
        yield folder, {**os.environ, **hub.environment(folder / "home"), "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "snippet", [text for _, text in SNIPPETS], ids=[page for page, _ in SNIPPETS]
)
def test_a_snippet_runs(snippet, world):
    for words, others in CHANGED.items():
        snippet = snippet.replace(words, others)
    folder, environment = world
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() or "print(" not in snippet
    if ".train()" in snippet:
        assert "'train_loss'" in done.stdout


def test_the_snippets_are_there():
    assert {page for page, _ in SNIPPETS} == {"load.md", "data.md"}
    for words in CHANGED:
        assert sum(words in text for _, text in SNIPPETS) == 1
