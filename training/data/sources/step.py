"""Sources become source units: rows of one form, sorted by id, in parquet files of `unit_rows`.

Read in a stream and sorted on disk, so that 4.4 million rows take the memory of ten thousand. A row
that cannot be used is never dropped unseen: it stands in `refused.jsonl` with its field and reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from tqdm.auto import tqdm

from ...common.files import atomic, sha256_file, write_bytes, write_json, write_parquet
from ...common.images import SUFFIXES
from ...common.reading import read_json as read_json_file
from ...common.schema import digest, to_dict
from ...common.shapes import has_shape
from ...rows.conversations import RowReader
from ...rows.hub import HubFiles
from ...rows.json_rows import rows_suffix
from ...rows.tables import built_files
from .external_sort import ExternalSort
from .pictures import Pictures, fault_of
from .readers import (
    Table,
    files_in,
    language_of_file,
    open_folder,
    open_hub,
    open_rows,
    open_tables,
)
from .records import COLUMNS, SOURCE_SCHEMA, Problem, Record, Row, place_of, to_row

MINI = Path(__file__).resolve().parents[1] / "mini"
# Rows of a form of ours that others would not know; a change of it makes source units anew.
_VERSION = 1
_COUNTS = {...: int}
_MANIFEST = {
    "key": str,
    **dict.fromkeys(("read", "rows", "refused"), int),
    **dict.fromkeys(("refused_for", "notes", "languages", "tasks"), _COUNTS),
    "units": [{"unit": str, "rows": int, "sha256": str}],
}


@dataclass
class SourcePlan:
    """Where images and texts come from.

    kind: `llava` for files of rows: JSON, JSON lines (also .gz) or parquet, such as LLaVA-Pretrain, LLaVA's
        665K, PALO's mix; `hub` for a Hub dataset or a local folder of parquet, JSON lines or CSV; `folder` for
        pictures with captions (metadata.jsonl, metadata.csv or a .txt beside each); `mini` for the
        mini dataset's captions.
    path: file, files, folder or repository; the mini dataset's default is the one that ships.
    data_files: of a `hub` source, the one file that has the rows, such as LLaVA's JSON.
    images: folder, .zip or .tar of the pictures, here or, for a `hub` source, an archive in its repository;
        without it, pictures are named but not looked at.
    follow_links: take pictures and captions that links in a folder lead to outside of it. What is built may be
        published, and whoever made the folder may have linked to any file of this machine.
    language: BCP-47 code of the rows that do not say theirs; `detect` asks each text. Without it a
        file's name may say it (maya_russian_...json).
    detect_among: the languages that `detect` chooses from.
    task: `caption` (one question and answer: the answer is the caption) or `conversation`; by
        default what a row looks like.
    config, split, revision: of a Hub dataset. `split` also of the mini dataset: one or more of its
        three, separated by commas.
    columns: which column is which field (id, image, image_sha256, lang, text, turns), where it is
        not the usual name or several could be it.
    duplicates: rows with the (id, lang) of another: `refuse` the source, `list` all but the first
        in refused.jsonl, or `number` them: the second `x` becomes `x#2`. LLaVA's instruct mixes
        use an image's id for several conversations.
    extract_images: write pictures that stand inside of rows to `images/` of the build, named by
        their SHA-256; needed where they are to be judged or published.
    """

    kind: Literal["mini", "llava", "hub", "folder"]
    path: str | list[str] | None = None
    images: str | None = None
    language: str | None = None
    detect_among: list[str] = field(
        default_factory=lambda: ["en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur"]
    )
    task: Literal["caption", "conversation"] | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    duplicates: Literal["refuse", "list", "number"] = "refuse"
    extract_images: bool = False
    data_files: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        if self.kind == "mini":
            self.path = self.path or str(MINI)
            self.language = self.language or "en"
            self.images = self.images or str(self.paths[0])
            self.split = self.split or "train,validation,test"
        elif self.kind == "folder":
            self.images = self.images or (self.paths[0] if self.path else None)
        elif self.kind == "hub":
            self.split = self.split or "train"
        if self.images is not None and not self.images.strip():
            raise ValueError(
                f"source.images: expected a folder, .zip or .tar of pictures, found {self.images!r}"
            )
        if self.path is None:
            raise ValueError(f"source.path: a source of kind {self.kind} needs one")
        if self.kind != "llava" and len(self.paths) != 1:
            raise ValueError(f"source.path: a source of kind {self.kind} has one path")
        if unknown := sorted(self.columns.keys() - COLUMNS.keys()):
            raise ValueError(f"source.columns: unknown {unknown}; known fields: {list(COLUMNS)}")
        if self.extract_images and self.kind != "hub":
            raise ValueError("source.extract_images: only rows of kind hub hold their pictures")
        if self.data_files is not None and self.kind != "hub":
            raise ValueError("source.data_files: only a source of kind hub has several files")

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path or []

    def pictures(self) -> Path | None:
        """Where the pictures are that rows name, None when nowhere.

        An archive of a Hub repository is fetched into Hugging Face's cache. Raises FileNotFoundError,
        ConnectionError.
        """
        if self.images is None:
            return None
        remote = self.kind == "hub" and not Path(self.paths[0]).exists()
        if remote and not Path(self.images).exists():
            return HubFiles(self.paths[0], self.revision).fetch(self.images)
        return Path(self.images)


# Fields that plans had not always are no part of hashes where they say nothing: old work is continued.
_LATER = ("data_files", "follow_links")


def plan_for_hash(plan: Any) -> dict[str, Any]:
    """A source plan, or a plan with one, as plain values to be hashed."""
    values = to_dict(plan)
    source = values.get("source", values)
    for name in _LATER:
        if not source[name]:
            del source[name]
    return values


def read_source(
    plan: SourcePlan,
    extract_to: Path | None = None,
    decode: bool = False,
    look: Callable[[str, Any, RowReader], None] | None = None,
) -> Iterator[Record | Problem]:
    """Every row of the source, or why it is refused, in the source's order.

    Args:
        extract_to: folder for the pictures that stand inside of rows.
        look: is told of every record, before it is read: its place, and the reader of its table.
        decode: refuse rows whose picture cannot be decoded too, at a few milliseconds a picture.

    Raises OSError for what is not there, ValueError for files that are broken as a whole.
    """
    place = plan.pictures()
    pictures = Pictures(place, decode, plan.follow_links) if place is not None else None
    detect = _detector(plan.detect_among) if plan.language == "detect" else None
    for file, file_language, table in _tables(plan):
        language = plan.language or file_language if detect is None else "und"
        reader = _reader(file, table, plan)
        for where, record in table.records:
            if look is not None:
                look(where, record, reader)
            read = to_row(
                record, where, reader, language=language, task=plan.task, columns=plan.columns
            )
            if isinstance(read, Record) and detect is not None:
                read = detect(read)
            if isinstance(read, Record):
                read = _with_picture(read, pictures, extract_to, decode)
            yield read


def _reader(file: str, table: Table, plan: SourcePlan) -> RowReader:
    try:
        return table.reader(plan.columns)
    except ValueError as error:
        if str(error).startswith(("columns.", "expected columns")):
            raise ValueError(f"{file}: {error}: name them in source.columns") from None
        raise


def _tables(plan: SourcePlan) -> Iterator[tuple[str, str | None, Table]]:
    """(its name, the language that the name says, the records) of each file or dataset."""
    path = Path(plan.paths[0])
    if plan.kind == "llava":
        for name in plan.paths:
            yield name, language_of_file(Path(name)), open_rows(Path(name))
    elif plan.kind == "hub" and plan.data_files is not None:
        file = path / plan.data_files
        if not path.exists():
            file = HubFiles(plan.paths[0], plan.revision).fetch(plan.data_files)
        yield plan.data_files, language_of_file(Path(plan.data_files)), open_rows(file)
    elif plan.kind == "hub" and rows_suffix(path) and not path.is_dir():
        yield plan.paths[0], language_of_file(path), open_rows(path)
    elif plan.kind == "hub":
        split = plan.split or "train"
        if files := built_files(path, plan.config, split):
            yield plan.paths[0], None, open_tables(files)
            return
        yield plan.paths[0], None, open_hub(plan.paths[0], plan.config, split, plan.revision)
    elif plan.kind == "folder":
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder of pictures")
        yield plan.paths[0], None, open_folder(path, plan.follow_links)
    else:
        columns = ["id", "image", "image_sha256", "lang", "text"]
        yield plan.paths[0], None, open_tables(mini_files(plan), columns)


def mini_files(plan: SourcePlan) -> list[Path]:
    """The caption tables of the plan's language and splits, in the layout of the mini dataset."""
    folder = Path(plan.paths[0]) / "texts" / (plan.language or "en")
    splits = (plan.split or "").split(",")
    files = [f for split in splits for f in sorted(folder.glob(f"{split.strip()}-*.parquet"))]
    if not files:
        raise FileNotFoundError(f"{folder}: no tables of the splits {splits}")
    return files


