"""Read untrusted text, JSON and YAML files with bounded size, depth and number of values.

Only ordinary files are opened: reading a pipe or a device could block or fill the memory. Every other
fault of a file raises ValueError with one line that names the file and the position.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

# Nesting limit: parsers recurse, and real files are never this deep.
MAX_DEPTH = 64
# Limit on the values of a YAML file after its aliases are expanded.
MAX_NODES = 200_000
# Size limit of files that are read whole: configs, recipes, manifests, cards.
MAX_BYTES = 256 * 2**20


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of an ordinary file.

    Raises:
        ValueError: if it is a pipe, device or folder, or has more than `max_bytes`.
        OSError: as `open`; FileNotFoundError if the file does not exist.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise _too_large(path, size, max_bytes)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(path, len(data), max_bytes)
    return data


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open an ordinary file for reading bytes. Raises as `read_bytes`, except for the size."""
    try:
        # Without O_NONBLOCK, opening a pipe blocks until a writer opens it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a null character in the name
        raise ValueError(f"{str(path)!r}: not a file name ({error})") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError(f"{path}: expected an ordinary file, found {_kind(mode)}")
    return os.fdopen(handle, "rb")


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for check, name in kinds if check(mode)), "another kind of file")


def _too_large(path: Path, size: int, max_bytes: int) -> ValueError:
    return ValueError(f"{path}: expected at most {max_bytes:,} bytes, found {size:,}")


def decode(data: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without byte order mark. Raises ValueError naming `where` and the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 1].hex()
        raise ValueError(
            f"{where}: line {line}: expected UTF-8 text, found the byte 0x{found}: save the file as UTF-8"
        ) from None


def read_text(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> str:
    """Return the content of a text file. Raises as `read_bytes` and `decode`."""
    return decode(read_bytes(path, max_bytes), str(path))


# ------------------------------------------------------------------------------ JSON


class NotJSON(ValueError):
    """The text is truncated JSON, or not JSON."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse a JSON text.

    Raises:
        NotJSON: if the text is not JSON.
        ValueError: for NaN and infinity, a key that appears twice in one mapping, nesting deeper than
            MAX_DEPTH, and lone surrogates, which no file could store again.
            Both are one line that names `where`.
    """
    if isinstance(text, bytes):
        text = decode(text, where)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise NotJSON(f"{where}: not JSON: {error.msg} ({place})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    check_value(value, where)
    return value


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a JSON file. Raises as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def read_json_mapping(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the mapping in a JSON file. Raises as `read_json`, and ValueError for another value."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one mapping")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"expected a number, found {name}")


def check_value(value: Any, where: str) -> None:
    """Raise ValueError for values nested deeper than MAX_DEPTH and for lone surrogates in texts."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(found, str):
            check_text(found, where)
        elif isinstance(found, dict):
            for name, each in found.items():
                if isinstance(name, str):
                    check_text(name, where)
                waiting.append((each, depth + 1))
        elif isinstance(found, (list, tuple)):
            waiting.extend((each, depth + 1) for each in found)


_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(text: str, where: str) -> None:
    """Raise ValueError for a text with a lone surrogate, which files and tokenizers cannot take."""
    if text.isascii():
        return
    match = _SURROGATE.search(text)
    if match:
        raise ValueError(
            f"{where}: expected text, found half of a surrogate pair (U+{ord(match[0]):04X}) after "
            f"{match.start()} characters"
        )


# ------------------------------------------------------------------------------ YAML


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text with the safe loader.

    Raises:
        ValueError: in one line that names `where`, if the text is not YAML, a key appears twice in one
            mapping or is not a scalar, nesting is deeper than MAX_DEPTH, or aliases contain themselves
            or expand to more than MAX_NODES values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, where)
        value = loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except (
        yaml.YAMLError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        # PyYAML's constructors raise these for malformed dates and numbers.
        told = str(error)
        if told.startswith(f"{where}: "):
            raise ValueError(told) from None
        raise ValueError(f"{where}: not YAML: {' '.join(told.split())}") from None
    check_value(value, where)
    return value


def read_yaml(path: str | os.PathLike, max_bytes: int = 16 * 2**20) -> Any:
    """Return the value in a YAML file. Raises as `read_bytes` and `parse_yaml`."""
    return parse_yaml(read_text(path, max_bytes), str(path))


def _check_node(root: yaml.Node, where: str) -> None:
    """Check keys, depth and the number of nodes after alias expansion, without recursion."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        key = id(node)
        if done:
            open_nodes.discard(key)
            sizes[key] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[key] > MAX_NODES:
                raise ValueError(
                    f"{where}: expected at most {MAX_NODES:,} values after its aliases are expanded"
                )
            continue
        if key in open_nodes:
            raise ValueError(f"{where}: line {node.start_mark.line + 1}: an alias contains itself")
        if key in sizes:
            continue
        open_nodes.add(key)
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
        stack.append((node, True))
        stack.extend((child, False) for child in _children(node))


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return []


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for name, _ in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise ValueError(
                f"{where}: line {line}: expected a scalar key, found a list or mapping"
            )
        if name.value in seen and name.value != "<<":
            raise ValueError(f"{where}: line {line}: the key {name.value!r} appears twice")
        seen.add(name.value)
