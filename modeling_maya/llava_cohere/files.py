"""JSON files of a checkpoint, and errors about somebody's files in one line."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def shown(text: str, longest: int = 100) -> str:
    """Text of a file for a message: printable and short."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= longest else text[: longest - 4] + " ..."


@contextmanager
def reading(where: str | os.PathLike) -> Iterator[None]:
    """Turn whatever a library raises about the values in a user's files into a ValueError of one line.

    Only the reading of such files belongs into the block. A missing package is not the file's fault.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        told = shown(" ".join(str(error).split()), 200)
        raise ValueError(
            f"{where}: cannot be read ({type(error).__name__}: {told}). Download it again."
        ) from error


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises `FileNotFoundError` or a `ValueError` that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON that can be read (nested too deep).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object.")
    return content


def optional_json(path: Path) -> dict | None:
    """A JSON object from a file, None if there is no such file. Raises as `read_json`."""
    return read_json(path) if path.is_file() else None


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object, readable and with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def human(nbytes: float) -> str:
    """A size in GB (10^9) or smaller units, for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3f} {unit}"
        nbytes /= 1000
    raise AssertionError
