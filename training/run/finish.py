"""The end of a stage: its model, its log and its list of bad rows, whole in one folder."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.files import write_json
from ..common.secrets import without_secrets
from ..recipe import write_recipe
from .checkpoints import writing
from .context import StageRun

LOG = "training_log.json"
BAD_ROWS = "bad_rows.jsonl"


def finish_stage(run: StageRun, trainer: Any, rows: Sequence[Any]) -> None:
    """Write what a stage learned, its log and its bad rows to its folder, and drop its checkpoints.

    rows: of the printed table.
    """
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from ..model.adapters import ADAPTER, merge_adapter
    from ..model.checkpoint import base_of, find_checkpoint

    recipe, stage, folder, state = run.recipe, run.stage, run.folder, run.state
    processor = trainer.processing_class
    temporary = run.work / f"{folder.name}.model"
    if state.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    state.wait_for_everyone()
    trainer.check_weights()
    try:
        with writing(folder.parent):
            trainer.save_model(str(temporary / ADAPTER if stage.adapter else temporary))
            # While transformers knows of a ZeRO-3 run, it cuts every model that is made among the ranks.
            unset_hf_deepspeed_config()
            if stage.adapter is not None and state.is_main_process:
                base = base_of(find_checkpoint(recipe.model, run.previous))
                dtype = getattr(torch, recipe.model.dtype)
                merge_adapter(base, temporary / ADAPTER, dtype).save_pretrained(temporary)
                for place in (temporary, temporary / ADAPTER):
                    processor.save_pretrained(place)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if state.is_main_process:
        write_recipe(recipe, temporary / "recipe.yaml", folder)
        lists = sorted(run.work.glob(f"{stage.name}.bad_rows.*.jsonl"))
        bad = merge_bad_rows(lists, temporary / BAD_ROWS)
        for line in bad:
            run.say("  " + line)
        best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        write_json(
            temporary / LOG,
            {
                "stage": stage.name,
                "steps": trainer.state.global_step,
                **({} if best is None else {"best_step": best}),
                "seconds": round(time.monotonic() - run.started, 1),
                "processes": state.num_processes,
                "device": str(state.device),
                "peak": trainer.peak_source,
                "table": [vars(row) for row in rows],
                "data": trainer.data_collator.data.summary(),
                "bad_rows": bad,
                "log": without_secrets(trainer.state.log_history),
            },
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        # Killed here, the next run finds a finished stage and no need of these.
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        for file in lists:
            file.unlink()
        print(
            f"stage {stage.name}: done in {time.monotonic() - run.started:.0f} s, {folder}",
            flush=True,
        )
    state.wait_for_everyone()


def merge_bad_rows(files: Sequence[Path], target: Path) -> list[str]:
    """Merge the ranks' lists into `target`, each row once; returns what was left out, in words."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                # Ids repeat; a row's number in its file does not, and a file may be several times in the data.
                place = (row.get("data"), row.get("row"))
                identity = place if None not in place else (row["id"], row["language"])
                rows.setdefault((row["path"], row["action"], *identity), row)
            except ValueError:  # empty, or the last line of a killed run: its row was met again
                continue
    counts = Counter((path, action) for path, action, *_ in rows)
    if rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows.values()]
        text = "\n".join(lines) + "\n"
        target.write_bytes(text.encode("utf-8", "backslashreplace"))
    return [
        f"{path}: {count:,} rows {action}, listed in {target.name}"
        for (path, action), count in sorted(counts.items())
    ]
