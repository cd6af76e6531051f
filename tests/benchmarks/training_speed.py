"""Our training path beside what a user would do today, on the same conversations and weights.

    python tests/benchmarks/training_speed.py [--cases pretrain_15_60 ...] [--rounds 9] [--quick]

The other side is transformers' `LlavaForConditionalGeneration` with the same SigLIP and Cohere parts, trained by
TRL's `SFTTrainer` with TRL's vision collator on rows of `messages` and `images`, one conversation per row. It is
measured twice:

- `trl`: as installed. Without a GPU, TRL 1.16 computes the head at every position, including padding.
- `trl_supervised`: the same trainer, changed to score only positions with a label, as on CUDA. The remaining gain of
  this package is not caused by TRL's CPU code.

Stock Llava's forward ignores Cohere's `logit_scale`, but TRL's head uses it. This benchmark corrects the forward, and
also compares its loss.

All three alternate step by step in one process, on the same samples. The weights practically do not change
(`workload.RATE`), so all losses of a round must agree. A step is collation, forward and backward, clipping and the
optimizer. Before the rounds, a warm-up step compares the gradients of all trained parameters. The command fails if
loss or gradients differ by more than float32 rounding. A ratio is the median over rounds of the ratio of two times
in one round, with its spread. Peak memory is measured in one process per trainer, relative to the memory when the
trainer is ready.

Results go to results/training_speed.json, one entry per case; cases that were not run keep their entries.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "training_speed.json"
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    CohereConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)
from trl import SFTTrainer  # noqa: E402

from maya_vlm.training.common.files import write_json  # noqa: E402
from maya_vlm.training.recipe import Rule  # noqa: E402
from modeling_maya import MayaConfig, MayaForConditionalGeneration  # noqa: E402
from processing_maya import MayaImageProcessor, MayaProcessor, add_image_token, load_chat_template  # noqa: E402
from tests.benchmarks.memory import in_own_processes, memory_of  # noqa: E402
from tests.benchmarks.workload import (  # noqa: E402
    RATE,
    Stepper,
    Texts,
    Timed,
    arguments,
    environment,
    maya_trainer,
    write_rows,
)
from tests.helpers.tiny import enlarge  # noqa: E402
from tests.helpers.tiny_processing import tiny_tokenizer  # noqa: E402

TRAINERS = ("maya", "trl", "trl_supervised")
# Relative tolerances; another order of summation changes values by less than a hundredth of these.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3


class Differs(ValueError):
    """The trainers' results differ."""


@dataclass(frozen=True)
class Shape:
    """Widths of the model. The FLOPs of head to layers and of tower to decoder have about the proportions
    of SigLIP-base with Aya-23-8B, and the number of image tokens is the original's."""

    hidden_size: int = 512
    intermediate_size: int = 1792
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    vocab_size: int = 4096
    logit_scale: float = 0.5
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 256
    vision_num_hidden_layers: int = 4
    vision_num_attention_heads: int = 4
    image_size: int = 256
    patch_size: int = 16

    @property
    def image_tokens(self) -> int:
        return (
            self.image_size // self.patch_size
        ) ** 2 - 1  # "default" drops one token, like the original


QUICK = Shape(64, 96, 2, 4, 2, 512, 0.5, 32, 48, 2, 2, 32, 8)


@dataclass(frozen=True)
class Case:
    """One comparison. A step has `images` images, each with a conversation in `languages` languages.

    speed, memory: the targets: the least ratio to `trl`'s samples per second, and the largest ratio to its
    extra memory.
    """

    stage: str
    images: int
    languages: int
    texts: Texts
    speed: float
    memory: float | None = None

    @property
    def samples(self) -> int:
        return self.images * self.languages

    @property
    def chat_template(self) -> str:
        return "plain" if self.stage == "pretrain" else "aya"

    @property
    def rules(self) -> list[Rule]:
        if self.stage == "pretrain":
            return [Rule("multi_modal_projector", RATE), Rule(".*", "frozen")]
        return [Rule("vision_tower", "frozen"), Rule(".*", RATE)]


CASES = {
    "pretrain_15_60": Case("pretrain", 2, 8, Texts((15, 60)), speed=4.0, memory=0.25),
    "pretrain_8_24": Case("pretrain", 2, 8, Texts((8, 24)), speed=5.0, memory=0.25),
    # Question and answer have about 100 tokens, after a system turn that all conversations share.
    "finetune_100": Case("finetune", 1, 8, Texts((50, 110), (10, 30), system=30), speed=2.5),
    "nothing_shared": Case("pretrain", 8, 1, Texts((15, 60)), speed=1.15),
}


