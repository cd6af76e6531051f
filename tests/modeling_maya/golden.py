"""What the original implementation computed, read from a golden set, and Mayas loaded from its weights.

A set is a folder with `cases.json`, `cases.npz` and checkpoints, described in its README. It is found
through the environment variable MAYA_GOLDEN or beside the repository; nothing here knows its sizes.
"""

import functools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from modeling_maya import MayaForConditionalGeneration
from modeling_maya.llava_cohere.convert import convert

_BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("MAYA_GOLDEN", _BESIDE))
PRESENT = (GOLDEN / "cases.json").is_file()
ABSENT = "no golden set: put it in ../shared/golden or name it in MAYA_GOLDEN"
META = json.loads((GOLDEN / "cases.json").read_text())["meta"] if PRESENT else {}
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"] if PRESENT else []
BY_ID = {case["id"]: case for case in CASES}
SINGLE = [case for case in CASES if case["kind"] == "single" and not case["quirk"]]
BATCH = [case for case in CASES if case["kind"] == "batch" and not case["quirk"]]


def names(cases):
    return [case["id"] for case in cases]


@functools.cache
def arrays():
    with np.load(GOLDEN / "cases.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def array(case, name):
    return arrays()[f"{case['id']}/{name}"]


def has(case, name):
    """Whether the set recorded this array; of some batches it keeps less."""
    return f"{case['id']}/{name}" in arrays()


@functools.cache
def converted(kind):
    """Folder of the converted `checkpoint` or `pretrain_only` model, made once a process."""
    _KEEP.append(tempfile.TemporaryDirectory(prefix="maya-golden-"))
    place = Path(_KEEP[-1].name)
    base = GOLDEN / "pretrain_only" / "base_llm" if kind == "pretrain_only" else None
    convert(GOLDEN / kind, place / kind, base_model=base, log=lambda line: None)
    return place / kind


_KEEP: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


@functools.cache
def model(kind, attention="sdpa", load="direct"):
    """The float32 model of `kind`, on the CPU; a full checkpoint is loaded directly unless asked otherwise."""
    folder = GOLDEN / kind if load == "direct" and kind != "pretrain_only" else converted(kind)
    loaded = MayaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return loaded.eval()


def expand(ids, config, pad=None):
    """A row of the original's ids (-200 for an image) with our placeholder, as often as it takes."""
    row = []
    for token in ids.tolist():
        row += (
            [config.image_token_id] * config.image_seq_length
            if token == META["image_token_index"]
            else [token]
        )
    return row


def pad(rows, value, side, length=None):
    length = length or max(map(len, rows))
    return torch.tensor(
        [
            row + [value] * (length - len(row))
            if side == "right"
            else [value] * (length - len(row)) + row
            for row in rows
        ]
    )


def pixels(case):
    """Pixel values of one case, or of a batch's members in order; None if there are none."""
    members = [BY_ID[name] for name in case.get("members", [case["id"]])]
    found = [
        array(BY_ID[member["pixel_values_in"]], "pixel_values")
        for member in members
        if "pixel_values_in" in member
    ]
    return torch.cat(found) if found else None


def training_inputs(case, config):
    """input_ids, attention_mask, labels and pixel_values as the original laid them out after the splice."""
    ids = array(case, "input_ids")
    ids = ids[None] if ids.ndim == 1 else ids
    key = f"{case['id']}/attention_mask"
    mask = arrays()[key] if key in arrays() else torch.ones_like(ids, dtype=torch.bool)
    rows = [expand(row[keep], config) for row, keep in zip(ids, mask, strict=True)]
    side = case.get("padding_side", "right")
    length = case["expanded_length"]
    inputs = {
        "input_ids": pad(rows, META["pad_id"], side, length),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, side, length),
        "labels": array(case, "expanded_labels"),
    }
    if (values := pixels(case)) is not None:
        inputs["pixel_values"] = values
    return inputs
