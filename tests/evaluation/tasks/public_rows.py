"""Small copies of public datasets: columns and types of the real ones, and a card that names the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image

from maya_vlm.training.evaluation.protocol import Loaded, Scored, Task
from maya_vlm.training.inference.generation import Answer

TEXT, PICTURE = datasets.Value("string"), datasets.Image()


def picture(shade: int) -> Image.Image:
    """Return a picture of one colour."""
    return Image.new("RGB", (24, 16), (shade, 90, 200))


def write_dataset(
    folder: Path,
    features: Mapping[str, Any],
    splits: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
) -> Path:
    """Write rows by (config, split) in the layout of `push_to_hub`."""
    configs: dict[str, list[dict[str, str]]] = {}
    for (config, split), rows in splits.items():
        place = "data" if config == "default" else config
        kinds = {name: features[name] for name in rows[0]}
        table = datasets.Dataset.from_list(list(rows), features=datasets.Features(kinds))
        (folder / place).mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / place / f"{split}-00000-of-00001.parquet"))
        configs.setdefault(config, []).append({"split": split, "path": f"{place}/{split}-*"})
    head = [{"config_name": name, "data_files": files} for name, files in configs.items()]
    card = yaml.safe_dump({"configs": head})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


def answered(task: Task, loaded: Loaded, texts: Sequence[str]) -> list[Scored]:
    """Return the requests with these answers, scored."""
    return [
        Scored(request, (given := Answer(text, 1, True)), task.score(request, given))
        for request, text in zip(loaded.requests, texts, strict=True)
    ]


def values(task: Task, scored: Sequence[Scored], metric: str) -> dict[str, float]:
    """Return subset -> the value for English."""
    rows = task.aggregate(scored, "model", {"all": ["en"]}, 0)
    for row in rows:
        assert row["subset"] in task.subsets
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
    return {
        row["subset"]: row["value"]
        for row in rows
        if (row["metric"], row["language"]) == (metric, "en")
    }
