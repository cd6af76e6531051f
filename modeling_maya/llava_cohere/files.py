"""JSON files of a checkpoint, and one-line errors about a user's files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def shown(text: str, longest: int = 100) -> str:
    """Return text of a file as a message shows it: printable, and at most `longest` characters."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= longest else text[: longest - 4] + " ..."


@contextmanager
def reading(where: str | os.PathLike) -> Iterator[None]:
    """Turn any exception that a library raises about a user's file into a one-line ValueError.

    Only code that reads the file belongs in the block. ValueError, OSError, MemoryError and ImportError
    pass through: a missing package, for example, is not the file's fault.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        told = shown(" ".join(str(error).split()), 200)
        raise ValueError(
            f"{where}: cannot be read ({type(error).__name__}: {told}): download it again"
        ) from error


def read_json(path: Path) -> dict:
    """Read a JSON object from a file. Raises FileNotFoundError, or a ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(
            f"{path}: expected JSON, found brackets nested too deep to be read"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def optional_json(path: Path) -> dict | None:
    """Read a JSON object from a file; return None if there is no such file. Raises as `read_json`."""
    return read_json(path) if path.is_file() else None


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object, indented and with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def human(nbytes: float) -> str:
    """Return a number of bytes as text in GB (10^9 bytes) or a smaller unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3f} {unit}"
        nbytes /= 1000
    raise AssertionError