def _with_picture(
    read: Record, pictures: Pictures | None, extract_to: Path | None, decode: bool
) -> Record | Problem:
    row = read.row
    if read.data is not None and (decode or extract_to is not None):
        fault = fault_of(read.data, str(row["image"]))
        if fault is not None:
            return Problem(_place(read), "image", fault.removesuffix("."))
    if read.data is not None and extract_to is not None:
        suffix = Path(row["image"]).suffix or ".img"
        name = f"{row['image_sha256'][:2]}/{row['image_sha256']}{suffix}"
        if not (extract_to / name).exists():
            write_bytes(extract_to / name, read.data)
        return dataclasses.replace(read, row={**row, "image": name}, data=None)
    if pictures is None or read.data is not None or row["image"] is None:
        return read
    try:
        sha256 = pictures.sha256(row["image"])
    except (OSError, ValueError) as error:
        return Problem(_place(read), "image", str(error).removesuffix("."))
    if row["image_sha256"] not in (None, sha256):
        return Problem(
            _place(read),
            "image_sha256",
            f"the picture's is {sha256}, the row says {row['image_sha256']}",
        )
    return dataclasses.replace(read, row={**row, "image_sha256": sha256})


def _place(read: Record) -> str:
    return place_of(read.where, read.row["id"])