# ------------------------------------------------------------------------------ both sides


def maya_model(shape: Shape) -> tuple[MayaForConditionalGeneration, MayaProcessor]:
    """Return a Maya with random weights, equal for equal shapes, and large enough to reveal mistakes."""
    tokenizer = tiny_tokenizer()
    image_token = add_image_token(tokenizer)
    text, vision = configs(shape, tokenizer)
    config = MayaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_token,
        vision_feature_select_strategy="default",
    )
    model = enlarge(MayaForConditionalGeneration(config))
    size = {"height": shape.image_size, "width": shape.image_size}
    processor = MayaProcessor(
        image_processor=MayaImageProcessor(size=size, image_aspect="square"),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=load_chat_template("aya"),
    )
    return model, processor


def configs(shape: Shape, tokenizer: Any) -> tuple[CohereConfig, SiglipVisionConfig]:
    values = asdict(shape)
    vision = {k.removeprefix("vision_"): values.pop(k) for k in list(values) if "vision_" in k}
    vision |= {k: values.pop(k) for k in ("image_size", "patch_size")}
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    return CohereConfig(**values, **ids), SiglipVisionConfig(**vision)


def stock_model(shape: Shape, chat_template: str) -> tuple[Any, LlavaProcessor]:
    """Return a Llava of the same parts with `maya_model`'s weights and Cohere's logit scale."""
    maya, _ = maya_model(shape)
    tokenizer = tiny_tokenizer()
    image_token = add_image_token(tokenizer)
    text, vision = configs(shape, tokenizer)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image_token,
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config)
    state = {stock_name(name): value for name, value in maya.state_dict().items()}
    report = model.load_state_dict(state, strict=False)
    # Maya does not have the unused parts: the tower's last layer, norm and pooling head.
    wrong = [n for n in report.missing_keys if not n.startswith("model.vision_tower.")]
    if wrong or report.unexpected_keys:
        raise ValueError(f"weights do not fit: missing {wrong}, left {report.unexpected_keys}")
    model.lm_head.register_forward_hook(lambda head, inputs, out: out * text.logit_scale)
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": shape.image_size, "width": shape.image_size}
        ),
        tokenizer=tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        chat_template=load_chat_template(chat_template),
    )
    return model, processor


def stock_name(name: str) -> str:
    """Return Llava's name of a Maya parameter."""
    return name.replace("projector.layers.0.", "projector.linear_1.").replace(
        "projector.layers.2.", "projector.linear_2."
    )


def stock_trainer(shape: Shape, case: Case, rows: Path, folder: Path) -> SFTTrainer:
    """Return TRL's trainer with its own collator on the same rows, trained on the assistant's turns."""
    model, processor = stock_model(shape, case.chat_template)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if case.stage == "finetune":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    table = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    dataset = datasets.Dataset.from_list(
        [
            {
                "images": [str(rows.parent / name) for name in row["images"]],
                "messages": row["messages"],
            }
            for row in table
        ]
    ).cast_column("images", datasets.List(datasets.Image()))
    return SFTTrainer(
        model,
        arguments(folder, case.samples, assistant_only_loss=True),
        train_dataset=dataset,
        processing_class=processor,
    )


def make_stepper(name: str, shape: Shape, case: Case, rows: Path, folder: Path) -> Stepper:
    """Return a trainer of `TRAINERS`, ready for its first step."""
    if name != "maya":
        around = supervised_only if name == "trl_supervised" else contextlib.nullcontext
        return Stepper(stock_trainer(shape, case, rows, folder), around)
    model, processor = maya_model(shape)
    return Stepper(
        maya_trainer(
            model,
            processor,
            rows,
            case.rules,
            images=case.images,
            languages=case.languages,
            folder=folder,
            chat_template=case.chat_template,
        )
    )


@contextlib.contextmanager
def supervised_only() -> Iterator[None]:
    """Make TRL's head score only positions with a label, as on CUDA."""
    from trl.trainer import utils

    # TRL checks this property of the device before it selects positions; its kernel checks separately.
    original, utils._use_triton = utils._use_triton, lambda device: True
    try:
        yield
    finally:
        utils._use_triton = original


