"""Estimate of a study's cost: memory and time of every cell, from the estimate of its recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..recipe import find_recipe
from ..run.estimate import GIB, estimate, format_time
from .study import Study, cells_of, overrides_of


@dataclass(frozen=True)
class CellEstimate:
    """What one run of a cell takes.

    memory: bytes that a process needs, at the stage that needs most.
    room: bytes of the smallest device.
    hours: summed over processes; without the stages whose work is unknown.
    known: whether the work of every stage is known.
    device: name of the device.
    """

    name: str
    memory: int
    room: float
    hours: float
    known: bool
    device: str

    @property
    def fits(self) -> bool:
        return self.memory <= self.room


def estimate_cells(
    study: Study, gpu: str | None, accelerate: str | None, trust_remote_code: bool
) -> list[CellEstimate]:
    """Return an estimate of every cell.

    Args:
        study: from `read_study`.
        gpu: as in `run.estimate.estimate`.
        accelerate: as in `run.estimate.estimate`.
        trust_remote_code: as in `run.estimate.estimate`.

    Raises:
        ValueError: a cell's recipe is wrong.
        FileNotFoundError: a cell's recipe names a missing file.
    """
    found = []
    for cell in cells_of(study):
        stages = estimate(
            str(find_recipe(study.base)),
            overrides_of(study, cell, study.seeds[0]),
            gpu=gpu,
            accelerate=accelerate,
            trust_remote_code=trust_remote_code,
        )
        hours = sum(
            (stage.seconds + (stage.eval_seconds or 0)) * stage.processes / 3600
            for stage in stages
            if stage.seconds is not None
        )
        found.append(
            CellEstimate(
                cell.name,
                max(stage.memory.total for stage in stages),
                min(stage.device.memory for stage in stages),
                hours,
                all(stage.seconds is not None for stage in stages),
                stages[0].device.name,
            )
        )
    return found


def estimate_table(study: Study, cells: Sequence[CellEstimate]) -> Iterator[str]:
    """Yield the lines of a table of the cells, and the total of all cells and seeds.

    Yields:
        Lines: per cell, GiB needed per process, GiB of the device, and hours summed over processes.
    """
    width = max(len(cell.name) for cell in cells)
    yield f"{'cell':<{width}} {'GiB':>8} {'of':>5} {'hours':>9}"
    for cell in cells:
        fits = "" if cell.fits else "  does not fit"
        yield f"{cell.name:<{width}} {cell.memory / GIB:8.2f} {cell.room / GIB:5.0f} {cell.hours:9.3g}{fits}"
    runs = len(cells) * len(study.seeds)
    total = sum(cell.hours for cell in cells) * len(study.seeds)
    yield (
        f"{runs} runs ({len(cells)} cells, {len(study.seeds)} seeds): {format_time(total * 3600)} of one "
        f"{cells[0].device}, without evaluation; hours are summed over all processes"
    )
    if not all(cell.known for cell in cells):
        yield "the total leaves out stages whose data or tokenizer is missing"


def check_cells(study: Study, where: str, accelerate: str | None, trust_remote_code: bool) -> str:
    """Return a line that says how long the study will take on this machine.

    Args:
        where: the study's file, for errors.

    Raises:
        MemoryError: cells do not fit in memory, by their estimate; the message names the first.
    """
    cells = estimate_cells(study, None, accelerate, trust_remote_code)
    wrong = [cell for cell in cells if not cell.fits]
    if wrong:
        first, others = wrong[0], f" ({len(wrong)} cells do not fit)" if len(wrong) > 1 else ""
        raise MemoryError(
            f"{where}: cell {first.name!r}: expected at most {first.room / GIB:.1f} GiB, the memory of the "
            f"{first.device}, found an estimate of {first.memory / GIB:.1f} GiB{others}: make the cell smaller, or use "
            "--accelerate with several GPUs"
        )
    return list(estimate_table(study, cells))[len(cells) + 1]
