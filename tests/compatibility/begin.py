"""Begin a run and a build with the present package, to test that later versions continue them.

    python tests/compatibility/begin.py FOLDER     # writes FOLDER/run and FOLDER/build

The run stops in its second stage, after a checkpoint; `run/log.json` has the log of the uninterrupted run. The
build stops after its translations, which a small local server provides. Pack the folders with
`tar --format=posix`, because a build compares the times of its sources to the nanosecond.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from maya_vlm.training.cli import main  # noqa: E402
from maya_vlm.training.run import trainer  # noqa: E402
from maya_vlm.training.run.train import train  # noqa: E402
from tests.data.test_build import CAPTIONS  # noqa: E402
from tests.helpers.endpoint_server import EndpointServer  # noqa: E402
from tests.run.tiny_run import logged, make_recipe, write  # noqa: E402

# Eight steps in two stages; each stage saves after its second step.
LAST_STEP = 6


def begin_run(folder: Path) -> None:
    os.chdir(folder)
    recipe = make_recipe(Path("."), output_dir="./run")
    recipe["model"] |= {"vision_tower": "./bases/vision", "language_model": "./bases/language"}
    for stage in recipe["stages"]:
        stage["data"][0]["path"] = "./data/rows.jsonl"
    write(recipe, folder / "recipe.yaml")
    write({**recipe, "output_dir": "./whole"}, folder / "whole.yaml")
    train("whole.yaml")
    keys = ("step", "loss", "mean_loss", "mean_accuracy", "grad_norm")
    log = [{key: line[key] for key in keys} for line in logged(folder / "whole" / "finetune")]
    (folder / "log.json").write_text(json.dumps(log, indent=1))
    shutil.rmtree(folder / "whole")
    (folder / "whole.yaml").unlink()

    step, done = trainer.MayaTrainer.training_step, 0

    def stopped(self, *args, **kwargs):
        nonlocal done
        if done == LAST_STEP:
            raise ConnectionError
        done += 1
        return step(self, *args, **kwargs)

    trainer.MayaTrainer.training_step = stopped
    with contextlib.suppress(ConnectionError):
        train("recipe.yaml")


def begin_build(folder: Path) -> None:
    os.chdir(folder)
    rows = [
        {
            "id": f"00{number}",
            "image": f"{number}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": text},
            ],
        }
        for number, text in enumerate(CAPTIONS)
    ]
    Path("captions.json").write_text(json.dumps(rows))
    source = {"kind": "llava", "path": "captions.json", "language": "en", "task": "caption"}
    with EndpointServer({"fr": CAPTIONS}) as server:
        plan = {
            "name": "tiny",
            "output_dir": "build",
            "source": source,
            "languages": ["fr"],
            "unit_rows": 2,
            "translator": {
                "endpoint": {
                    "base_url": server.url,
                    "model": "truth",
                    "max_attempts": 2,
                    "backoff": 0.01,
                }
            },
        }
        Path("plan.yaml").write_text(yaml.safe_dump(plan))
        main(["data", "build", "plan.yaml", "--steps", "source", "translate"])
    shutil.rmtree("build/logs")


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    for name, begin in (("run", begin_run), ("build", begin_build)):
        (target / name).mkdir(parents=True)
        begin(target / name)