# ------------------------------------------------------------------------------ measurement


def measure(name: str, case: Case, shape: Shape, rounds: int, warm_up: int) -> dict[str, Any]:
    """Measure loss, gradients, times and memory of one case. Raise Differs if results differ."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write_rows(
            folder / "data", (warm_up + rounds + 2) * case.images, case.languages, case.texts
        )
        steppers = {n: make_stepper(n, shape, case, rows, folder / n) for n in TRAINERS}
        first = {n: stepper(keep_gradients=True) for n, stepper in steppers.items()}
        with torch.no_grad():
            trl = steppers["trl"]
            batch = {k: v for k, v in trl.batch.items() if k != "use_cache"}
            stock = float(trl.trainer.model(**batch).loss)
        losses = {n: timed.loss for n, timed in first.items()} | {"stock_forward": stock}
        gradient = {n: gradient_error(steppers["maya"], steppers[n]) for n in TRAINERS[1:]}
        for _ in range(warm_up - 1):
            for stepper in steppers.values():
                stepper()
        timings: dict[str, list[Timed]] = {n: [] for n in TRAINERS}
        for number in range(rounds):
            # The first one in a round finds other cache contents, so the order rotates.
            for place_in_round in range(len(TRAINERS)):
                chosen = TRAINERS[(place_in_round + number) % len(TRAINERS)]
                timings[chosen].append(steppers[chosen]())
            print(
                f"{name} round {number + 1}/{rounds}: "
                + ", ".join(f"{n} {t[-1].step:.2f} s" for n, t in timings.items()),
                flush=True,
            )
    ours = [losses["maya"]] + [t.loss for t in timings["maya"]]
    difference = max(abs(losses[n] / losses["maya"] - 1) for n in losses)
    for n in TRAINERS[1:]:
        theirs = [losses[n]] + [t.loss for t in timings[n]]
        difference = max(difference, *(abs(b / a - 1) for a, b in zip(ours, theirs, strict=True)))
    if difference > LOSS_TOLERANCE or max(gradient.values()) > GRADIENT_TOLERANCE:
        raise Differs(
            f"{name}: the trainers do not compute the same: losses {losses}, apart by {difference:.1e} "
            f"(at most {LOSS_TOLERANCE}), gradients by {gradient} (at most {GRADIENT_TOLERANCE})"
        )
    return {
        "case": asdict(case),
        "shape": {**asdict(shape), "image_tokens": shape.image_tokens},
        "dtype": "float32",
        "gradient_checkpointing": False,
        "samples_per_step": case.samples,
        "rounds": rounds,
        "warm_up": warm_up,
        "loss": {**losses, "largest_relative_difference": difference, "steps": 1 + rounds},
        "gradient_relative_difference": gradient,
        "decoder_tokens_per_sample": {
            n: statistics.mean(t.tokens for t in timings[n]) / case.samples for n in TRAINERS
        },
        "seconds": {n: seconds(timings[n]) for n in TRAINERS},
        "samples_per_second": {
            n: case.samples / statistics.median(t.step for t in timings[n]) for n in TRAINERS
        },
        "times_faster": {n: compare(timings["maya"], timings[n]) for n in TRAINERS[1:]},
    }


def gradient_error(ours: Stepper, theirs: Stepper) -> float:
    """Return the largest relative difference of any parameter's gradient."""
    named = {stock_name(name): value for name, value in ours.gradients.items()}
    if named.keys() != theirs.gradients.keys():
        odd = sorted(named.keys() ^ theirs.gradients.keys())
        raise Differs(f"the trainers do not train the same parameters: {odd[:5]}")
    return max(
        float((theirs.gradients[n] - g).norm() / g.norm().clamp(min=1e-30))
        for n, g in named.items()
    )


def seconds(timings: Sequence[Timed]) -> dict[str, Any]:
    """Return the seconds of whole steps and of their parts."""
    parts = ("step", "collate", "forward_backward", "optimizer")
    return {part: spread([getattr(t, part) for t in timings]) for part in parts}


