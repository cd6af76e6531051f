"""Load a model in a fresh process and make it answer a question, like a new user.

With `trust_remote_code` the process imports nothing from this package, and transformers runs the code in the
model's folder. Without it the process uses the installed classes of Maya, and runs no code from the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from maya_vlm.training.common.telling import one_line

TOKENS = 8
MARK = "maya-answer:"
_LOAD = {
    True: """
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", trust_remote_code=trust)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust)
""",
    False: """
from maya_vlm.training.common.adapters import find_adapter
from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference.load import open_model
found = find_model(name)
found = find_adapter(found) if found.is_adapter else found
model, processor = open_model(found, dtype="auto", trust_remote_code=trust)
""",
}
_ANSWER = """
import json, sys
name, revision, trust, tokens = json.loads(sys.argv[1])
if revision:
    # transformers would look for an adapter's base at this revision too.
    from huggingface_hub import snapshot_download
    name = snapshot_download(name, revision=revision)
{load}
import torch
from PIL import Image
model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
picture = Image.linear_gradient("L").convert("RGB")
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
).to(model.device)
inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
print("{mark}" + json.dumps(output[0, inputs["input_ids"].shape[1]:].tolist()))
"""


def answer(
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> list[int]:
    """Return the token ids of a model's greedy answer to a question about a picture of a gradient.

    Args:
        name: a folder, or a Hub repository, which is downloaded to a temporary folder.
        revision: branch, tag or commit of the repository.
        trust_remote_code: load the model with the code in its folder.
        token: token for the Hub; default: the token that huggingface_hub finds.

    Raises:
        ValueError: the model does not load or answer; one line.
    """
    code = _ANSWER.format(load=_LOAD[trust_remote_code], mark=MARK)
    asked = json.dumps([name, revision, trust_remote_code, TOKENS])
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(scratch, "modules"))}
        if token is not None:
            environment["HF_TOKEN"] = token
        if revision is not None:
            environment["HF_HUB_CACHE"] = str(Path(scratch, "hub"))
        done = subprocess.run(
            [sys.executable, "-c", code, asked],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        told = done.stderr.strip().splitlines() or ["no answer"]
        reason = told[-1].partition("Error: ")[2] or told[-1]
        raise ValueError(f"{name} does not load: {one_line(reason)}")
    found: list[int] = json.loads(lines[-1].removeprefix(MARK))
    return found