def _detector(languages: list[str]) -> Callable[[Record], Record | Problem]:
    """Gives rows of the language `und` (undetermined) the one that their text is in."""
    from ..checks.identify import Identifier

    identifier = Identifier(languages)

    def detect(read: Record) -> Record | Problem:
        row = read.row
        if row["lang"] != "und":
            return read
        text = row["text"] or " ".join(t["content"] for t in row["turns"])
        found = identifier.identify(text[:2000], languages[0]).language
        if not found:
            reason = "too little text to tell it from; name it in the row"
            return Problem(_place(read), "lang", reason)
        return dataclasses.replace(read, row={**row, "lang": found})

    return detect


# Sorting, duplicates and units


@dataclass
class Tally:
    """Counts of what was read; `refused` by field, with the first problem of each."""

    read: int = 0
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0

    def refuse(self, problem: Problem) -> None:
        name = problem.field.split("[")[0]
        self.refused[name] += 1
        self.first.setdefault(name, str(problem))

    def lines(self) -> list[str]:
        refused = sum(self.refused.values())
        return [
            f"{self.read:,} rows read: {self.rows:,} good, {refused:,} refused",
            *(
                f"  refused for {name}: {n:,}; the first: {self.first[name]}"
                for name, n in self.refused.most_common()
            ),
            *(f"  {note}: {n:,}" for note, n in self.notes.most_common()),
            f"  languages: {_counts(self.languages)}; tasks: {_counts(self.tasks)}",
        ]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counter.items())) or "none"


