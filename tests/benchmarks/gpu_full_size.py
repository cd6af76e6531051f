"""Maya at full size on one GPU, with random weights: speed and memory of both stages.

    python tests/benchmarks/gpu_full_size.py [--images 8 --steps 8] [--only pretrain]

Needs a CUDA GPU with 80 GB. Models with the configs of Aya-23-8B and SigLIP-base and random weights are trained by
MayaTrainer on generated conversations; nothing is downloaded.

- the measured bf16 matrix-multiply peak of the GPU;
- pretrain: whole steps on images with captions in eight languages, plain, with gradient checkpointing
  and with compiled layers, with rows from the recipe's number of workers; model FLOP utilisation counts neither
  padding nor recomputation;
- from that, the time of one pass over LLaVA-Pretrain's 558,128 images in eight languages;
- finetune: the peak memory of steps that train the whole decoder and projector, with the settings of
  maya-8b/finetune for one 80 GB GPU (bf16 weights and gradients, 8-bit paged AdamW), compared with 80 GB.

Results go to results/gpu_full_size.json.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "gpu_full_size.json"
sys.path.insert(0, str(ROOT))

IMAGES, LANGUAGES = 558_128, 8  # of LLaVA-Pretrain, and of its translations for Maya
TARGET_UTILISATION = 0.45
TARGET_BYTES = 80e9
WARM_UP = 2
WORKERS = 4  # dataloader_num_workers of the recipes
PRETRAIN = ({}, {"checkpointing": True}, {"compiled": True})


def full_size_config() -> Any:
    """Return the config of the shipped recipes' full-size Maya: Aya-23-8B with SigLIP-base-256."""
    from maya_vlm.training.recipe import RECIPES
    from modeling_maya import MayaConfig

    file = RECIPES / "maya-8b" / "configs" / "maya-8b.json"
    return MayaConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))


