"""Time to first token and tokens per second of `generate`: dynamic cache, static cache, compiled decoding step.

    python tests/benchmarks/answering_speed.py [--size mini|tiny|8b] [--rounds 9] [--tokens 64]

- `dynamic`: `model.generate` as it is.
- `static`: with `cache_implementation="static"`.
- `compiled`: the static cache, and the decoding step compiled by `torch.compile` as one graph.

The ways take turns in one process, at batch sizes 1 and 8, on one image and a short question a row. A streamer notes
when `generate` hands over each token: the first one ends the time to first token (image, prompt and head), the others
give the rate. A first call of each way, which compiles, is not counted: its seconds are in `first_call_seconds`, and
`graphs` says how many graphs were compiled. In float32 the three ways must give the same tokens, or the command fails;
in bfloat16 the share of equal tokens is kept.

Weights are random: `mini` has the shape of the recipe of that name, and `8b` (on a GPU only, bfloat16) that of
Aya-23-8B with SigLIP-base. `8b` is also compared with the memory-bandwidth limit: each step reads the decoder and the
head once, at no more than the bandwidth of a copy on the same GPU.

Results go to results/answering_speed.json, one entry a size; sizes that were not run keep theirs.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch._dynamo.utils import counters
from transformers import AutoConfig, CompileConfig
from transformers.generation.streamers import BaseStreamer

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "answering_speed.json"
sys.path.insert(0, str(ROOT))

from maya_vlm.training.common.files import write_json  # noqa: E402
from maya_vlm.training.common.provenance import provenance  # noqa: E402
from modeling_maya import MayaConfig  # noqa: E402
from processing_maya import load_chat_template  # noqa: E402
from tests.benchmarks.gpu_full_size import build, full_size_config  # noqa: E402
from tests.benchmarks.training_speed import spread  # noqa: E402
from tests.helpers.tiny import enlarge, tiny_config  # noqa: E402

BATCH_SIZES = (1, 8)
QUESTION = "What is in this picture? Answer in one sentence."


class Differ(Exception):
    """Two ways gave different tokens."""


# ------------------------------------------------------------------------------ models


def mini_config() -> MayaConfig:
    """Config of the recipe `mini`, from the bases that it trains on."""
    bases = ROOT / "training" / "bases" / "mini"
    return MayaConfig(
        text_config=AutoConfig.from_pretrained(bases / "language_model"),
        vision_config=AutoConfig.from_pretrained(bases / "vision_tower"),
        projector_num_layers=1,
        vision_feature_select_strategy="full",
        image_token_id=0,  # `build` sets that of its tokenizer
    )


SIZES: dict[str, Callable[[], MayaConfig]] = {
    "mini": mini_config,
    # The tokenizer that `build` adds has more tokens than the smallest decoders of the tests.
    "tiny": lambda: tiny_config(text={"vocab_size": 512}),
    "8b": full_size_config,
}


def prepare(size: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model of a size with random weights, and its processor."""
    model, processor = build(SIZES[size](), device, dtype)
    if size != "8b":
        # With the usual small weights a random model says one token for ever, whatever is wrong.
        enlarge(model)
    processor.chat_template = load_chat_template("aya")
    return model.eval(), processor