def sorted_rows(
    reads: Iterable[Record | Problem],
    folder: Path,
    duplicates: str,
    tally: Tally,
    report: Callable[[Problem], None],
) -> Iterator[Row]:
    """Rows by (id, lang), each pair once.

    Args:
        folder: for the runs of the sort; the caller deletes it.
        report: is told of every refused row, those that repeat another's (id, lang) too.
    """
    sort = ExternalSort(folder)
    for read in reads:
        tally.read += 1
        if isinstance(read, Problem):
            tally.refuse(read)
            report(read)
            continue
        if read.note is not None:
            tally.notes[read.note] += 1
        sort.add(read.row, read.where)
    for row, problem in _each_once(sort, duplicates):
        if problem is not None:
            tally.duplicates += 1
            tally.refuse(problem)
            report(problem)
            continue
        tally.rows += 1
        tally.languages[row["lang"]] += 1
        tally.tasks[row["task"]] += 1
        yield row


def _each_once(sort: ExternalSort, duplicates: str) -> Iterator[tuple[Row, Problem | None]]:
    last: tuple[str, str] | None = None
    times = 1
    # Renamed rows wait for their place in the order: (id, lang, order of arrival, row, where).
    waiting: list[tuple[str, str, int, Row, str]] = []
    end: tuple[Any, ...] = (("", "", 0), None, "")
    for (identity, lang, number), row, where in itertools.chain(sort.rows(), [end]):
        while waiting and (row is None or waiting[0][:2] <= (identity, lang)):
            new, new_lang, _, renamed, place = heapq.heappop(waiting)
            taken = (new, new_lang) in (last, (identity, lang))
            yield renamed, _repeated(renamed, place) if taken else None
        if row is None:
            return
        times = times + 1 if (identity, lang) == last else 1
        last = (identity, lang)
        if times == 1:
            yield row, None
        elif duplicates == "number":
            renamed = {**row, "id": f"{identity}#{times}"}
            heapq.heappush(waiting, (renamed["id"], lang, number, renamed, where))
        else:
            yield row, _repeated(row, where)


def _repeated(row: Row, where: str) -> Problem:
    reason = f"another row has this id and the lang {row['lang']!r}"
    return Problem(place_of(where, row["id"]), "id, lang", reason)


def refuse_empty(plan: SourcePlan, tally: Tally) -> None:
    """Raises ValueError, saying what to do, for a source of which no row was read, good or bad."""
    if tally.read:
        return
    expected = "rows"
    if plan.kind == "folder":
        suffixes = ", ".join(sorted(SUFFIXES))
        expected = f"pictures ({suffixes}) or rows of metadata.jsonl or metadata.csv"
    raise ValueError(
        f"{', '.join(plan.paths)}: expected {expected}, found none; add some, or correct source.path"
    )


# The step


def source_key(plan: SourcePlan, unit_rows: int) -> str:
    """Hash of the plan and of what lies where it points: names, sizes and times of local files."""
    seen = hashlib.sha256()
    for place in dict.fromkeys([*plan.paths, *([plan.images] if plan.images else [])]):
        path = Path(place)
        for file in [path] if path.is_file() else files_in(path):
            stat = file.stat() if file.exists() else file.lstat()
            about = f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            # Names of files need not be UTF-8.
            seen.update(about.encode("utf-8", "surrogateescape"))
    return digest([_VERSION, unit_rows, plan_for_hash(plan), seen.hexdigest()])


