"""Weights on disk: whatever is wrong with a file is one line that names it, and nothing is guessed."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_maya.llava_cohere.headers import read_header, read_headers
from modeling_maya.llava_cohere.tensors import read_pickle, read_weights

PLAIN = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [1, 3], "data_offsets": [8, 20]},
}


def write(path: Path, header: object, data: int = 20) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def test_a_header_is_read(tmp_path):
    path = write(tmp_path / "x.safetensors", {"__metadata__": {"format": "pt"}, **PLAIN})
    found = read_header(path)
    assert {key: entry.shape for key, entry in found.items()} == {"a": (2,), "b": (1, 3)}
    assert found["b"].end == path.stat().st_size
    # A type that the converter does not know is for others to read.
    small = {"a": {"dtype": "F8_E4M3", "shape": [20], "data_offsets": [0, 20]}}
    assert read_header(write(tmp_path / "f8.safetensors", small))["a"].dtype == "F8_E4M3"


def changed(**fields):
    return {**PLAIN, "b": {**PLAIN["b"], **fields}}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (changed(data_offsets=[4, 16]), 16, "b overlaps the tensor before it"),
        (changed(data_offsets=[0, 12]), 12, "overlaps the tensor before it"),
        (changed(data_offsets=[12, 24]), 24, "b leaves a gap"),
        (changed(data_offsets=["8", 20]), 20, r"b: expected data_offsets \[start, end\]"),
        (changed(data_offsets=[20, 8]), 20, "expected data_offsets"),
        (changed(data_offsets=[True, 20]), 20, "expected data_offsets"),
        (changed(data_offsets=None), 20, "expected data_offsets"),
        (changed(shape="3"), 20, "b: expected a shape"),
        (changed(shape=[-3]), 20, "expected a shape"),
        (changed(shape=[4]), 20, r"b: expected 16 bytes for F32 of shape \[4\], found 12"),
        (changed(dtype=7), 20, "b: expected a dtype, found 7"),
        ({**PLAIN, "b": []}, 20, "b: expected a dtype"),
        ([1], 0, "expected a mapping of tensors, found a list"),
        (b'{"a": 1, "a": 2}', 0, "a occurs twice"),
        (b"[" * 100_000, 0, "nested too deep"),
        (b"{nonsense", 0, "malformed safetensors header"),
        (b'{"\xff": 1}', 0, "malformed safetensors header"),
        (PLAIN, 19, "cut short: expected"),
        (PLAIN, 21, "longer than its header says"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, header, data, words):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=words) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"PK\x03\x04" + bytes(50), "a pickle of torch"),
        (b"", "found a header of 0 bytes in a file of 0"),
        (struct.pack("<Q", 1000) + b"{}", "cut short inside its header"),
    ],
)
def test_what_is_no_safetensors_file_is_told_by_its_kind(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path, pickles=False)


def test_random_damage_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "b\u0301": torch.zeros(4)}, path)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    draw, told = random.Random(0), []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(8 + header)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            read_header(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all(text.isprintable() and len(text) < 500 + len(str(path)) for text in told)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map: expected .*, found none"),
        ({"weight_map": {"a": 3}}, "a: expected a shard's file name without a path, found 3"),
        ({"weight_map": {"a": ["x"]}}, "a: expected a shard's file name without a path, found"),
        ({"weight_map": {"a": "../x.safetensors"}}, "file name without a path"),
        ({"weight_map": {"a": "x\x00.safetensors"}}, r"x\\x00\.safetensors"),
        ({"weight_map": {"a": "none.safetensors"}}, "this shard is missing"),
        ({"weight_map": {"c": "x.safetensors"}}, "a: .* expects it in no shard, found it here"),
    ],
)
def test_indexes_that_cannot_be_are_refused(tmp_path, index, words):
    write(tmp_path / "x.safetensors", PLAIN)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        read_headers(tmp_path)
    assert str(error.value).isprintable()


def test_an_index_nested_too_deep(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.empty(3, device="meta"), "expected all values of a tensor"),
        # Thirty bytes that would be written as four terabytes.
        (torch.zeros(1).expand(10**6, 10**6), "expected all values of a tensor"),
        (torch.zeros(3, dtype=torch.complex64), "found torch.complex64"),
        (torch.zeros(3).to_sparse(), "found torch.float32|not a readable"),
    ],
)
def test_pickled_tensors_that_are_not_all_there(tmp_path, tensor, words, recwarn):
    torch.save({"model.mm_projector.0.weight": tensor}, tmp_path / "x.bin")
    recwarn.clear()
    with pytest.raises(ValueError, match=words) as error:
        read_pickle(tmp_path / "x.bin")
    assert "\n" not in str(error.value)
    assert not recwarn
