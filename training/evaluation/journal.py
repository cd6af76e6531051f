"""Store every answer as soon as it exists, so that none is generated twice, however an evaluation ends.

The key of an answer is a hash of content: of the model's files, of the dataset, and of the model's whole input.
Answers of another model, or to changed questions, are therefore never mixed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..common.adapters import find_adapter
from ..common.files import files_sha256, sha256_text
from ..common.journal import AppendOnly, read_records
from ..common.models import Model
from ..common.shapes import has_shape
from ..inference.generation import Answer
from .protocol import Loaded, Picture, Request, Task

# Files of a model's folder that, in addition to the weights, decide its input and the end of its answers.
DECIDING = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*_templates/*.jinja")
# Files that evaluations write, or that only describe the model.
WRITTEN = ("results.json",)
_RECORD = {"key": str, "text": str, "tokens": (int, None), "ended": bool}


def local_identity(model: Model, dtype: str) -> str:
    """Return a hash of everything in a model, and in an adapter's base, that decides its answers.

    For a Hub repository, its commit stands for the files.
    """
    found: list[Any] = [dtype]
    for each in [model, find_adapter(model).base] if model.is_adapter else [model]:
        if each.revision is not None:
            found.append(each.revision)
            continue
        files = {
            file
            for pattern in ("*.safetensors", *DECIDING)
            for file in each.folder.glob(pattern)
            if file.name not in WRITTEN
        }
        found.append(files_sha256(files))
    return sha256_text(json.dumps(found))


class Keys:
    """Computes the keys of one task's requests to one model.

    Args:
        identity: the model's identity, such as `local_identity`.
        task, part: the task and its requests. The revision of the dataset, or the hash of its files, stands for
            the bytes of pictures. If a dataset has neither, every picture of a request is read and hashed.
    """

    def __init__(self, identity: str, task: Task, part: Loaded):
        data = part.data
        self.source = data["revision"] or data["files_sha256"]
        self.pictures = part.pictures
        self.hashes: dict[str, str] = {}
        self.common = [identity, task.name, task.version, data["split"], self.source, "greedy"]

    def __call__(self, request: Request) -> str:
        """Return the key of a request, 64 hex digits.

        Raises:
            ValueError, OSError: from `Pictures.load`.
        """
        asked = [
            {"picture": self._picture(part.key)} if isinstance(part, Picture) else part
            for part in request.content
        ]
        told = [*self.common, asked, request.system, list(request.stop), request.max_new_tokens]
        return sha256_text(json.dumps(told))

    def _picture(self, key: str) -> str:
        if self.source is not None:
            return key
        if key not in self.hashes:
            picture = self.pictures.load(key)
            digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
            digest.update(picture.tobytes())
            self.hashes[key] = digest.hexdigest()
        return self.hashes[key]


class Journal:
    """The answers to the requests of one task by key, in memory and in append-only files.

    Each process of an evaluation appends to its own file, `TASK.RANK.jsonl`, and reads all files of the task.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, task: str, rank: int = 0):
        self.folder, self.task = folder, task
        self.answers: dict[str, Answer] = {}
        self._file = AppendOnly(folder / f"{task}.{rank}.jsonl")
        end = self.read()
        self._file.cut(end)

    def read(self) -> int:
        """Read the answers of all processes, and return the end of the last whole line in this process's file."""
        own = 0
        for path in sorted(self.folder.glob(f"{self.task}.*.jsonl")):
            for end, record in read_records(path):
                if not has_shape(record, _RECORD):
                    break
                given = Answer(record["text"], record["tokens"], record["ended"])
                self.answers[record["key"]] = given
                if path == self._file.path:
                    own = end
        return own

    def add(self, key: str, answer: Answer) -> None:
        """Store an answer.

        Raises:
            OSError: for example, the disk is full.
        """
        record = {"text": answer.text, "tokens": answer.tokens, "ended": answer.ended}
        self._file.append({"key": key, **record})
        self.answers[key] = answer

    def close(self) -> None:
        """Flush the answers to disk, and close the file."""
        self._file.sync()
        self._file.close()
