"""Answer with llama.cpp from GGUF exports of Mayas, and compare prompts, answers and tokens with transformers.

    python tests/compatibility/llama_cpp_on_cpu.py                     # builds llama-cpp-python in a new environment
    python tests/compatibility/llama_cpp_on_cpu.py --python ENV/bin/python --model runs/mini --write

A case is a Maya, exported by `maya convert --to gguf`: tiny ones with random weights, and, with `--model`, a
trained mini. It is `same` if

- llama.cpp tokenizes texts in ten languages equally (for the mini: every text of its dataset),
- every prompt with a picture has as many tokens, and every greedy answer has the same tokens,
- the log-probability of every token of an answer differs by less than a tolerance: llama.cpp's GELU reads
  a table in half precision.

Pictures have the size of the model's input, because llama.cpp pads and resizes other sizes differently. For the
mini, the differences of answers for other sizes, and after 8-bit quantization by llama.cpp, are counted but do not
affect the verdict. Exits with 1 unless all cases are `same`. With `--write` versions and verdicts go to
tests/benchmarks/results/llama_cpp.json.
"""

import argparse
import base64
import io
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "llama_cpp.json"
PACKAGE = "llama-cpp-python==0.3.36"
NEW_TOKENS, PICTURES = 12, 60
# Tolerances of log-probabilities. llama.cpp rounds the input of a bfloat16 matrix to bfloat16.
TOLERANCE, TOLERANCE_BFLOAT16 = 0.02, 0.05
BUILD_IN = 3600  # seconds allowed for compiling llama.cpp
# Widths are multiples of 32, llama.cpp's smallest block.
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "head_dim": 32}
# Tiny case -> arguments of tiny_maya, and arguments of the export.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "siglip": ({}, ()),
    "one_layer": ({"projector_num_layers": 1}, ()),
    "layer_before": ({"vision_feature_layer": -1}, ()),
    "float16": ({}, ("--dtype", "float16")),
    "bfloat16": ({}, ("--dtype", "bfloat16")),
}
MINI = "mini"
SIZES = {"wide": (96, 48), "tall": (48, 96), "large": (200, 200)}
QUANTIZED = "q8_0"


# ------------------------------------------------------------------------------ folders and reference


def make_tiny(name: str, folder: Path) -> Path:
    """Save a tiny Maya of the case."""
    import torch

    from tests.helpers.tiny_maya import tiny_maya

    fields = {"vision_feature_select_strategy": "full", "text": TEXT} | CASES[name][0]
    model, processor = tiny_maya(**fields)
    if options := CASES[name][1]:
        # Let transformers compute with the same rounded weights, in float32.
        model = model.to(getattr(torch, options[-1])).float()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def export(folder: Path, output: Path, *options: str) -> None:
    """Run `maya convert --to gguf`."""
    maya = Path(sys.executable).with_name("maya")
    run(maya, "convert", folder, output, "--to", "gguf", *options)


def tiny_requests(size: int) -> list[dict[str, str]]:
    """Return questions in ten languages, each about a picture of the input's size."""
    from tests.helpers.tiny_maya import tiny_picture
    from tests.helpers.tiny_processing import TEXTS

    pictures = (tiny_picture(seed).resize((size, size)) for seed in range(len(TEXTS)))
    return [
        {"png": png(picture), "question": text}
        for picture, text in zip(pictures, TEXTS.values(), strict=True)
    ]


