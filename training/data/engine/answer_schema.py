"""Check that an answer fits its worker's schema and JSON. The check runs on every row, so it does not use Arrow.

Building an Arrow table of one row takes half a millisecond: over half an hour for 4.4 million rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from ...common.telling import shown
from ...rows.parquet import Row


class AnswerSchema:
    """Check the answers of one worker.

    Raises:
        ValueError: the schema does not begin with id, lang, or a column has values that JSON cannot hold.
    """

    def __init__(self, worker: str, schema: pa.Schema):
        if schema.names[:2] != ["id", "lang"]:
            raise ValueError(f"{worker}: schema: expected id, lang first, found {schema.names}")
        self.worker, self.schema = worker, schema
        self._names = set(schema.names)
        try:
            self._fits = {column.name: _fits(column.type) for column in schema}
        except TypeError as error:
            raise ValueError(
                f"{worker}: schema: expected types that a journal can hold, found {error}"
            ) from None

    def check(self, row: Mapping[str, Any], answer: Row) -> None:
        """Check one answer.

        Raises:
            ValueError: names row and field; the answer belongs to another row or does not fit the schema.
        """
        where = f"{self.worker}: the answer to row {row['id']!r} ({row['lang']})"
        if answer.get("id") != row["id"]:
            raise ValueError(f"{where}: id: expected that of the row, found {answer.get('id')!r}")
        if not isinstance(answer.get("lang"), str):
            raise ValueError(f"{where}: lang: expected text, found {answer.get('lang')!r}")
        if answer.keys() != self._names:
            missing = sorted(self._names - answer.keys())
            extra = sorted(answer.keys() - self._names)
            raise ValueError(
                f"{where}: expected the fields of the schema, missing {missing}, found also {extra}"
            )
        for name, fits in self._fits.items():
            value = answer[name]
            if value is not None and not fits(value):
                kind = self.schema.field(name).type
                raise ValueError(f"{where}: {name}: expected {kind}, found {shown(value)}")


def _fits(kind: pa.DataType) -> Callable[[Any], bool]:
    """Return a test for non-None values of a type.

    Raises:
        TypeError: the journal cannot hold the type.
    """
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _is_text
    if pa.types.is_boolean(kind):
        return lambda value: isinstance(value, bool)
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        least = -(2 ** (kind.bit_width - 1)) if signed else 0
        most = 2 ** (kind.bit_width - signed) - 1
        return lambda value: type(value) is int and least <= value <= most
    if pa.types.is_floating(kind):
        return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    if pa.types.is_list(kind):
        item = _fits(kind.value_type)
        return lambda value: (
            isinstance(value, list) and all(each is None or item(each) for each in value)
        )
    if pa.types.is_struct(kind):
        fields = {field.name: _fits(field.type) for field in kind}
        return lambda value: (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(value[name] is None or fits(value[name]) for name, fits in fields.items())
        )
    raise TypeError(f"type {kind}")


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