def check_sources(folder: Path, key: str | None = None) -> dict[str, Any] | str:
    """The manifest of finished source units, or in a few words why they are not finished.

    Every unit file is held against its SHA-256.

    Args:
        key: what `source_key` gives now; None to hold only the files against the manifest.
    """
    try:
        manifest = read_json_file(folder / "manifest.json")
    except (OSError, ValueError):
        return "not read yet"
    if not has_shape(manifest, _MANIFEST):
        return "not read yet"
    if key is not None and manifest["key"] != key:
        return "the plan or the source has changed"
    for unit in manifest["units"]:
        if not unit["unit"].isdecimal():
            return "not read yet"
        path = folder / f"{unit['unit']}.parquet"
        if not path.is_file() or sha256_file(path) != unit["sha256"]:
            return f"{path.name} is gone or was changed"
    return manifest


def finished_sources(folder: Path) -> dict[str, Any]:
    """The manifest of source units. Raises ValueError where they are not finished."""
    state = check_sources(folder)
    if isinstance(state, str):
        raise ValueError(f"{folder}: {state}; run the step source first")
    return state


def build_sources(
    plan: SourcePlan, folder: Path, unit_rows: int, progress: bool = True, decode: bool = False
) -> dict[str, Any]:
    """Write the source units of a plan into `folder`; returns their manifest.

    Args:
        decode: as in `read_source`; for pictures that are to be published.

    Nothing is done when they are there already. What cannot be used is listed in `refused.jsonl`.

    Raises:
        ValueError: for a source without one good row; for rows that repeat an (id, lang) under the
            policy `refuse`; for broken files.
        OSError: for a source that is not there, and when the disk does not take a file.
    """
    key = source_key(plan, unit_rows)
    state = check_sources(folder, key)
    if isinstance(state, dict):
        return state
    begun = time.time()
    if state != "not read yet":
        print(f"source: {state}; read again", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for left in [*folder.glob(".sort-*"), *folder.glob(".*.tmp")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    tally = Tally()
    units: list[dict[str, Any]] = []
    reads: Iterable[Record | Problem] = read_source(
        plan, folder.parent / "images" if plan.extract_images else None, decode
    )
    if progress:
        reads = tqdm(reads, desc="source: reading", unit=" rows")
    with (
        tempfile.TemporaryDirectory(prefix=".sort-", dir=folder) as scratch,
        atomic(folder / "refused.jsonl") as refused_path,
        refused_path.open("w", encoding="utf-8") as refused,
    ):

        def report(problem: Problem) -> None:
            refused.write(json.dumps(problem.__dict__, ensure_ascii=False) + "\n")

        rows = sorted_rows(reads, Path(scratch), plan.duplicates, tally, report)
        for number, batch in enumerate(_batches(rows, unit_rows)):
            path = folder / f"{number:05d}.parquet"
            sha256 = write_parquet(path, pa.Table.from_pylist(batch, schema=SOURCE_SCHEMA))
            units.append({"unit": path.stem, "rows": len(batch), "sha256": sha256})
    print("\n".join(tally.lines()), flush=True)
    if tally.duplicates and plan.duplicates == "refuse":
        raise ValueError(
            f"{folder / 'refused.jsonl'}: {tally.duplicates:,} rows repeat the (id, lang) of "
            "another; set source.duplicates to `list` to leave them out or `number` to rename them"
        )
    refuse_empty(plan, tally)
    if not tally.rows:
        raise ValueError(
            f"{', '.join(plan.paths)}: none of {tally.read:,} rows is good; "
            f"see {folder / 'refused.jsonl'}"
        )
    for path in folder.glob("[0-9]*.parquet"):
        if path.stem not in {unit["unit"] for unit in units}:
            path.unlink()
    manifest = {
        "key": key,
        "read": tally.read,
        "rows": tally.rows,
        "refused": sum(tally.refused.values()),
        "refused_for": dict(tally.refused.most_common()),
        "notes": dict(tally.notes),
        "languages": dict(sorted(tally.languages.items())),
        "tasks": dict(sorted(tally.tasks.items())),
        "unit_rows": unit_rows,
        "units": units,
        "seconds": round(time.time() - begun, 3),
        "finished": round(time.time(), 3),
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