def mini_requests() -> tuple[list[dict[str, str]], list[str]]:
    """Return questions about pictures of the mini dataset, and all texts of the dataset."""
    import pyarrow.dataset

    from maya_vlm.training.bases.tables import read_splits

    data = REPOSITORY / "training" / "data" / "mini"
    asked = json.loads(
        (REPOSITORY / "training" / "data" / "mini_dataset" / "prompts.json").read_text(
            encoding="utf-8"
        )
    )
    questions = [texts["name"][0] for texts in asked.values()]
    rows = [
        row
        for split in read_splits(data, "images", ["picture"]).values()
        for row in split["picture"]
    ]
    chosen = rows[:: len(rows) // PICTURES][:PICTURES]
    requests = [
        {
            "png": base64.b64encode(row["bytes"]).decode(),
            "question": questions[number % len(questions)],
        }
        for number, row in enumerate(chosen)
    ]
    texts = (
        pyarrow.dataset.dataset(data / "texts")
        .to_table(columns=["text"])["text"]
        .unique()
        .to_pylist()
    )
    return requests, sorted(texts)


def png(picture: Any) -> str:
    """Return a picture as a PNG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def picture_of(request: dict[str, str]) -> Any:
    """Return a request's picture as PIL image, in RGB."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(request["png"]))).convert("RGB")


def reference(folder: Path, requests: list[dict[str, str]], texts: list[str]) -> dict[str, Any]:
    """Return the tokens of `texts`, and `generate`'s answers, with the length of each prompt."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    answers = []
    for request in requests:
        content = [
            {"type": "image", "image": picture_of(request)},
            {"type": "text", "text": request["question"]},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        length = inputs["input_ids"].shape[1]
        tokens = out.sequences[0, length:].tolist()
        logprobs = [
            step.double().log_softmax(-1)[0, token].item()
            for step, token in zip(out.logits, tokens, strict=True)
        ]
        answers.append({"prompt": length, "answer": tokens, "logprobs": logprobs})
    encoded = [processor.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return {"answers": answers, "tokens": encoded}


def differences(
    found: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE
) -> tuple[dict[str, str], float]:
    """Return the differences from the reference, and the largest difference of a log-probability."""
    wrong, largest = {}, 0.0
    cut = [
        n
        for n, (a, b) in enumerate(zip(found["tokens"], expected["tokens"], strict=True))
        if a != b
    ]
    if cut:
        wrong["tokens"] = (
            f"{len(cut)} of {len(expected['tokens'])} texts are cut otherwise, first text {cut[0]}"
        )
    for number, (ours, theirs) in enumerate(
        zip(found["answers"], expected["answers"], strict=True)
    ):
        for part in ("prompt", "answer"):
            if ours[part] != theirs[part]:
                wrong.setdefault(
                    str(number), f"{part}: expected {theirs[part]!r}, found {ours[part]!r}"
                )
        if str(number) not in wrong:
            for a, b in zip(ours["logprobs"], theirs["logprobs"], strict=True):
                largest = max(largest, abs(a - b) if math.isfinite(a) else math.inf)
    if not largest < tolerance:
        wrong["logprobs"] = f"differ by up to {largest:g}, expected less than {tolerance:g}"
    return wrong, largest


def agreement(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the share of answers with equal tokens."""
    same = [
        a["answer"] == b["answer"]
        for a, b in zip(found["answers"], expected["answers"], strict=True)
    ]
    return round(sum(same) / len(same), 4)


# ------------------------------------------------------------------------------ llama.cpp


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """In llama.cpp's environment: tokenize a task's texts, and answer its requests."""
    import numpy as np
    from llama_cpp import GGML_TYPE_F32, Llama, LogitsProcessorList
    from llama_cpp.llama_chat_format import MTMDChatHandler

    folder = Path(task["folder"])
    llama = Llama(
        str(folder / task["model"]),
        chat_handler=MTMDChatHandler(str(folder / "mmproj.gguf"), verbose=False),
        n_ctx=512,
        n_threads=1,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )
    steps: list[tuple[int, int, float]] = []  # length so far, best token, its log-probability

    def record(tokens: Any, logits: Any) -> Any:
        best, values = int(logits.argmax()), logits.astype(np.float64)
        top = values.max()
        steps.append((len(tokens), best, values[best] - top - np.log(np.exp(values - top).sum())))
        return logits

    answers = []
    for request in task["requests"]:
        steps.clear()
        url = "data:image/png;base64," + request["png"]
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": request["question"]},
        ]
        llama.create_chat_completion(
            [{"role": "user", "content": content}],
            temperature=0,
            repeat_penalty=1.0,
            max_tokens=NEW_TOKENS,
            logits_processor=LogitsProcessorList([record]),
        )
        # An answer that ends within a character is continued to the character's end.
        del steps[NEW_TOKENS:]
        answers.append(
            {
                "prompt": steps[0][0],
                "answer": [token for _, token, _ in steps],
                "logprobs": [logprob for *_, logprob in steps],
            }
        )
    tokens = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in task["texts"]]
    return {"answers": answers, "tokens": tokens}


def quantize(task: dict[str, Any]) -> None:
    """In llama.cpp's environment: quantize the decoder to 8 bits."""
    import ctypes

    import llama_cpp

    folder = Path(task["folder"])
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    failed = llama_cpp.llama_model_quantize(
        str(folder / "model.gguf").encode(),
        str(folder / task["model"]).encode(),
        ctypes.byref(params),
    )
    if failed:
        raise RuntimeError(f"llama_model_quantize: {failed}")


