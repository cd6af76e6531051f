"""A bad input: how it is written, the command that meets it, and what must come of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from .world import World

Expect = Literal["refused", "accepted", "either"]
# Text of a file that no command may read.
SECRET = "the-secret-of-another-folder"


class Fault(NamedTuple):
    """What is wrong with an outcome: the sort of fault, and an excerpt that shows it."""

    sort: str
    shown: str


@dataclass
class Place:
    """The folder of one case. Commands may write to `output` and to the temporary folder only."""

    root: Path
    world: World
    ports: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for folder in (self.input, self.output.parent, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self.secret.write_text(SECRET, encoding="utf-8")

    @property
    def input(self) -> Path:
        return self.root / "in"

    @property
    def output(self) -> Path:
        return self.root / "written" / "out"

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def secret(self) -> Path:
        return self.root / "secret.txt"

    def write(self, name: str, content: bytes | str) -> Path:
        """A file of the input."""
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        path.write_bytes(data)
        return path

    def serve(self, handler: type[BaseHTTPRequestHandler]) -> str:
        """Start a server in a process of its own; it ends with the case. Returns its address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        port = server.server_address[1]
        self.ports.add(port)
        if not os.fork():
            server.serve_forever()
        server.server_close()
        return f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Case:
    """One bad input.

    about: what is bad, in a few words.
    prepare: writes the input and returns the arguments of `maya`.
    expect: "refused" and "accepted" where the generator knows; else "either".
    names: a refusal must show one of these, such as the file, the key or the row.
    rows: how many rows `maya data validate` must account for; bad ones make it end with 1.
    writes: files of the input that the command may change, such as a card beside a model.
    answers: the command prints a model's answer, which is not judged.
    seconds: a command hangs that computes so long, or does not end in three times as long.
    check: what else must hold of the folder; returns faults.
    """

    about: str
    prepare: Callable[[Place], list[str]]
    expect: Expect = "either"
    names: tuple[str, ...] = ()
    rows: int | None = None
    writes: tuple[str, ...] = ()
    answers: bool = False
    seconds: float = 30.0
    check: Callable[[Place, Outcome], list[Fault]] | None = None


@dataclass
class Outcome:
    """What a command did.

    code: what it returned, None where it was killed. signal: what killed it.
    crash: an exception that left the command, with its place.
    peak: MiB of memory above what the process had before.
    connections, programs, writes, reads: what it tried and must not.
    broken: files under their final names that are not whole.
    found: faults of the case's own check.
    """

    code: int | None = 0
    signal: int | None = None
    hang: bool = False
    crash: str | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    peak: float = 0.0
    connections: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    found: list[Fault] = field(default_factory=list)
