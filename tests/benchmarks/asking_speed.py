"""Greedy answers about one image in several languages, three ways: seconds, and ratios of their medians.

    python tests/benchmarks/asking_speed.py [--cases short ...] [--rounds 5] [--quick]

- `one_by_one`: `model.generate`, one question at a time.
- `batched`: `model.generate` on padded batches, each question with its image.
- `maya`: `maya_vlm.training.inference.generation.answer`: an image's prefix is computed once for all its
  questions, and finished rows are removed from the batch.

The methods alternate in one process, on the model of training_speed.py, whose parts have about the same shares of
the forward pass as SigLIP-base with Aya-23-8B. Before the rounds all answers are compared, and the command fails if
they differ. The times include reading pictures, prompts and decoding. `nothing_shared`, with one language per image,
is a case without any gain from sharing.

Results go to results/asking_speed.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "asking_speed.json"
sys.path.insert(0, str(ROOT))

from maya_vlm.training.common.files import write_json  # noqa: E402
from maya_vlm.training.inference.generation import Question, answer  # noqa: E402
from tests.benchmarks.training_speed import QUICK, Shape, maya_model, spread  # noqa: E402
from tests.benchmarks.workload import Texts, environment, write_rows  # noqa: E402

TARGET = 3.0  # speed-up over one by one, with eight languages per image


@dataclass(frozen=True)
class Case:
    """`images` images with questions in `languages` languages each, and answers of at most `tokens` tokens."""

    images: int
    languages: int
    tokens: int
    batch_size: int = 32


CASES = {
    "short": Case(8, 8, 16),
    "sentences": Case(4, 8, 64),
    "nothing_shared": Case(32, 1, 16),
    "ten_languages": Case(1, 10, 64),  # one image, as on the demo page
}
SMALL = {"shared": Case(2, 8, 4, 8)}


class Differ(Exception):
    """Two methods gave different answers."""


# ------------------------------------------------------------------------------ methods

Way = Callable[[Any, Any, list[Path], list[Question], int], list[str]]


def one_by_one(
    model: Any, processor: Any, images: list[Path], questions: list[Question], batch_size: int
) -> list[str]:
    return batched(model, processor, images, questions, 1)


def batched(
    model: Any, processor: Any, images: list[Path], questions: list[Question], batch_size: int
) -> list[str]:
    said: list[str] = []
    processor.tokenizer.padding_side = "left"
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        conversations = []
        for question in batch:
            (turn,) = question.turns()
            turn["content"][0]["image"] = Image.open(images[question.images[0]])
            conversations.append([turn])
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=batch[0].max_new_tokens, do_sample=False
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        said += [text.strip() for text in texts]
    return said


class Opened:
    """Pictures in files, read on access."""

    def __init__(self, images: list[Path]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Image.Image:
        return Image.open(self.images[place]).convert("RGB")


def maya(
    model: Any, processor: Any, images: list[Path], questions: list[Question], batch_size: int
) -> list[str]:
    found = answer(model, processor, Opened(images), questions, batch_size=batch_size)
    return [each.text for each in found]


WAYS: dict[str, Way] = {"one_by_one": one_by_one, "batched": batched, "maya": maya}


# ------------------------------------------------------------------------------ measuring


def workload(folder: Path, case: Case) -> tuple[list[Path], list[Question]]:
    """Return pictures, and questions of 10 to 30 tokens about them."""
    path = write_rows(folder, case.images, case.languages, Texts((1, 1), (10, 30)))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(row["images"][0] for row in rows))
    questions = [
        Question((names.index(row["images"][0]), row["messages"][0]["content"]), case.tokens)
        for row in rows
    ]
    return [folder / name for name in names], questions


def say_letters(model: Any, tokenizer: Any) -> None:
    """Restrict the head to tokens of letters, because differences of other tokens do not show in texts."""
    # Do not tie the head to the embeddings: a random model would repeat one token.
    random = torch.Generator().manual_seed(0)
    head = torch.randn(model.lm_head.weight.shape, generator=random)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    said = [token for token, text in enumerate(texts) if text.strip().isalpha()]
    mute = torch.ones(len(head), dtype=torch.bool)
    mute[said] = False
    # Never the most probable token, compared with the largest of many random logits.
    head[mute] = 0
    model.lm_head.weight = torch.nn.Parameter(head)


def measure(case: Case, shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the seconds of each method, and ratios to `maya`. Raise Differ if answers differ."""
    model, processor = maya_model(shape)
    model.eval()
    say_letters(model, processor.tokenizer)
    with tempfile.TemporaryDirectory() as place:
        images, questions = workload(Path(place) / "rows", case)
        said = {
            name: way(model, processor, images, questions, case.batch_size)
            for name, way in WAYS.items()
        }
        for name, texts in said.items():
            wrong = sum(a != b for a, b in zip(texts, said["one_by_one"], strict=True))
            if wrong:
                raise Differ(f"{name}: {wrong} of {len(questions)} answers differ from one_by_one")
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, way in WAYS.items():
                start = time.perf_counter()
                way(model, processor, images, questions, case.batch_size)
                times[name].append(time.perf_counter() - start)
    ours = statistics.median(times["maya"])
    return {
        "case": asdict(case),
        "shape": asdict(shape),
        "image_tokens": shape.image_tokens,
        "rounds": rounds,
        "different_answers": len(set(said["maya"])),
        "seconds": {name: spread(each) for name, each in times.items()},
        "answers_a_second": {
            name: len(questions) / statistics.median(each) for name, each in times.items()
        },
        "times_faster_than": {
            name: statistics.median(each) / ours for name, each in times.items() if name != "maya"
        },
        **environment(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it works")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.quick and args.output == RESULT:
        parser.error("--quick measures nothing worth keeping: give it another --output")
    transformers.logging.set_verbosity_error()
    cases = SMALL if args.quick else {name: CASES[name] for name in args.cases}
    kept = json.loads(args.output.read_text())["cases"] if args.output.is_file() else {}
    for name, case in cases.items():
        try:
            kept[name] = measure(case, QUICK if args.quick else Shape(), args.rounds)
        except Differ as error:
            print(error, file=sys.stderr)
            return 1
        write_json(args.output, {"what": __doc__.split("\n")[0], "cases": kept})
        faster = kept[name]["times_faster_than"]
        told = ", ".join(f"{ratio:.1f} times {other}" for other, ratio in faster.items())
        print(f"{name}: {told}", flush=True)
        if case.languages == 8 and not args.quick and faster["one_by_one"] < TARGET:
            print(f"{name}: expected {TARGET} times one_by_one", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
