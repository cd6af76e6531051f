"""Estimate of a study's cost: memory and time of every cell, from the estimate of its recipe."""

from collections.abc import Iterator

from ..recipe import find_recipe
from ..run.estimate import GIB, estimate, format_time
from .study import Study, cells_of, overrides_of


def estimate_study(
    study: Study, gpu: str | None, accelerate: str | None, trust_remote_code: bool
) -> Iterator[str]:
    """Yield the lines of a table of the cells, and the total of all cells and seeds.

    Args:
        study: from `read_study`.
        gpu: as in `run.estimate.estimate`.
        accelerate: as in `run.estimate.estimate`.
        trust_remote_code: as in `run.estimate.estimate`.

    Yields:
        Lines: per cell, GiB needed per process, GiB of the GPU, and hours summed over processes.

    Raises:
        ValueError: a cell's recipe is wrong.
        FileNotFoundError: a cell's recipe names a missing file.
    """
    cells = cells_of(study)
    width = max(len(cell.name) for cell in cells)
    yield f"{'cell':<{width}} {'GiB':>8} {'of':>5} {'hours':>9}"
    total, known = 0.0, True
    for cell in cells:
        overrides = overrides_of(study, cell, study.seeds[0])
        stages = estimate(
            str(find_recipe(study.base)),
            overrides,
            gpu=gpu,
            accelerate=accelerate,
            trust_remote_code=trust_remote_code,
        )
        memory = max(stage.memory.total for stage in stages) / GIB
        room = min(stage.device.memory for stage in stages) / GIB
        hours = 0.0
        for stage in stages:
            if stage.seconds is None:
                known = False
                continue
            hours += (stage.seconds + (stage.eval_seconds or 0)) * stage.processes / 3600
        total += hours
        fits = "" if memory <= room else "  does not fit"
        yield f"{cell.name:<{width}} {memory:8.2f} {room:5.0f} {hours:9.3g}{fits}"
        device = stages[0].device.name
    runs = len(cells) * len(study.seeds)
    yield (
        f"{runs} runs ({len(cells)} cells, {len(study.seeds)} seeds): {format_time(total * len(study.seeds) * 3600)} "
        f"of one {device}, without evaluation; hours are summed over all processes"
    )
    if not known:
        yield "the total leaves out stages whose data or tokenizer is missing"
