"""Write the report of a preamble study from its results: a page of Markdown and two pictures."""

import io
from pathlib import Path
from typing import Any

from ...common.files import write_bytes

METRIC_NAMES = {"bleu": "BLEU", "chrf++": "chrF++"}


def write_report(record: dict[str, Any], folder: Path) -> Path:
    """Write report.md, scores.png and sample.png; return the page's path."""
    write_bytes(folder / "scores.png", _scores_picture(record))
    write_bytes(folder / "sample.png", _sample_picture(record))
    path = folder / "report.md"
    write_bytes(path, (format_report(record) + "\n").encode())
    return path


def verdict(language: dict[str, Any], metric: str, alpha: float) -> str:
    """Return one sentence that names the winner, or says that there is none."""
    found = language["metrics"][metric]
    best, name = found["best"], METRIC_NAMES[metric]
    if len(found["scores"]) == 1:
        return f"Only `{best}` was tested."
    rivals = {other: each for other, each in found["against"].items() if each["p"] >= alpha}
    if language["winner"] is not None:
        nearest = max(found["against"].items(), key=lambda item: item[1]["p"])
        return (
            f"**`{best}`** wins: it leads every other preamble in {name}, and the nearest, "
            f"`{nearest[0]}`, by {_interval(nearest[1])} (p = {nearest[1]['p']:.3f})."
        )
    others = ", ".join(f"`{other}` (p = {each['p']:.2f})" for other, each in rivals.items())
    return (
        f"**No significant winner.** `{best}` has the highest {name}, but on {language['scored']} "
        f"captions it does not differ significantly from {others}."
    )


def format_report(record: dict[str, Any]) -> str:
    plan, sample = record["plan"], record["sample"]
    left_out = ", ".join(f"{count:,} for {why}" for why, count in sample["left_out"].items())
    lines = [
        f"# Preambles compared: {record['name']}",
        "",
        f"{sample['drawn']:,} captions, drawn from {sample['captions']:,} over bins of length and "
        f"readability (left out: {left_out}), each translated once by every preamble. References: "
        f"{record['references']['kind']}. Intervals are of a paired bootstrap with {plan['resamples']:,} resamples; "
        f"{METRIC_NAMES[plan['decide_by']]} decides, at p < {plan['alpha']}.",
        "",
        "| language | best preamble | significant winner |",
        "| --- | --- | --- |",
    ]
    for lang, found in record["languages"].items():
        winner = f"`{found['winner']}`" if found["winner"] else "none"
        lines.append(f"| {lang} | `{found['best']}` | {winner} |")
    lines += ["", "![Scores of every preamble](scores.png)", ""]
    for lang, found in record["languages"].items():
        lines += _language(lang, found, plan)
    lines += [
        "## The sample",
        "",
        f"Mean length: {sample['mean_length']['drawn']} characters drawn, "
        f"{sample['mean_length']['all']} in all.",
        "",
        "![Length and complexity of the sample](sample.png)",
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()) + ".",
    ]
    return "\n".join(lines)


def _language(lang: str, found: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    metrics = found["metrics"]
    lines = [f"## {lang}", "", verdict(found, plan["decide_by"], plan["alpha"]), ""]
    heads = [METRIC_NAMES[name] for name in metrics]
    lines.append(f"| preamble | {' | '.join(heads)} | best in resamples | rejected | failed |")
    lines.append(f"| --- | {'--- | ' * len(heads)}---: | ---: | ---: |")
    decided = metrics[plan["decide_by"]]
    for name in sorted(decided["scores"], key=lambda n: -decided["scores"][n]["score"]):
        own = found["preambles"][name]
        cells = [_interval(metrics[metric]["scores"][name]) for metric in metrics]
        why = ", ".join(f"{flag} {count}" for flag, count in own["flags"].items())
        rejected = f"{own['rejected']}" + (f" ({why})" if why else "")
        share = f"{decided['best_share'][name]:.0%}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {share} | {rejected} | {own['failed']} |")
    lines += ["", f"Scored on {found['scored']} captions"]
    if found["without_reference"] or found["unanswered_by_some"]:
        lines[-1] += (
            f"; left out: {found['without_reference']} without a reference, "
            f"{found['unanswered_by_some']} without an answer by some preamble"
        )
    signatures = "; ".join(f"`{metrics[name]['signature']}`" for name in metrics)
    lines[-1] += f". Signatures: {signatures}."
    return [*lines, ""]


def _interval(value: dict[str, float]) -> str:
    return f"{value['score']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _scores_picture(record: dict[str, Any]) -> bytes:
    """Draw every preamble's score with its interval, one panel per language; return PNG."""
    metric = record["plan"]["decide_by"]
    languages = record["languages"]
    figure, axes = _panels(len(languages))
    for axis, (lang, found) in zip(axes, languages.items(), strict=False):
        scores = found["metrics"][metric]["scores"]
        names = sorted(scores, key=lambda n: scores[n]["score"])
        for y, name in enumerate(names):
            own = scores[name]
            color = "#b03a2e" if name == found["winner"] else "#2e5f8a"
            axis.plot([own["low"], own["high"]], [y, y], color=color, linewidth=2)
            axis.plot([own["score"]], [y], "o", color=color)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, len(names) - 0.4)
        winner = f"winner: {found['winner']}" if found["winner"] else "no significant winner"
        axis.set_title(f"{lang}: {winner}", fontsize=10)
        axis.set_xlabel(f"{METRIC_NAMES[metric]}, 95 %")
        axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def _sample_picture(record: dict[str, Any]) -> bytes:
    """Draw the sampled captions by length and complexity; return PNG."""
    figure, (axis,) = _panels(1)
    drawn = record["sample"]["length_and_complexity"]
    axis.scatter(*zip(*drawn, strict=True), s=12, alpha=0.6, color="#2e5f8a")
    axis.set_xlabel("characters")
    axis.set_ylabel("complexity (0 easy, 1 hard)")
    axis.set_title(f"{len(drawn)} captions drawn", fontsize=10)
    axis.grid(alpha=0.3)
    return _png(figure)


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