def compare(ours: Sequence[Timed], theirs: Sequence[Timed]) -> dict[str, Any]:
    """Return the speed-up of `ours` over `theirs`, for whole steps and for forward and backward only."""
    return {
        part: {
            "ratio_of_medians": statistics.median(getattr(t, part) for t in theirs)
            / statistics.median(getattr(t, part) for t in ours),
            "per_round": spread(
                [getattr(b, part) / getattr(a, part) for a, b in zip(ours, theirs, strict=True)]
            ),
        }
        for part in ("step", "forward_backward")
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles, minimum and maximum."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else 3 * [values[0]]
    )
    ends = {"least": min(values), "most": max(values)}
    return {"median": middle, "first_quartile": low, "third_quartile": high, **ends}


# ------------------------------------------------------------------------------ memory


def measure_memory(case: Case, shape: Shape) -> dict[str, Any] | None:
    """Return the bytes of every trainer, and the ratio of ours to theirs, or None as in `in_own_processes`."""
    found = in_own_processes(extra_memory, TRAINERS, case, shape)
    if found is None:
        return None
    share = {n: found["maya"]["extra"] / found[n]["extra"] for n in TRAINERS[1:]}
    return {"bytes": found, "share": share}


def extra_memory(trainer: str, case: Case, shape: Shape) -> dict[str, int]:
    """Return the bytes of this process with a ready trainer, and the additional peak of two whole steps."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = write_rows(folder / "data", 4 * case.images, case.languages, case.texts)
        stepper = make_stepper(trainer, shape, case, rows, folder / trainer)
        return memory_of(lambda: (stepper(), stepper()))


# ------------------------------------------------------------------------------ command


def targets(case: Case, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets with the results, compared with TRL as installed."""
    faster = record["times_faster"]["trl"]["step"]["ratio_of_medians"]
    found = [("samples per second, times those of trl", case.speed, faster, faster >= case.speed)]
    if case.memory is not None and record["memory"] is not None:
        share = record["memory"]["share"]["trl"]
        found.append(("extra memory, share of trl's", case.memory, share, share <= case.memory))
    return [dict(zip(("what", "target", "reached", "met"), row, strict=True)) for row in found]


def table(cases: dict[str, Any]) -> str:
    """Return the results as text."""
    head = (
        f"{'case':16}{'against':16}{'samples/s':>14}{'step':>7}{'quartiles':>14}{'least':>7}"
        f"{'fwd+bwd':>9}{'memory':>9}{'target':>8}"
    )
    lines = [head]
    for name, record in cases.items():
        for other in TRAINERS[1:]:
            faster = record["times_faster"][other]
            rounds = faster["step"]["per_round"]
            speeds = record["samples_per_second"]
            memory = record["memory"]["share"][other] if record["memory"] else None
            quartiles = f"{rounds['first_quartile']:.2f}-{rounds['third_quartile']:.2f}"
            lines.append(
                f"{name:16}{other:16}{speeds['maya']:7.2f}/{speeds[other]:<6.2f}"
                f"{faster['step']['ratio_of_medians']:7.2f}{quartiles:>14}{rounds['least']:7.2f}"
                f"{faster['forward_backward']['ratio_of_medians']:9.2f}"
                + (f"{memory:9.2f}" if memory is not None else f"{'':9}")
                + (f"{record['case']['speed']:8.2f}" if other == "trl" else "")
            )
        loss = record["loss"]
        lines.append(
            f"  loss {loss['maya']:.6f} ours, {loss['trl']:.6f} trl, {loss['stock_forward']:.6f} stock "
            f"forward; over {loss['steps']} steps apart by at most "
            f"{loss['largest_relative_difference']:.1e}, gradients by "
            f"{max(record['gradient_relative_difference'].values()):.1e} (relative)"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the rounds")
    parser.add_argument("--quick", action="store_true", help="tiny models: shows that it works")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # TRL warns that captions have no end-of-turn token; the original's captions have none either.
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()
    shape = QUICK if args.quick else Shape()
    if args.quick and args.output == RESULT:
        parser.error("--quick measures nothing worth keeping: give it another --output")
    kept = json.loads(args.output.read_text())["cases"] if args.output.is_file() else {}
    memory = {name: measure_memory(CASES[name], shape) for name in args.cases}
    for name in args.cases:
        try:
            record = measure(name, CASES[name], shape, args.rounds, args.warm_up)
        except Differs as error:
            print(error, file=sys.stderr)
            return 1
        record["memory"] = memory[name]
        record["targets"] = targets(CASES[name], record)
        kept[name] = {**record, **environment()}
        write_json(args.output, {"what": __doc__.split("\n")[0], "cases": kept})
    print(table({name: kept[name] for name in args.cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
