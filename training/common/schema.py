"""Check a YAML file key by key against dataclasses: recipes and dataset plans.

Names and types of all keys are checked before anything is loaded. Messages name the key's path, the
expected type and the value found. Paths that start with "." are relative to the file that names them;
other paths are relative to the working directory.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

from .paths import expand
from .reading import parse_yaml, read_yaml
from .secrets import REDACTED, is_secret_name, redact_text
from .telling import one_line

T = TypeVar("T")


def read_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the file's mapping with `a.b=value` overrides applied, not yet checked.

    List items are addressed by index or by their `name` (`stages.finetune.args.max_steps=10`).

    Raises:
        ValueError: if the file is not a YAML mapping, or an override matches no key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {_describe(data)}")
    for override in overrides:
        _override(data, override)
    return data


def build(cls: type[T], data: Any, where: str, key: str = "") -> T:
    """Build the dataclass `cls` from a mapping, checking every key by name and type.

    Args:
        where: prefix of messages, such as the file's name.
        key: the path of `data` in the file, for messages.

    Raises:
        ValueError: one line with `where`, the key's path, the expected type and the value found; also
            for errors of the dataclass's `__post_init__`.
    """
    place = key or "the file"
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {place}: expected a mapping, found {_describe(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise ValueError(
                f"{where}: {unknown_key(join_key(key, name), str(name), list(fields))}"
            )
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name in data:
            values[name] = convert(hints[name], data[name], where, join_key(key, name))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(
                f"{where}: {join_key(key, name)}: expected {type_name(hints[name])}, found nothing: add the key"
            )
    try:
        return cls(**values)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def type_name(hint: Any) -> str:
    """Return a type hint in words, for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a) for a in args)
    if origin in (list, tuple, Sequence):
        return f"a list of {type_name(args[0])}" if args else "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        return "a mapping"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if hint is type(None):
        return "null"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Check a value against a type hint and return it converted. Raises ValueError naming the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        nested = [a for a in options if dataclasses.is_dataclass(a) or typing.get_origin(a) is list]
        if len(nested) == 1 and isinstance(value, (dict, list)):
            return convert(nested[0], value, where, key)
        for option in options:
            try:
                return convert(option, value, where, key)
            except ValueError:
                continue
        raise _mismatch(hint, value, where, key)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise _mismatch(hint, value, where, key)
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, key)  # type: ignore[arg-type]
    container = origin or hint
    if container in (list, dict, tuple):
        if not isinstance(value, (list, tuple) if container is tuple else container):
            raise _mismatch(hint, value, where, key)
        if container is tuple:
            return tuple(value)
        if not args or args[-1] is Any:
            return value
        if isinstance(value, dict):
            return {k: convert(args[1], v, where, join_key(key, k)) for k, v in value.items()}
        return [convert(args[0], v, where, f"{key}[{i}]") for i, v in enumerate(value)]
    if hint is float:
        number = math.nan
        # YAML parses 1e-3 (no dot) as text.
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)
        if not math.isfinite(number):
            raise _mismatch(hint, value, where, key)
        return number
    if hint is int and (isinstance(value, bool) or not _in_64_bits(value)):
        raise _mismatch(hint, value, where, key)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and hint in (str, int, bool):
        if not isinstance(value, hint):
            raise _mismatch(hint, value, where, key)
        return value
    # A type of another library, such as an enum of transformers, checks its own values.
    return value


