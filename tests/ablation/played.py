"""Stand-in for `maya train` in the scheduler's tests: write the files of a run within a second.

The rate of the first rule and the seed determine the loss. A recipe with dtype bfloat16 diverges, and one with
image_aspect crop fails. The names of the trained stages are appended to a file.
"""

import json
import sys
import time
from pathlib import Path

import yaml


def main() -> int:
    recipe = yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2]).with_suffix("")
    if recipe["model"]["dtype"] == "bfloat16":
        print(
            "maya train: stage pretrain: step 3: expected a finite loss, found nan at a rate of 1"
        )
        return 2
    if recipe["model"]["image_aspect"] == "crop":
        print("maya train: no room")
        return 2
    for stage in recipe["stages"]:
        place = folder / stage["name"]
        if (place / "config.json").exists():
            continue
        time.sleep(0.3)
        place.mkdir(parents=True, exist_ok=True)
        loss = stage["train"][0]["rate"] + recipe["seed"] / 100
        log = [{"mean_loss": 9.0}, {"mean_loss": loss, "hi/loss": loss + 1, "en/loss": loss - 1}]
        (place / "training_log.json").write_text(
            json.dumps({"seconds": 2.5, "processes": 2, "log": log})
        )
        (place / "config.json").write_text("{}")
        with (folder.parent / "trained.txt").open("a") as file:
            file.write(f"{folder.name} {stage['name']}\n")
    (folder / "config.json").write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
