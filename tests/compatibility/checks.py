"""Checks of a saved Maya folder in an environment with only torch, transformers and pillow.

    python checks.py FOLDER OUTPUT.json [CHECK ...]

Nothing from this repository is imported, because the folder contains its code. Every check returns values
(tokens, logits, texts) that the matrix compares between releases of transformers. A check raises `Absent` if the
environment lacks a feature: an older release, or no peft or TRL.
"""

import base64
import contextlib
import importlib
import io
import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

TRUST = {"trust_remote_code": True}
QUESTIONS = ("What is shown in the picture?", "Que voit-on sur l'image ?")
GREEDY = {"max_new_tokens": 8, "do_sample": False}


class Absent(Exception):
    """The installed release lacks the feature of a check."""


class Folder:
    """The folder under test, with its model and processor, loaded once."""

    def __init__(self, path: Path, scratch: Path):
        self.path, self.scratch = str(path), scratch
        self.pictures = [picture(0), picture(1), picture(2)]
        self.files = []
        for index, image in enumerate(self.pictures):
            self.files.append(str(scratch / f"{index}.png"))
            image.save(self.files[-1])
        auto = transformers.AutoModelForImageTextToText
        self.model = auto.from_pretrained(self.path, **TRUST).eval()
        self.processor = AutoProcessor.from_pretrained(self.path, **TRUST)

    def messages(self, images: list[Any], text: str, key: str = "path") -> list[dict]:
        parts: list[dict] = [{"type": "image", key: image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def inputs(self, *conversations: list[dict], **kwargs: Any) -> Any:
        """Return the model inputs of one conversation, or of several, padded."""
        several = len(conversations) > 1
        if several:
            kwargs["processor_kwargs"] = {"padding": True}
        return self.processor.apply_chat_template(
            list(conversations) if several else conversations[0],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **kwargs,
        )

    def answer(self, inputs: Any, model: Any = None, **options: Any) -> list[list[int]]:
        """Return the new tokens of every row."""
        with torch.no_grad():
            tokens = (model or self.model).generate(**inputs, **{**GREEDY, **options})
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    def logits(self, inputs: Any, model: Any = None) -> list[float]:
        with torch.no_grad():
            return (model or self.model)(**inputs).logits[0, -1].double().tolist()


def picture(seed: int) -> Image.Image:
    image = Image.new("RGB", (20, 16), ((seed * 70) % 256, (seed * 130 + 60) % 256, 200))
    image.paste((255, (seed * 40) % 256, 0), (4, 4, 8 + seed % 9, 14))
    return image


# Loading


def auto_classes(f: Folder) -> dict:
    """Check that every Auto class loads the folder, with the same weights."""
    inputs = f.inputs(f.messages(f.files[:1], QUESTIONS[0]))
    found: dict[str, Any] = {"config": type(AutoConfig.from_pretrained(f.path, **TRUST)).__name__}
    for name in (
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        "AutoModelForCausalLM",
    ):
        if hasattr(transformers, name):
            model = getattr(transformers, name).from_pretrained(f.path, **TRUST)
            found[name] = [type(model).__name__, f.logits(inputs, model)]
    headless = AutoModel.from_pretrained(f.path, **TRUST)
    with torch.no_grad():
        hidden = headless(**inputs).last_hidden_state[0, -1].double().tolist()
    found["AutoModel"] = [type(headless).__name__, hidden]
    found["AutoTokenizer"] = AutoTokenizer.from_pretrained(f.path, **TRUST)("a b")["input_ids"]
    from_config = AutoModel.from_config(headless.config, **TRUST)
    found["from_config"] = sum(parameter.numel() for parameter in from_config.parameters())
    return found


def image_processor(f: Folder) -> dict:
    """Check that AutoImageProcessor loads the image processor alone."""
    try:
        loaded = transformers.AutoImageProcessor.from_pretrained(f.path, **TRUST)
    except ImportError as error:
        raise Absent("AutoImageProcessor needs torchvision in this release") from error
    pixels = loaded(f.pictures[0], return_tensors="pt")["pixel_values"]
    return {"pixels": pixels.double().mean(dim=(2, 3))[0].tolist()}


def chat_template(f: Folder) -> dict:
    """Check pictures as path, PIL image, data URI, base64 and OpenAI part; text only; a system turn."""
    buffer = io.BytesIO()
    f.pictures[0].save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    ways = {
        "path": f.messages(f.files[:1], QUESTIONS[0]),
        "image": f.messages(f.files[:1], QUESTIONS[0], "image"),
        "PIL": f.messages(f.pictures[:1], QUESTIONS[0], "image"),
        "data": f.messages([f"data:image/png;base64,{text}"], QUESTIONS[0], "url"),
        "base64": f.messages([text], QUESTIONS[0], "base64"),
    }
    ways["openai"] = json.loads(json.dumps(ways["data"]))
    part = ways["openai"][0]["content"][0]
    ways["openai"][0]["content"][0] = {"type": "image_url", "image_url": {"url": part["url"]}}
    found: dict[str, Any] = {}
    for name, messages in ways.items():
        inputs = f.inputs(messages)
        found[name] = [inputs["input_ids"].tolist(), inputs["pixel_values"].double().sum().item()]
    first = found["path"]
    assert all(found[name] == first for name in ways), "one picture, several pixel values"
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[1]}]
    found["text"] = f.answer(f.inputs(plain))
    learned = f.processor.apply_chat_template(
        [*ways["path"], {"role": "assistant", "content": "A boat."}],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    found["assistant_mask"] = learned["assistant_masks"]
    assert 0 < sum(learned["assistant_masks"][0]) < 20
    return found


# Generation


def generation(f: Folder) -> dict:
    """Check batched = single, two pictures, no cache, streaming, sampling of one token."""
    first = f.messages(f.files[:2], QUESTIONS[0])
    second = f.messages(f.files[2:], QUESTIONS[1])
    batch, one, two = f.inputs(first, second), f.inputs(first), f.inputs(second)
    found: dict[str, Any] = {"batch": f.answer(batch), "logits": f.logits(one)}
    assert found["batch"] == f.answer(one) + f.answer(two), (
        "batched answers differ from single ones"
    )
    assert f.answer(one, use_cache=False) == f.answer(one), "the cache changes the answer"
    sampled = f.answer(batch, do_sample=True, top_k=1, num_return_sequences=2)
    rows = [row for row in found["batch"] for _ in range(2)]
    assert sampled == rows, "two sequences of one row differ from its greedy answer"
    other = {**one, "pixel_values": -one["pixel_values"]}
    assert f.logits(other) != found["logits"], "the picture changes nothing"
    return found


def beams(f: Folder) -> dict:
    """Check that batched beam search with one and two pictures equals that of each row alone."""
    first = f.messages(f.files[:2], QUESTIONS[0])
    second = f.messages(f.files[2:], QUESTIONS[1])
    found = f.answer(f.inputs(first, second), num_beams=3)
    alone = f.answer(f.inputs(first), num_beams=3) + f.answer(f.inputs(second), num_beams=3)
    assert found == alone, "beam search of a batch differs from that of its rows"
    return {"beams": found}


def streaming(f: Folder) -> dict:
    """Check that the streamed text is the answer."""
    inputs = f.inputs(f.messages(f.files[:1], QUESTIONS[0]))
    said = io.StringIO()
    streamer = transformers.TextStreamer(f.processor.tokenizer, skip_prompt=True)
    with contextlib.redirect_stdout(said), torch.no_grad():
        f.model.generate(**inputs, **GREEDY, streamer=streamer)
    expected = f.processor.decode(f.answer(inputs)[0])
    assert said.getvalue().strip() == expected.strip(), "streamed text differs from the answer"
    return {"streamed": said.getvalue()}


def lookup(f: Folder) -> dict:
    """Check that prompt lookup gives the greedy answer."""
    inputs = f.inputs(f.messages(f.files[:1], QUESTIONS[0]))
    found = f.answer(inputs, prompt_lookup_num_tokens=3)
    assert found == f.answer(inputs), "prompt lookup changes the answer"
    return {"lookup": found}


def pipelines(f: Folder) -> dict:
    """Check `pipeline` with a chat, a batch of chats, and images with texts."""
    pipe = transformers.pipeline("image-text-to-text", model=f.path, **TRUST)
    chat = f.messages(f.files[:1], QUESTIONS[0])
    said = pipe(text=chat, max_new_tokens=8, do_sample=False, return_full_text=False)
    prompt = f.processor.apply_chat_template(chat, add_generation_prompt=True)
    plain = pipe(
        images=f.pictures[0],
        text=prompt,
        max_new_tokens=8,
        do_sample=False,
        return_full_text=False,
    )
    found = [said[0]["generated_text"], plain[0]["generated_text"]]
    new = f.answer(f.inputs(chat))[0]
    expected = f.processor.decode(new, skip_special_tokens=True)
    assert found == [expected, expected], f"found {found}, expected {expected!r} twice"
    return {"said": found}


# Saving


def saving(f: Folder) -> dict:
    """Check that a folder saved here gives the same answers and contains the same code."""
    again = f.scratch / "again"
    f.model.save_pretrained(again)
    f.processor.save_pretrained(again)
    model = transformers.AutoModelForImageTextToText.from_pretrained(str(again), **TRUST)
    processor = AutoProcessor.from_pretrained(str(again), **TRUST)
    here = {path.name for path in Path(f.path).glob("*.py")}
    assert {path.name for path in again.glob("*.py")} == here, "code files differ"
    inputs = f.inputs(f.messages(f.files[:1], QUESTIONS[0]))
    assert f.logits(inputs, model.eval()) == f.logits(inputs), "saved and loaded logits differ"
    text = processor.apply_chat_template(f.messages(f.files[:1], QUESTIONS[0]))
    assert text == f.processor.apply_chat_template(f.messages(f.files[:1], QUESTIONS[0]))
    saved = json.loads((again / "config.json").read_text())
    assert str(f.scratch) not in json.dumps(saved), "a path of this machine in config.json"
    return {"auto_map": saved["auto_map"]}


def training(f: Folder) -> dict:
    """Check loss and gradients, with and without gradient checkpointing."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(f.path, **TRUST).train()
    inputs = f.inputs(f.messages(f.files[:2], QUESTIONS[0]))
    labels = inputs["input_ids"].clone()
    labels[labels == model.config.image_token_id] = -100
    found = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        output = model(**inputs, labels=labels, use_cache=False)
        output.loss.backward()
        norm = sum(
            float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None
        )
        found.append([float(output.loss), norm])
    assert abs(found[0][1] - found[1][1]) < 1e-4 * found[0][1], "checkpointing changes gradients"
    return {"loss": found[0][0], "gradient": found[0][1]}


def static_cache(f: Folder) -> dict:
    """Check that a static cache gives the greedy answer, also with a decoder compiled as one graph."""
    inputs = f.inputs(f.messages(f.files[:1], QUESTIONS[0]))
    expected = f.answer(inputs)
    assert f.answer(inputs, cache_implementation="static") == expected, "a static cache differs"
    return {"static": expected}


# With peft and TRL


def adapters(f: Folder) -> dict:
    """Check that peft adds and saves an adapter, and that every way to load it gives the same logits."""
    peft = wanted("peft")
    inputs = f.inputs(f.messages(f.files[:2], QUESTIONS[0]))
    auto = transformers.AutoModelForImageTextToText
    torch.manual_seed(0)
    config = peft.LoraConfig(
        target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False, r=4
    )
    adapted = peft.get_peft_model(auto.from_pretrained(f.path, **TRUST), config).eval()
    folder = str(f.scratch / "adapter")
    adapted.save_pretrained(folder)
    expected = f.logits(inputs, adapted)
    assert expected != f.logits(inputs), "the adapter changes nothing"
    loaded = peft.PeftModel.from_pretrained(auto.from_pretrained(f.path, **TRUST), folder).eval()
    assert close(f.logits(inputs, loaded), expected), "loaded by peft the logits differ"
    assert f.answer(inputs, loaded) == f.answer(inputs, adapted)
    merged = loaded.merge_and_unload()
    assert close(f.logits(inputs, merged), expected), "merged the logits differ"
    found: dict[str, Any] = {"logits": expected}
    try:
        direct = auto.from_pretrained(folder, **TRUST).eval()
    except (ImportError, AttributeError) as error:
        # 5.6 has no loading report for adapters; 5.15 imports a name that no released peft has.
        found["not loaded by transformers itself"] = str(error)[:100]
    else:
        assert close(f.logits(inputs, direct), expected), "loaded by transformers the logits differ"
    return found


def trainers(f: Folder) -> dict:
    """Check that TRL's SFT, DPO, GRPO and RLOO trainers run steps on messages with embedded pictures."""
    trl, datasets = wanted("trl"), wanted("datasets")
    buffers = []
    for image in f.pictures:
        buffers.append(io.BytesIO())
        image.save(buffers[-1], format="PNG")
    pictures = [{"bytes": buffer.getvalue(), "path": None} for buffer in buffers]

    def say(role: str, text: str, images: int = 0) -> list[dict]:
        parts: list[dict] = [{"type": "image"}] * images
        return [{"role": role, "content": [*parts, {"type": "text", "text": text}]}]

    def rows(*columns: dict) -> Any:
        made = datasets.Dataset.from_list(list(columns))
        return made.cast_column("images", [datasets.Image()])

    ask, answer = say("user", QUESTIONS[0], 1), say("assistant", "A boat.")
    told = rows(*({"images": [p], "messages": [*ask, *answer]} for p in pictures))
    pairs = rows(
        *(
            {"images": [p], "prompt": ask, "chosen": answer, "rejected": say("assistant", "No.")}
            for p in pictures
        )
    )
    answered = rows(*({"images": [p], "prompt": ask, "completion": answer} for p in pictures))
    plain = [{"role": "user", "content": QUESTIONS[0]}]
    asked = rows(*({"images": [p], "prompt": plain} for p in pictures))

    def reward(completions: list, **_: Any) -> list[float]:
        return [float(len(str(completion))) for completion in completions]

    def run(kind: str, data: Any, **settings: Any) -> list[float]:
        extra = {"reward_funcs": reward} if kind in ("GRPO", "RLOO") else {}
        config = getattr(trl, f"{kind}Config")
        known = config.__dataclass_fields__
        arguments = {
            "output_dir": str(f.scratch / kind),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            "trust_remote_code": True,
            "max_length": None,
            "bf16": False,
            "gradient_checkpointing": None,
            "activation_checkpointing": False,
            "seed": 0,
            **settings,
        }
        if "activation_checkpointing" not in known:
            arguments["gradient_checkpointing"] = False
        arguments = {name: value for name, value in arguments.items() if name in known}
        model = transformers.AutoModelForImageTextToText.from_pretrained(f.path, **TRUST)
        torch.manual_seed(0)
        try:
            trainer = getattr(trl, f"{kind}Trainer")(
                model=model,
                args=config(**arguments),
                train_dataset=data,
                processing_class=AutoProcessor.from_pretrained(f.path, **TRUST),
                **extra,
            )
        except ValueError as error:
            if "requires transformers" not in str(error):
                raise
            raise Absent(str(error)) from error
        trainer.train()
        before = dict(f.model.named_parameters())
        changed = any(
            not torch.equal(parameter.detach(), before[name])
            for name, parameter in trainer.model.named_parameters()
        )
        assert changed, f"{kind}: nothing was learned"
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    generated = {"num_generations": 2, "max_completion_length": 6, "temperature": 1.0}
    found = {
        "SFT": run("SFT", answered),
        "DPO": run("DPO", pairs),
    }
    of_all_tokens = run("SFT", told)
    # Before 5.10, transformers' Trainer divides by one extra token per row, which has no logit.
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 10):
        found["SFT on all tokens"] = of_all_tokens
    with contextlib.suppress(Absent):
        found["SFT on answers only"] = run("SFT", told, assistant_only_loss=True)
    assert abs(found["DPO"][0] - 0.6931) < 1e-2, f"DPO's first loss is ln 2, found {found['DPO']}"
    # These two trainers learn from samples, so the check can only compare that they ran.
    for kind in ("GRPO", "RLOO"):
        assert len(run(kind, asked, **generated)) == 2
    return found