class Bounds(NamedTuple):
    """Numeric limits of a key; None means no limit on that side."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: object) -> bool:
        number: Any = value
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        low = None if self.least is None else f"{self.least:,} or more"
        low = low if self.above is None else f"more than {self.above:,}"
        high = None if self.most is None else f"at most {self.most:,}"
        high = high if self.below is None else f"less than {self.below:,}"
        return " and ".join(filter(None, (low, high)))

    def check(self, value: float | None, where: str, key: str) -> None:
        """Raise ValueError, naming `where` and `key`, for a value outside. None (key absent) passes."""
        if value is None or value in self:
            return
        expected = self
        if self.least is not None and value < self.least and self.below is None:
            expected = Bounds(least=self.least)
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        raise ValueError(f"{where}: {key}: expected {expected}, found {shown}")


def _in_64_bits(value: Any) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _mismatch(hint: Any, value: Any, where: str, key: str) -> ValueError:
    found = f"text {REDACTED}" if is_secret_name(key) else _describe(value)
    return ValueError(f"{where}: {key}: expected {type_name(hint)}, found {found}")


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if not _in_64_bits(value):
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is not finite"
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value"}
    text = one_line(redact_text(json.dumps(value, ensure_ascii=False, default=str)))
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{kinds.get(type(value), 'a number')} {text}"


def join_key(key: str, name: Any) -> str:
    """Return the path of the key `name` inside `key`."""
    return f"{key}.{name}" if key else str(name)


def unknown_key(path: str, name: str, known: Sequence[str]) -> str:
    """Return the error text for an unknown key, with the closest known key or a list of keys."""
    close = difflib.get_close_matches(name, known, n=1)
    some = ", ".join(known[:KEYS_TOLD])
    more = f" and {len(known) - KEYS_TOLD} more" if len(known) > KEYS_TOLD else ""
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {some}{more}"
    return f"unknown key {path!r}; {hint}"


# Number of known keys listed in the message about an unknown key.
KEYS_TOLD = 20


def _override(data: dict[str, Any], override: str) -> None:
    dotted, sep, text = override.partition("=")
    shown = one_line(redact_text(override), 100)
    if not sep or not dotted:
        raise ValueError(f"override '{shown}': expected KEY=VALUE, such as seed=1")
    value = parse_yaml(text, f"override '{shown}'")
    parts = dotted.split(".")
    node: Any = data
    for i, part in enumerate(parts):
        here = ".".join(parts[:i]) or "the file"
        key: Any = part
        if isinstance(node, list):
            names = [n.get("name") for n in node if isinstance(n, dict)]
            if part in names:
                key = names.index(part)
            elif part.isdigit() and int(part) < len(node):
                key = int(part)
            else:
                known = [n for n in names if n] or "none"
                raise ValueError(
                    f"override '{shown}': {here}: expected one of its {len(node)} items "
                    f"(names: {known}), found {part!r}"
                )
        elif not isinstance(node, dict):
            raise ValueError(
                f"override '{shown}': {here}: expected a mapping, found {_describe(node)}"
            )
        if i == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


# Prefix of paths to files of the installed package, wherever it is installed.
SHIPPED = "maya_vlm://"
PACKAGE = Path(__file__).parents[1]


# Texts of a plan that are paths under any key: ./x, ../x, ~/x, $NAME/x, ${NAME}/x.
_PATH = re.compile(r"\.{1,2}/|~(/|$)|\$(\w+|\{\w+\})/" + f"|{SHIPPED}")


def resolve_path(value: str, folder: Path) -> str:
    """Return `value` as a path from the working directory.

    Paths that start with "." are relative to `folder`, those that start with "maya_vlm://" to the
    installed package. `~` and environment variables are expanded.

    Raises:
        ValueError: as `expand`.
    """
    value = expand(value)
    if value.startswith(SHIPPED):
        folder, value = PACKAGE, f"./{value.removeprefix(SHIPPED)}"
    if not value.startswith("."):
        return value
    path = os.path.normpath(folder / value)
    try:
        relative = Path(path).relative_to(Path.cwd())
    except ValueError:
        return path
    return relative.as_posix()


def resolve_paths(value: Any, folder: Path) -> Any:
    """Apply `resolve_path` to every text in plain values that starts like a path."""
    if isinstance(value, dict):
        return {key: resolve_paths(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [resolve_paths(each, folder) for each in value]
    if isinstance(value, str) and _PATH.match(value):
        return resolve_path(value, folder)
    return value


def portable_paths(value: Any, folder: Path) -> Any:
    """Return plain values with portable paths, for a file in `folder`; `resolve_path` reverts them.

    Paths into the installed package become "maya_vlm://..."; other absolute paths become relative to
    `folder`.
    """
    if isinstance(value, dict):
        return {key: portable_paths(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [portable_paths(each, folder) for each in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    path = Path(os.path.abspath(value))
    if path.is_relative_to(PACKAGE) and path.exists():
        return SHIPPED + path.relative_to(PACKAGE).as_posix()
    if os.path.isabs(value):
        return "./" + os.path.relpath(path, folder.resolve())
    return value


def to_dict(plan: Any) -> dict[str, Any]:
    """Return a dataclass as plain values, as YAML would hold them."""
    return json.loads(json.dumps(dataclasses.asdict(plan), default=str))


def without_defaults(hint: Any, value: Any) -> Any:
    """Remove keys at their defaults from the plain values of a dataclass, or of a list of dataclasses.

    Values stored before a key existed then equal new values that leave the key at its default.
    """
    kinds = [hint, *typing.get_args(hint)]
    cls: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if isinstance(value, list):
        item = next((kind for kind in kinds if typing.get_origin(kind) is list), hint)
        return [without_defaults(item, each) for each in value]
    if cls is None or not isinstance(value, dict):
        return value
    hints, result = typing.get_type_hints(cls), dict(value)
    for field in dataclasses.fields(cls):
        if field.name not in value:
            continue
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value[field.name] == default:
            del result[field.name]
        else:
            result[field.name] = without_defaults(hints[field.name], value[field.name])
    return result


def digest(value: Any) -> str:
    """Return a short content hash of plain values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
