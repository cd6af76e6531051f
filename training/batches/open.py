"""Open the data of a stage, in memory or streamed."""

from pathlib import Path

from ..common.files import write_json
from ..common.reading import read_json
from ..recipe import StageRecipe
from ..rows.tables import DatasetFiles, find_files
from .groups import GroupData
from .source import GroupSource, check_data
from .streaming import StreamedGroups


def open_groups(stage: StageRecipe, seed: int, pinned: Path | None = None) -> GroupSource:
    """Open the data of a stage, streamed if its recipe says so.

    Args:
        pinned: a JSON file that lists the streams' files; created if missing. A resumed run thus reads
            the same commit of a Hub dataset as before.
    """
    if not stage.data[0].streaming:
        return GroupData(stage.data, seed=seed, on_bad_row=stage.on_bad_row)
    if pinned is not None and pinned.is_file():
        files = [DatasetFiles(**f) for f in read_json(pinned)]
    else:
        for recipe in stage.data:
            check_data(recipe)
        files = [
            find_files(r.path, r.config, r.split, r.revision, r.data_files) for r in stage.data
        ]
        if pinned is not None:
            write_json(pinned, [vars(f) for f in files])
    return StreamedGroups(stage.data, files, stage.shuffle_buffer)