def wanted(name: str) -> Any:
    """Import a package that only some environments have. Raise Absent if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{name} is not installed") from error


def close(one: list[float], other: list[float]) -> bool:
    """Return whether logits are equal up to float32 rounding."""
    return all(abs(a - b) <= 1e-4 * (1 + abs(a)) for a, b in zip(one, other, strict=True))


CHECKS: dict[str, Callable[[Folder], dict]] = {
    check.__name__: check
    for check in (
        auto_classes,
        image_processor,
        chat_template,
        generation,
        beams,
        streaming,
        lookup,
        pipelines,
        saving,
        training,
        static_cache,
        adapters,
        trainers,
    )
}


def main(folder: str, output: str, *names: str) -> None:
    """Run the named checks (all without names), and write their results to `output`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage()[:300])

    transformers.utils.logging.add_handler(Collect(logging.WARNING))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            opened = Folder(Path(folder).resolve(), Path(scratch))
        except Exception:
            results = {name: {"error": traceback.format_exc()[-2000:]} for name in names or CHECKS}
        for name in names or CHECKS:
            if name in results:
                continue
            try:
                results[name] = {"values": CHECKS[name](opened)}
            except Absent as absent:
                results[name] = {"absent": str(absent)}
            except Exception:
                results[name] = {"error": traceback.format_exc()[-2000:]}
    report = {
        "python": sys.version.split()[0],
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "warnings": sorted({str(w.message)[:300] for w in caught} | set(said)),
        "checks": results,
    }
    Path(output).write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