def prompts(processor: Any, batch_size: int, model: Any) -> dict[str, torch.Tensor]:
    """One question about one image a row, each with another image."""
    random = np.random.default_rng(0)
    turns = []
    for _ in range(batch_size):
        picture = Image.fromarray(random.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
        turns.append([{"role": "user", "content": content}])
    processor.tokenizer.padding_side = "left"
    inputs = processor.apply_chat_template(
        turns,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return dict(inputs.to(model.device))


# ------------------------------------------------------------------------------ the three ways


def ways() -> dict[str, dict[str, Any]]:
    """Name -> arguments of `generate`."""
    compiling = CompileConfig(fullgraph=True, dynamic=False)
    # Without this, `generate` compiles on accelerators only.
    compiling._compile_all_devices = True
    static = {"cache_implementation": "static"}
    return {
        "dynamic": {},
        "static": {**static, "disable_compile": True},
        "compiled": {**static, "compile_config": compiling},
    }


class Clock(BaseStreamer):
    """Note when `generate` hands over the prompt and each token."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note a step; `value` is on the CPU, so the GPU has finished the step."""
        self.marks.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Timed:
    """One call of `generate`. tokens: new ids (batch size, tokens); first, rest: seconds."""

    tokens: torch.Tensor
    first: float
    rest: float


def ask(model: Any, inputs: dict[str, torch.Tensor], tokens: int, options: dict[str, Any]) -> Timed:
    """Generate `tokens` tokens a row, greedily, and time the first token and the others."""
    clock = Clock()
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            **options,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=clock,
        )
    # The first mark is the prompt's.
    first, last = clock.marks[1], clock.marks[-1]
    return Timed(output[:, inputs["input_ids"].shape[1] :].cpu(), first - start, last - first)


# ------------------------------------------------------------------------------ measuring


def measure(
    model: Any, processor: Any, batch_size: int, tokens: int, rounds: int
) -> dict[str, Any]:
    """Times of every way at one batch size. Raises Differ where float32 tokens are not the same."""
    # Otherwise the graphs of the last batch size would count, and be kept.
    torch.compiler.reset()
    counters.clear()
    inputs = prompts(processor, batch_size, model)
    ways_ = ways()
    with torch.compiler.config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        opening = {name: ask(model, inputs, tokens, options) for name, options in ways_.items()}
    wanted = opening["dynamic"].tokens
    same = {
        name: float((each.tokens == wanted).float().mean())
        for name, each in opening.items()
        if name != "dynamic"
    }
    for name, share in same.items():
        if model.dtype == torch.float32 and share < 1:
            raise Differ(f"{name}: {1 - share:.1%} of the tokens differ from those of dynamic")
    timed: dict[str, list[Timed]] = {name: [] for name in ways_}
    for _ in range(rounds):
        for name, options in ways_.items():
            timed[name].append(ask(model, inputs, tokens, options))
    first = {name: [each.first for each in all_] for name, all_ in timed.items()}
    rate = {
        name: [batch_size * (tokens - 1) / each.rest for each in all_]
        for name, all_ in timed.items()
    }
    middle = {name: statistics.median(values) for name, values in rate.items()}
    return {
        "batch_size": batch_size,
        "prompt_tokens": inputs["input_ids"].shape[1],
        "different_tokens": len(wanted.unique()),
        "same_tokens": same,
        "graphs": counters["stats"]["unique_graphs"],
        "first_call_seconds": {name: each.first + each.rest for name, each in opening.items()},
        "seconds_to_first_token": {name: spread(values) for name, values in first.items()},
        "tokens_per_second": {name: spread(values) for name, values in rate.items()},
        "times_dynamic": {
            name: value / middle["dynamic"] for name, value in middle.items() if name != "dynamic"
        },
    }


def bytes_per_step(model: Any) -> int:
    """Bytes of weights that a decoding step reads: decoder and head, of an embedding matrix only if it is the head."""
    read = {id(p): p.nbytes for p in model.model.language_model.parameters()}
    read.pop(id(model.get_input_embeddings().weight))
    read[id(model.lm_head.weight)] = model.lm_head.weight.nbytes
    return sum(read.values())


def copy_bandwidth(device: torch.device, size: int = 2**30, repeats: int = 20) -> float:
    """Bytes per second, read and written, of the fastest of several copies of `size` bytes on a device."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit(model: Any, cases: Sequence[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    """The most steps per second that a bandwidth in bytes per second allows, and the share that each way reaches."""
    read = bytes_per_step(model)
    most = bandwidth / read
    return {
        "bytes_per_step": read,
        "copy_bytes_per_second": bandwidth,
        "steps_per_second": most,
        "share_reached": {
            str(case["batch_size"]): {
                name: rate["median"] / case["batch_size"] / most
                for name, rate in case["tokens_per_second"].items()
            }
            for case in cases
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a row, at least 2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "8b" and device.type == "cpu":
        print("--size 8b: expected a CUDA GPU with 24 GB, found none", file=sys.stderr)
        return 1
    if args.tokens < 2:
        parser.error(f"--tokens: expected at least 2, found {args.tokens}")
    if args.size == "tiny" and args.output == RESULT:
        parser.error("--size tiny measures nothing worth keeping: give it another --output")
    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16 if args.size == "8b" else torch.float32
    model, processor = prepare(args.size, device, dtype)
    cases = []
    for batch_size in args.batch_sizes:
        try:
            case = measure(model, processor, batch_size, args.tokens, args.rounds)
        except Differ as error:
            print(error, file=sys.stderr)
            return 1
        cases.append(case)
        told = [
            f"{name} {rate['median']:.1f} tokens/s, first after {first['median'] * 1e3:.1f} ms"
            for (name, rate), first in zip(
                case["tokens_per_second"].items(),
                case["seconds_to_first_token"].values(),
                strict=True,
            )
        ]
        print(f"{args.size}, batch size {batch_size}: {'; '.join(told)}", flush=True)
    found = {
        "command": f"python tests/benchmarks/answering_speed.py --size {args.size}",
        "dtype": str(dtype).removeprefix("torch."),
        "image_tokens": model.config.image_seq_length,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": args.tokens,
        "rounds": args.rounds,
        "cases": cases,
        **provenance("accelerate"),
    }
    if args.size == "8b":
        found["bandwidth_limit"] = limit(model, cases, copy_bandwidth(device))
        told = found["bandwidth_limit"]
        print(
            f"memory-bandwidth limit: {told['steps_per_second']:.1f} steps/s "
            f"({told['bytes_per_step'] / 1e9:.1f} GB a step at {told['copy_bytes_per_second'] / 1e12:.2f} TB/s); "
            f"share reached: {json.dumps(told['share_reached'])}"
        )
    kept = json.loads(args.output.read_text())["sizes"] if args.output.is_file() else {}
    record = {"what": __doc__.split("\n")[0], "sizes": {**kept, args.size: found}}
    write_json(args.output, record)
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