def inside(python: Path, action: str, place: Path, **task: Any) -> Any:
    """Run a function of this file in llama.cpp's environment."""
    asked, told = place / "task.json", place / "told.json"
    asked.write_text(json.dumps(task))
    run(python, Path(__file__).resolve(), "--inside", action, asked, told, cwd=place)
    return json.loads(told.read_text())


def run(*command: str | Path, **kwargs: Any) -> None:
    """Run a command; raise RuntimeError with the end of its messages if it fails."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=BUILD_IN, **kwargs
    )
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip())[-3000:]
        raise RuntimeError(f"{' '.join(map(str, command))}: {told}")


def install(place: Path) -> Path:
    """Return the interpreter of a new environment with llama-cpp-python, compiled here."""
    run(sys.executable, "-m", "venv", place)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", PACKAGE)
    return python


# ------------------------------------------------------------------------------ command


def main(arguments: argparse.Namespace) -> int:
    from tests.helpers.tiny import IMAGE_SIZE
    from tests.helpers.tiny_processing import TEXTS

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        python = Path(arguments.python) if arguments.python else install(place / "environment")

        def compare(
            name: str, folder: Path, requests: list, texts: list[str], *options: str
        ) -> None:
            output = place / f"{name}-gguf"
            export(folder, output, *options)
            expected = reference(folder, requests, texts)
            told = {"folder": str(output), "requests": requests, "texts": texts}
            got = inside(python, "answer", place, model="model.gguf", **told)
            tolerance = TOLERANCE_BFLOAT16 if "bfloat16" in options else TOLERANCE
            wrong, largest = differences(got, expected, tolerance)
            found[name] = {
                "verdict": "differs" if wrong else "same",
                "wrong": wrong,
                "requests": len(requests),
                "texts": len(texts),
                "tolerance": tolerance,
                "largest_logprob_difference": largest,
            }
            print(
                f"{name}: {found[name]['verdict']}, log-probabilities within {largest:.2g}",
                flush=True,
            )
            for where, how in wrong.items():
                print(f"  {where}: {how}", flush=True)

        for name, (_, options) in CASES.items():
            folder = make_tiny(name, place / name)
            compare(name, folder, tiny_requests(IMAGE_SIZE), list(TEXTS.values()), *options)
        if arguments.model:
            requests, texts = mini_requests()
            folder = Path(arguments.model)
            compare(MINI, folder, requests, texts)
            found[MINI]["agreement"] = mini_agreement(python, place, folder, requests)
            print(f"{MINI}: share of equal answers {found[MINI]['agreement']}", flush=True)
        if arguments.write:
            write(found, python)
    return int(any(row["verdict"] != "same" for row in found.values()))


def mini_agreement(python: Path, place: Path, folder: Path, requests: list) -> dict[str, float]:
    """Return the share of equal answers for pictures of other sizes, and after quantization."""
    output = str(place / f"{MINI}-gguf")
    shares = {}
    for name, size in SIZES.items():
        resized = [row | {"png": png(picture_of(row).resize(size))} for row in requests]
        got = inside(
            python, "answer", place, folder=output, model="model.gguf", requests=resized, texts=[]
        )
        shares[name] = agreement(got, reference(folder, resized, []))
    model = f"model-{QUANTIZED}.gguf"
    inside(python, "quantize", place, folder=output, model=model)
    got = inside(python, "answer", place, folder=output, model=model, requests=requests, texts=[])
    shares[QUANTIZED] = agreement(got, reference(folder, requests, []))
    return shares


def write(found: dict[str, dict], python: Path) -> None:
    """Write the verdicts and the versions of the libraries."""
    from maya_vlm.training.common.provenance import provenance

    code = "import llama_cpp, platform; print(llama_cpp.__version__, platform.python_version())"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    version, python_version = told.stdout.split()
    content = {
        **provenance("gguf"),
        "engine": {"llama-cpp-python": version, "python": python_version},
        "new_tokens": NEW_TOKENS,
        "sizes": SIZES,
        "cases": found,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        action = {"answer": answer, "quantize": quantize}[sys.argv[2]]
        Path(sys.argv[4]).write_text(json.dumps(action(json.loads(Path(sys.argv[3]).read_text()))))
        sys.exit()
    sys.path.insert(0, str(REPOSITORY))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", help="the interpreter of an environment that has llama-cpp-python"
    )
    parser.add_argument("--model", help="a trained mini")
    parser.add_argument("--write", action="store_true", help="keep the results")
    sys.exit(main(parser.parse_args()))
