"""Peak memory of a conversion, measured on a synthetic checkpoint.

    python tests/benchmarks/convert_memory.py [--gigabytes 4.2] [--shard 1GB]

Writes a `llava_cohere` checkpoint of the given size (random bytes, real files), converts it in a separate process,
and compares the peak resident memory of that process with the limit: one shard plus 1 GB. The peak is the kernel's
count (VmHWM) and includes Python, torch and transformers. The result goes to results/convert_memory.json; all other
files are deleted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "convert_memory.json"
sys.path.insert(0, str(ROOT))

CHILD = """
import json, sys, time
from tests.benchmarks.memory import bytes_of
from modeling_maya.llava_cohere.convert import convert
import processing_maya
before, start = bytes_of("VmHWM"), time.perf_counter()
report = convert(sys.argv[1], sys.argv[2], max_shard_size=sys.argv[3], log=lambda line: None)
print(json.dumps({"imports": before, "peak": bytes_of("VmHWM"), "seconds": time.perf_counter() - start, "bytes": report["bytes"],
                  "shards": report["shards"], "parameters": report["parameters"]}))
"""


def make_checkpoint(folder: Path, nbytes: int, max_shard: str) -> dict[str, int]:
    """Write the checkpoint, and return the sizes of its files."""
    import torch
    from huggingface_hub import split_state_dict_into_shards_factory

    from modeling_maya.llava_cohere.files import write_json
    from modeling_maya.llava_cohere.tensors import CHUNK_BYTES, TensorRef, write_safetensors
    from tests.modeling_maya.llava_cohere import tiny_original

    width, mlp, heads, rows = 2048, 8192, 16, 64000
    layer = 4 * width * width + 3 * width * mlp + width
    count = max(1, -(-(nbytes // 2 - rows * width) // layer))
    fields = tiny_original.config(
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=count,
        vocab_size=rows,
    )
    tiny_original.WIDTH, tiny_original.MLP, tiny_original.HEADS = width, mlp, heads
    tiny_original.KV_HEADS, tiny_original.LAYERS, tiny_original.ROWS = heads, count, rows
    noise = torch.frombuffer(bytearray(os.urandom(CHUNK_BYTES)), dtype=torch.bfloat16)

    def draw(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def ref(key, shape):
        numel = torch.Size(shape).numel()

        def read():
            for start in range(0, numel, noise.numel()):
                yield noise[: min(noise.numel(), numel - start)]

        return TensorRef(key, folder, torch.bfloat16, tuple(shape), read)

    named = tiny_original.decoder_tensors(draw) | tiny_original.projector_tensors(draw)
    named |= {
        tiny_original.TOWER + key: value for key, value in tiny_original.tower_tensors(draw).items()
    }
    tensors = {key: ref(key, value.shape) for key, value in named.items()}
    shards = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda tensor: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard,
    )
    folder.mkdir(parents=True)
    for name, keys in shards.filename_to_tensors.items():
        write_safetensors(folder / name, {key: tensors[key] for key in keys})
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": shards.tensor_to_filename},
    )
    write_json(folder / "config.json", fields)
    tiny_original.write_tokenizer(folder)
    tower = folder.parent / "tower"
    tower.mkdir()
    write_json(
        tower / "config.json",
        {
            "model_type": "siglip_vision_model",
            "hidden_size": tiny_original.V_WIDTH,
            "num_hidden_layers": tiny_original.V_LAYERS,
            "num_attention_heads": tiny_original.V_HEADS,
            "intermediate_size": tiny_original.V_MLP,
            "patch_size": tiny_original.V_PATCH,
            "image_size": tiny_original.V_IMAGE,
        },
    )
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.2)
    parser.add_argument("--shard", default="1GB")
    parser.add_argument(
        "--at", help="where to make the files (default: the system's temporary folder)"
    )
    args = parser.parse_args()
    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.common.provenance import provenance

    with tempfile.TemporaryDirectory(dir=args.at) as place:
        source = Path(place) / "original"
        files = make_checkpoint(source, int(args.gigabytes * 1e9), args.shard)
        run = subprocess.run(
            [sys.executable, "-c", CHILD, str(source), str(Path(place) / "maya"), args.shard],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    if run.returncode:
        print(run.stderr, file=sys.stderr)
        return 1
    found = json.loads(run.stdout.strip().splitlines()[-1])
    largest = max(files.values())
    result = {
        "what": "peak resident memory of a conversion to a Hub-native folder",
        "checkpoint_bytes": sum(files.values()),
        "largest_source_shard_bytes": largest,
        "parameters": found["parameters"],
        "peak_bytes": found["peak"],
        "after_imports_bytes": found["imports"],
        "limit_bytes": largest + 10**9,
        "within_limit": found["peak"] <= largest + 10**9,
        "seconds": round(found["seconds"], 1),
        **provenance(),
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