def build(config: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model with random weights on `device`, and a processor with a small tokenizer of the same form."""
    from modeling_maya import MayaForConditionalGeneration
    from processing_maya import MayaImageProcessor, MayaProcessor, add_image_token
    from tests.helpers.tiny_processing import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config.image_token_id = add_image_token(tokenizer)
    with device:
        model = MayaForConditionalGeneration._from_config(config, dtype=dtype)
    height, width = config.vision_image_size
    processor = MayaProcessor(
        image_processor=MayaImageProcessor(
            size={"height": height, "width": width}, image_aspect="square"
        ),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
    )
    return model, processor


def pretrain(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    images: int,
    steps: int,
    peak: float,
    checkpointing: bool = False,
    compiled: bool = False,
    workers: int = WORKERS,
) -> dict[str, Any]:
    """Measure the median pretraining step with `images` images per step, each with captions of 15 to 45
    tokens in eight languages. `peak`: reference FLOP/s."""
    from maya_vlm.training.model.flops import forward_flops, trainable_parts, training_flops
    from maya_vlm.training.recipe import Rule
    from tests.benchmarks.workload import RATE, Stepper, Texts, maya_trainer, write_rows

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        count = (WARM_UP + steps + 1) * images
        rows = write_rows(folder / "data", count, LANGUAGES, Texts((15, 45)))
        model, processor = build(config, device, dtype)
        trainer = maya_trainer(
            model,
            processor,
            rows,
            [Rule("multi_modal_projector", RATE), Rule(".*", "frozen")],
            images=images,
            languages=LANGUAGES,
            folder=folder / "run",
            chat_template="plain",
            compiled=compiled,
            bf16=dtype == torch.bfloat16,
            gradient_checkpointing=checkpointing,
            dataloader_num_workers=workers,
        )
        stepper = Stepper(trainer)
        reset_memory()
        timings, utilisation, tokens = [], [], 0
        forward = forward_flops(config)
        learns = trainable_parts(
            ((n, p.shape, p.requires_grad) for n, p in model.named_parameters()), config, forward
        )
        for number in range(WARM_UP + steps):
            timed = stepper()
            if number < WARM_UP:
                continue
            work = real_work(stepper.batch)
            flops = training_flops(forward, learns, **work)
            timings.append(timed)
            tokens += work["tokens"]
            utilisation.append(flops / timed.step / peak)
    step = statistics.median(t.step for t in timings)
    return {
        "gradient_checkpointing": checkpointing,
        "compiled": compiled,
        "loader_workers": workers,
        "images_per_step": images,
        "samples_per_step": images * LANGUAGES,
        "steps": steps,
        "seconds": {
            "step": step,
            "steps": [t.step for t in timings],
            "forward_backward": statistics.median(t.forward_backward for t in timings),
            "wait_for_rows": statistics.median(t.collate for t in timings),
        },
        "samples_per_second": images * LANGUAGES / step,
        "real_tokens_per_second": tokens / sum(t.step for t in timings),
        "padding_share": 1 - tokens / sum(t.tokens for t in timings),
        "model_flop_utilisation": statistics.median(utilisation),
        "peak_bytes": peak_memory(),
        "whole_pass_hours": IMAGES / images * step / 3600,
    }


def real_work(batch: dict[str, Any]) -> dict[str, int]:
    """Return the arguments of `training_flops` for a step of MayaTrainer, without padding.

    A token's position is the number of tokens that it attends to before it, because positions restart after
    a prefix.
    """
    rows = batch["rows"]
    padding = sum(row["padding"] for row in rows)
    return {
        "tokens": sum(row["input_ids"].numel() for row in rows) - padding,
        "pairs": sum(int((row["position_ids"] + 1).sum()) for row in rows) - padding,
        "positions": sum(len(row["labels"]) for row in rows),
        "images": sum(len(row["pixel_values"]) for row in rows if "pixel_values" in row),
    }


def finetune(
    config: Any,
    device: torch.device,
    *,
    images: int,
    steps: int,
    optimizer: str = "paged_adamw_8bit",
) -> dict[str, Any]:
    """Measure peak memory and seconds of checkpointed steps that train everything except the tower. Weights,
    gradients and activations are bfloat16, as in a run with `bf16: false` and dtype bfloat16."""
    from maya_vlm.training.recipe import Rule
    from tests.benchmarks.workload import RATE, Stepper, Texts, maya_trainer, write_rows

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = Texts((50, 110), (10, 30), system=30)
        rows = write_rows(folder / "data", (WARM_UP + steps + 1) * images, LANGUAGES, texts)
        model, processor = build(config, device, torch.bfloat16)
        trainer = maya_trainer(
            model,
            processor,
            rows,
            [Rule("vision_tower", "frozen"), Rule(".*", RATE)],
            images=images,
            languages=LANGUAGES,
            folder=folder / "run",
            chat_template="aya",
            bf16=False,
            gradient_checkpointing=True,
            optim=optimizer,
        )
        stepper = Stepper(trainer)
        timings = [stepper() for _ in range(WARM_UP + steps)][WARM_UP:]
        paged = paged_memory()
    most = peak_memory() + paged
    return {
        "images_per_step": images,
        "samples_per_step": images * LANGUAGES,
        "weights": "bfloat16",
        "optimizer": optimizer,
        "gradient_checkpointing": True,
        "tokens_per_step": statistics.mean(t.tokens for t in timings),
        "seconds_per_step": statistics.median(t.step for t in timings),
        "peak_bytes": most,
        "paged_bytes": paged,
        "target_bytes": TARGET_BYTES,
        "met": most <= TARGET_BYTES,
    }


def reset_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Return the peak of PyTorch's reserved bytes, 0 without a GPU."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def paged_memory() -> int:
    """Return the bytes of optimizer state that bitsandbytes may move to main memory, outside PyTorch's count."""
    if not torch.cuda.is_available():
        return 0
    from bitsandbytes.functional import GlobalPageManager

    return sum(t.numel() * t.element_size() for t in GlobalPageManager.get_instance().paged_tensors)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="a pretrain step")
    parser.add_argument("--finetune-images", type=int, default=2, help="a finetune step")
    parser.add_argument("--steps", type=int, default=8, help="behind two of warm-up")
    parser.add_argument("--only", choices=("pretrain", "finetune"))
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_full_size needs a CUDA GPU with 80 GB; torch finds none here", file=sys.stderr)
        return 1

    import transformers

    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.model.flops import measure_peak
    from tests.benchmarks.workload import environment

    transformers.logging.set_verbosity_error()
    device = torch.device("cuda")
    peak = measure_peak(device, torch.bfloat16, seconds=5.0)
    record: dict[str, Any] = {
        "what": __doc__.split("\n")[0],
        "gpu": torch.cuda.get_device_name(),
        "gpu_bytes": torch.cuda.get_device_properties(0).total_memory,
        "matmul_peak_bf16_tflops": peak / 1e12,
    }
    if args.only != "finetune":
        record["pretrain"] = []
        for way in PRETRAIN:
            reset_memory()
            try:
                found = pretrain(
                    full_size_config(),
                    device,
                    torch.bfloat16,
                    images=args.images,
                    steps=args.steps,
                    peak=peak,
                    **way,
                )
            except torch.cuda.OutOfMemoryError:
                found = {**way, "out_of_memory": True}
            record["pretrain"].append(found)
            print(found, flush=True)
        most = max(p.get("model_flop_utilisation", 0.0) for p in record["pretrain"])
        record["target"] = {
            "what": "model FLOP utilisation in pretraining",
            "target": TARGET_UTILISATION,
            "reached": most,
            "met": most >= TARGET_UTILISATION,
        }
    if args.only != "pretrain":
        reset_memory()
        try:
            record["finetune"] = finetune(
                full_size_config(), device, images=args.finetune_images, steps=args.steps
            )
        except torch.cuda.OutOfMemoryError:
            record["finetune"] = {"out_of_memory": True, "met": False}
        print(record["finetune"], flush=True)
    write_json(args.output, {**record, **environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
