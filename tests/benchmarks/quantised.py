"""Effects of loading in 8 and 4 bits: logits, answers and the size of the weights.

    python tests/benchmarks/quantised.py [--model runs/mini] [--questions 200]

The model is loaded in float32, in bfloat16, with bitsandbytes in 8 bits (LLM.int8()) and 4 bits (nf4), and with
torchao's int8 weights (`pip install torchao`; left out if it is not installed). Vision tower, projector and head are
never quantized. All versions answer the same questions of the mini dataset's test split, and score the expected
answers:

- `logits`: relative change of the logits at the positions of the expected answers, |found - float32| / |float32|.
- `next`: share of these positions whose likeliest token is that of float32.
- `same`: share of the greedy answers that equal those of float32. `right`: share that equal the expected ones.
- `bytes`: total of all parameters and buffers in memory.

A version that cannot run is recorded with its error: bitsandbytes' 4-bit kernel for CPUs supports only layers whose
width is a multiple of 64, and mini's is 160. So a tiny model of width 64 with random weights is measured too; every
version runs on it. It has not learned to answer, so its answers are not compared, and its random weights, which are
large, lose more than trained weights.

Results go to results/quantised.json.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "quantised.json"
sys.path.insert(0, str(ROOT))

import modeling_maya  # noqa: E402, F401
import processing_maya  # noqa: E402, F401
from maya_vlm.training.common.files import write_json  # noqa: E402
from maya_vlm.training.common.provenance import provenance  # noqa: E402
from maya_vlm.training.evaluation.protocol import Picture, Selection  # noqa: E402
from maya_vlm.training.evaluation.tasks import task as find_task  # noqa: E402
from maya_vlm.training.inference.generation import Question, answer  # noqa: E402
from tests.helpers.tiny_maya import tiny_maya  # noqa: E402

WIDTH = 64  # of the tiny model's decoder
KEPT = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def ways() -> dict[str, dict[str, Any]]:
    """Return name -> arguments of `from_pretrained`."""
    found: dict[str, dict[str, Any]] = {
        "float32": {"dtype": torch.float32},
        "bfloat16": {"dtype": torch.bfloat16},
    }
    for name, bits in (("bitsandbytes int8", "load_in_8bit"), ("bitsandbytes nf4", "load_in_4bit")):
        options: dict[str, Any] = {bits: True, "llm_int8_skip_modules": KEPT}
        if bits == "load_in_4bit":
            options["bnb_4bit_quant_type"] = "nf4"
        config = BitsAndBytesConfig(**options)
        found[name] = {"dtype": torch.bfloat16, "quantization_config": config}
    if find_spec("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEPT)
        found["torchao int8"] = {"dtype": torch.bfloat16, "quantization_config": config}
    return found


def size(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers; shared tensors count once."""
    total = 0
    for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        # torchao's tensors contain other tensors.
        inner = getattr(tensor, "__tensor_flatten__", None)
        parts = [getattr(tensor, name) for name in inner()[0]] if inner else [tensor]
        total += sum(part.nbytes for part in parts)
    return total


def expected_logits(
    model: Any, processor: Any, images: Any, questions: Sequence[Question], texts: Sequence[str]
) -> list[torch.Tensor]:
    """Return the logits, float32 (answer tokens, vocabulary), at the positions of each expected answer."""
    found = []
    for question, text in zip(questions, texts, strict=True):
        turns = question.turns()
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(
            text=prompt + text, images=[images[i] for i in question.images], return_tensors="pt"
        )
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        count = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -count - 1 : -1].float()
        found.append(logits)
    return found


def compare(
    folder: str,
    images: Any,
    questions: Sequence[Question],
    texts: Sequence[str],
    *,
    answers: bool,
) -> list[dict[str, Any]]:
    """Measure a model loaded in every way; `texts` are the expected answers, and `answers` says whether it gives any."""
    processor = AutoProcessor.from_pretrained(folder)
    rows: list[dict[str, Any]] = []
    first: tuple[torch.Tensor, list[str]] | None = None
    for name, options in ways().items():
        model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
        try:
            logits = torch.cat(expected_logits(model, processor, images, questions, texts))
            said = (
                [each.text for each in answer(model, processor, images, questions)]
                if answers
                else []
            )
        except RuntimeError as error:  # a kernel that does not take the model's shapes
            rows.append({"way": name, "error": str(error).splitlines()[0]})
            print(rows[-1], flush=True)
            continue
        first = first or (logits, said)
        row: dict[str, Any] = {
            "way": name,
            "logits": float((logits - first[0]).norm() / first[0].norm()),
            "next": float((logits.argmax(-1) == first[0].argmax(-1)).float().mean()),
        }
        if answers:
            row["same"] = sum(a == b for a, b in zip(said, first[1], strict=True)) / len(said)
            row["right"] = sum(a == b for a, b in zip(said, texts, strict=True)) / len(said)
        rows.append({**row, "bytes": size(model)})
        print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/mini")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    # bitsandbytes warns for every layer that it casts to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    loaded = find_task("mini").load(Selection(limit=args.questions))
    requests = [r for r in loaded.requests if r.subset.endswith("name")][: args.questions]
    keys = [next(part.key for part in r.content if isinstance(part, Picture)) for r in requests]
    images = [loaded.pictures.load(key) for key in keys]
    questions = [
        Question(
            tuple(part if isinstance(part, str) else place for part in request.content),
            request.max_new_tokens,
        )
        for place, request in enumerate(requests)
    ]
    texts = [str(request.expected) for request in requests]
    record: dict[str, Any] = {
        "command": "python tests/benchmarks/quantised.py",
        "model": Path(args.model).name,
        "questions": len(questions),
        "rows": compare(args.model, images, questions, texts, answers=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        model, processor = tiny_maya(
            text={"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": WIDTH // 4}
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        rows = compare(folder, images, questions, texts, answers=False)
    record["tiny"] = {"hidden_size": WIDTH, "rows": rows}
    record |= provenance("bitsandbytes", *(["torchao"] if find_spec("torchao") else []))
    write_json(args.output, record)
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
