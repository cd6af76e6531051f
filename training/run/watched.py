"""Detection of picture files that changed since a stage began.

The files are those that rows name. The first start of a stage records the size, date and hash of every
picture. A later start compares sizes and dates, and reads only pictures whose size or date differs.
manifest.py covers pictures inside a dataset's folder or tables.
"""

import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..batches.source import GroupSource
from ..common.images import is_address
from ..common.telling import one_line
from ..recipe import DataRecipe, StageRecipe

# Largest total bytes of a source's pictures to hash; for larger sources only sizes and dates are recorded.
HASHED = 16 << 30
# Largest file in bytes that is hashed; a larger file is not a picture.
LARGEST = 1 << 28
# Largest number of recorded pictures per stage.
MOST = 2_000_000
THREADS = 8
_SCHEMA = pa.schema(
    [
        ("source", pa.int16()),
        ("name", pa.string()),
        ("size", pa.int64()),  # -1: not a regular file
        ("date", pa.int64()),
        ("hash", pa.string()),  # None: not read
    ]
)


def folder_of(recipe: DataRecipe) -> Path | None:
    """Return the folder that a source's picture names are relative to, or None if they are not files."""
    if recipe.image_folder is not None:
        folder = Path(recipe.image_folder)
        return folder if folder.is_dir() else None
    return Path(recipe.path).parent if Path(recipe.path).is_file() else None


def note(stage: StageRecipe, data: Sequence[GroupSource], file: Path) -> str | None:
    """Record the pictures of a stage in `file`, unless the file exists.

    Args:
        stage: the stage.
        data: the opened `data` of the stage, and its opened `eval_data` if it has any.
        file: the parquet file to write.

    Returns:
        A line for the user if some pictures were not recorded, else None.
    """
    if file.is_file():
        return None
    sources = [source for each in data for source in each.sources]
    recipes = [*stage.data, *stage.eval_data]
    tables, told = [], None
    left = MOST
    for place, (source, recipe) in enumerate(zip(sources, recipes, strict=True)):
        folder = folder_of(recipe)
        if folder is None:
            continue
        names = list(dict.fromkeys(filter(_is_file, source.named_pictures())))
        if len(names) > left:
            told = f"only the first {MOST:,} pictures are watched for changes"
            names = names[:left]
        left -= len(names)
        paths = [os.path.join(folder, name) for name in names]
        with ThreadPoolExecutor(THREADS) as pool:
            states = list(pool.map(_state, paths, chunksize=256))
            read = sum(max(size, 0) for size, _ in states) <= HASHED
            hashes = list(pool.map(_hash, paths, chunksize=64)) if read else [None] * len(paths)
        sizes, dates = [size for size, _ in states], [date for _, date in states]
        columns = [[place] * len(names), names, sizes, dates, hashes]
        tables.append(pa.table(columns, schema=_SCHEMA))
    folders = [str(folder and folder.resolve()) for folder in map(folder_of, recipes)]
    table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
    table = table.replace_schema_metadata({"folders": json.dumps(folders)})
    temporary = file.with_name(file.name + ".tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, file)
    return told


def check(stage: StageRecipe, file: Path, finished: bool) -> None:
    """Check that no recorded picture of a stage has changed.

    Args:
        stage: the stage.
        file: the file that `note` wrote; without it, nothing is checked.
        finished: whether the stage is finished, so that pictures may be missing.

    Raises:
        ValueError: pictures have changed; the message has the first picture and their number.
    """
    if not file.is_file():
        return
    table = pq.read_table(file)
    before = json.loads((table.schema.metadata or {}).get(b"folders", b"[]"))
    changed: list[str] = []
    for place, recipe in enumerate([*stage.data, *stage.eval_data]):
        folder = folder_of(recipe)
        rows = table.filter(pc.equal(table["source"], place))
        if not len(rows):
            continue
        if folder is None:
            raise ValueError(_told(stage, recipe.image_folder or recipe.path, len(rows)))
        moved = str(folder.resolve()) != before[place]
        paths = [os.path.join(folder, name) for name in rows["name"].to_pylist()]
        noted = zip(*(rows[c].to_pylist() for c in ("size", "date", "hash")), strict=True)
        with ThreadPoolExecutor(THREADS) as pool:
            states = pool.map(_state, paths, chunksize=256)
            changed += [
                path
                for path, old, new in zip(paths, noted, states, strict=True)
                if not _same(path, old, new, moved, finished)
            ]
    if changed:
        raise ValueError(_told(stage, changed[0], len(changed)))


def _told(stage: StageRecipe, first: str, count: int) -> str:
    more = f" and {count - 1:,} more" if count > 1 else ""
    return (
        f"stage {stage.name}: {one_line(first)}{more}: this picture has changed since the run began: "
        "put it back, use another output_dir, or use --restart to discard the old work"
    )


def _same(
    path: str, old: tuple[int, int, str | None], new: tuple[int, int], moved: bool, finished: bool
) -> bool:
    size, date, digest = old
    if new == (size, date) or (finished and new[0] < 0):
        return True
    if new[0] != size:
        return False
    return digest == _hash(path) if digest is not None else moved


def _is_file(key: object) -> bool:
    """Return whether a picture's key is a file name, not a URL."""
    if not isinstance(key, str) or is_address(key):
        return False
    try:
        key.encode()
    except UnicodeEncodeError:  # half a surrogate pair: readers reject such a file name
        return False
    return True


def _state(path: str) -> tuple[int, int]:
    """Return size (bytes) and date (nanoseconds) of a regular file; (-1, 0) for anything else."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)


def _hash(path: str) -> str | None:
    """Return a hash of a regular file of at most LARGEST bytes, or None for other files."""
    size, _ = _state(path)
    if not 0 <= size <= LARGEST:
        return None
    try:
        with open(path, "rb") as file:
            return sha256(file.read()).hexdigest()[:16]
    except OSError:
        return None
