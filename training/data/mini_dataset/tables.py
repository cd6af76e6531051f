"""Write parquet files of the mini dataset: small, and with the same bytes on every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.shards import picture_schema

IMAGE_SCHEMA = picture_schema("image", "image_sha256", "picture", "style", "concept")
# Sorted columns with mostly new values use delta encoding. Columns whose values repeat in the same order,
# style after style, use plain encoding: zstd finds the repetition in plain text, but not in packed
# dictionary indices.
_DELTA_COLUMNS = ("id", "image", "concept")
_PLAIN_COLUMNS = (
    "image_sha256",
    "text",
    "keywords.list.element",
    "answer",
    "about",
    "messages.list.element.content",
)


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the parquet column paths of the schema's leaves."""

    def walk(path: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_list(kind):
            return walk(f"{path}.list.element", kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in walk(f"{path}.{field.name}", field.type)]
        return [path]

    return [leaf for field in schema for leaf in walk(field.name, field.type)]


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows in the given order. The same rows and pyarrow version give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    delta = [name for name in _DELTA_COLUMNS if name in schema.names]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=[leaf for leaf in _leaves(schema) if leaf not in (*delta, *_PLAIN_COLUMNS)],
        column_encoding=dict.fromkeys(delta, "DELTA_BYTE_ARRAY"),
        dictionary_pagesize_limit=8 << 20,
        data_page_size=8 << 20,
        row_group_size=1 << 20,
        write_statistics=False,
    )
