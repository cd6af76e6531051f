"""Draw docs/pictures/prefix.png: eight captions of one image, apart and behind one shared image.

    python docs/prefix_picture.py

The numbers are those of tests/benchmarks/results/training_speed.json, case pretrain_15_60. The file keeps them as
its text `Description`, so that a test can tell whether the picture is up to date.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results" / "training_speed.json"
PICTURE = ROOT / "docs" / "pictures" / "prefix.png"
LANGUAGES = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar")
IMAGE, PADDING, EDGE = "#4c72b0", "#e3e3e3", "white"


def numbers() -> dict[str, Any]:
    """Return what the picture says: decoder tokens a caption, and how many times faster."""
    case = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"]["pretrain_15_60"]
    tokens = case["decoder_tokens_per_sample"]
    return {
        "image": case["shape"]["image_tokens"],
        "apart": tokens["trl_supervised"],
        "shared": tokens["maya"],
        "faster": case["times_faster"]["trl_supervised"]["step"]["ratio_of_medians"],
        "loss": case["loss"]["largest_relative_difference"],
    }


def drawing(found: dict[str, Any]) -> Figure:
    """Return the picture of `numbers()`; one unit of its width is one token."""
    caption = found["shared"] - found["image"] / len(LANGUAGES)
    padding = found["apart"] - found["image"] - caption
    colours = pyplot.get_cmap("Set2").colors
    figure, axes = pyplot.subplots(figsize=(9, 3.4), layout="constrained")

    def block(x: float, y: float, width: float, colour: Any, text: str) -> None:
        axes.add_patch(Rectangle((x, y), width, 0.8, facecolor=colour, edgecolor=EDGE))
        axes.text(x + width / 2, y + 0.4, text, ha="center", va="center", fontsize=8)

    for row, language in enumerate(LANGUAGES):
        end = found["image"] + caption
        block(0, 10 - row, found["image"], IMAGE, "image" if row == 0 else "the same image")
        block(found["image"], 10 - row, caption, colours[row % len(colours)], language)
        block(end, 10 - row, padding, PADDING, "")
    block(0, 0.6, found["image"], IMAGE, "image")
    for row, language in enumerate(LANGUAGES):
        place = found["image"] + row * caption
        block(place, 0.6, caption, colours[row % len(colours)], language)
    width = found["image"] + len(LANGUAGES) * caption
    left = found["apart"] + 15
    axes.text(
        left, 6.6,
        f"apart: {found['apart']:.0f} tokens of the decoder a caption,\npadding (grey) included",
        fontsize=10, va="center",
    )  # fmt: skip
    axes.text(
        left, 5.0,
        f"one shared image: {found['shared']:.0f} tokens a caption,\n{found['faster']:.1f} times as fast, the same loss",
        fontsize=10, va="center",
    )  # fmt: skip
    axes.annotate(
        "", xy=(width * 0.6, 1.7), xytext=(width * 0.6, 3.9), arrowprops={"arrowstyle": "->"}
    )
    axes.set_xlim(-5, width + 5)
    axes.set_ylim(0.2, 11.2)
    axes.axis("off")
    return figure


if __name__ == "__main__":
    found = numbers()
    drawing(found).savefig(PICTURE, dpi=120, metadata={"Description": json.dumps(found)})
