"""Write rows into parquet files of bounded size; several series of files may be open."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.files import atomic, disk_error, sha256_file
from ...rows.parquet import Row

# Maximum rows and bytes of a row group, the part of a file that a streaming reader holds in memory.
GROUP_ROWS = 2000
GROUP_BYTES = 8 << 20


def picture_schema(*names: str) -> pa.Schema:
    """Return a schema of text columns and a column `picture` with a picture's bytes and path.

    `datasets` reads column types from the schema's metadata, so `picture` decodes to an image.
    """
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(name, kind if name == "picture" else pa.string()) for name in names]
    text = {"dtype": "string", "_type": "Value"}
    features = {name: {"_type": "Image"} if name == "picture" else text for name in names}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


IMAGE_SCHEMA = picture_schema("id", "image", "image_sha256", "picture")


class Shards:
    """Series of files `<series>-00000.parquet`, ... in a folder; use it as a context manager.

    files: name -> {"rows", "bytes", "sha256"} of each finished file; complete after the block. A file
        gets its name only when it is complete.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, Row] = {}
        self._open: dict[str, _Series] = {}

    def __enter__(self) -> Shards:
        return self

    def add(self, series: str, schema: pa.Schema, row: Row, most: int, size: int = 1) -> None:
        """Append a row.

        Args:
            series: name of the series.
            schema: columns of its files.
            row: the row.
            most: maximum sum of `size` per file, in rows or bytes.
            size: size of the row, in the unit of `most`.
        """
        if series not in self._open:
            self._open[series] = _Series(self, series, schema, most)
        self._open[series].add(row, size)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            for each in self._open.values():
                if kind is None:
                    each.close()
        finally:
            for each in self._open.values():
                each.drop()


class _Dropped(Exception):
    pass


class _Series:
    def __init__(self, shards: Shards, name: str, schema: pa.Schema, most: int):
        self.shards, self.name, self.schema, self.most = shards, name, schema, most
        self.number = self.size = self.rows = self.batch_size = 0
        self.batch: list[Row] = []
        # Set while a file is open. Closing it closes the writer and renames the file.
        self.stack: contextlib.ExitStack | None = None

    @property
    def file(self) -> str:
        return f"{self.name}-{self.number:05d}.parquet"

    def add(self, row: Row, size: int) -> None:
        if self.size and self.size + size > self.most:
            self.close()
        self.batch.append(row)
        self.size += size
        self.batch_size += size
        if len(self.batch) == GROUP_ROWS or self.batch_size >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        path = self.shards.root / self.file
        try:
            if self.stack is None:
                self.stack = contextlib.ExitStack()
                temporary = self.stack.enter_context(atomic(path))
                opened = pq.ParquetWriter(temporary, self.schema, compression="zstd")
                self.writer = self.stack.enter_context(opened)
            columns = {name: [row[name] for row in self.batch] for name in self.schema.names}
            self.writer.write_table(pa.table(columns, schema=self.schema))
        except OSError as error:
            raise disk_error(path, error) from None
        self.rows += len(self.batch)
        self.batch, self.batch_size = [], 0

    def close(self) -> None:
        if self.batch:
            self.flush()
        if self.stack is None:
            return
        stack, self.stack = self.stack, None
        stack.close()
        path = self.shards.root / self.file
        about = {"rows": self.rows, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        self.shards.files[self.file] = about
        self.number += 1
        self.size = self.rows = 0

    def drop(self) -> None:
        """Delete unfinished files."""
        if self.stack is not None:
            stack, self.stack = self.stack, None
            with contextlib.suppress(_Dropped, OSError):
                stack.__exit__(_Dropped, _Dropped(), None)
