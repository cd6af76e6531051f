"""Check untrusted plain values against a shape: manifests, notes, results, cards.

A shape is one of these:
- a type: `dict` and `list` allow any content, `object` any value, `float` also integers; `int` and
  `float` refuse booleans;
- None for null; a tuple of alternative shapes; a list of one shape, for a list of such values;
- a mapping of required names to shapes, which allows further names;
- `{...: shape}` for a mapping of any names to values of one shape.
"""

from __future__ import annotations

from typing import Any

from .telling import one_line

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def check_shape(value: Any, shape: Any, where: str, key: str = "") -> None:
    """Raise ValueError, naming `where` and the key, if a value does not have the shape."""
    if shape is object:
        return
    if isinstance(shape, dict) and ... in shape:
        _expect(isinstance(value, dict), value, "a mapping", where, key)
        for name, each in value.items():
            check_shape(each, shape[...], where, _below(key, name))
    elif isinstance(shape, dict):
        _expect(isinstance(value, dict), value, "a mapping", where, key)
        for name, inner in shape.items():
            place = _below(key, name)
            if name not in value:
                raise ValueError(f"{where}: {place}: missing")
            check_shape(value[name], inner, where, place)
    elif isinstance(shape, list):
        _expect(isinstance(value, list), value, "a list", where, key)
        for number, each in enumerate(value):
            check_shape(each, shape[0], where, f"{key}[{number}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        for kind in kinds:
            if isinstance(kind, (dict, list)) and isinstance(value, type(kind)):
                check_shape(value, kind, where, key)
                return
        told = " or ".join("null" if kind is None else _name(kind) for kind in kinds)
        _expect(any(_is(value, kind) for kind in kinds), value, told, where, key)


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a value has a shape."""
    try:
        check_shape(value, shape, "")
    except ValueError:
        return False
    return True


def _name(kind: Any) -> str:
    return _NAMES[kind if isinstance(kind, type) else type(kind)]


def _is(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type):
        return kind is None and value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _expect(fits: bool, value: Any, told: str, where: str, key: str) -> None:
    if not fits:
        raise ValueError(
            f"{where}: {key or 'the file'}: expected {told}, found {one_line(repr(value), 60)}"
        )


def _below(key: str, name: Any) -> str:
    # Names in the file are untrusted too.
    told = one_line(str(name), 60)
    return f"{key}.{told}" if key else told
