"""One case in a forked child: watched, limited in time and memory, and looked at afterwards.

What the command does is seen by an audit hook of the interpreter, which nothing in the command can
take off: connections and programs are noted and refused, writes and reads elsewhere are noted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import Case, Outcome, Place

# A machine with other work takes so many times longer: a hang is that many times the seconds that a case computes.
SLOWER = 3
ADDRESS_SPACE = 3 * 2**30  # bytes above what the process has: the machine survives what leaks
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Evaluation notes the commit of the package and the processor's name.
_HARMLESS = {"git", "uname", "lscpu"}
_CHANGES = {
    "os.mkdir": (0, 2),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.truncate": (0, None),
}


def attempt(case: Case, place: Place) -> Outcome:
    """Run a case and say what came of it."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        try:
            _command(case, place)
        finally:
            os._exit(70)
    outcome = Outcome()
    try:
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            outcome.seconds = time.monotonic() - began
            if done:
                break
            late = outcome.seconds > SLOWER * case.seconds or _computed(child) > case.seconds
            if late and not outcome.hang:
                outcome.hang = True
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        # Servers of the case, what the command left running, all of it where the attack is stopped.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    outcome.signal = None if outcome.hang or not os.WIFSIGNALED(status) else os.WTERMSIG(status)
    outcome.code = None
    for name in ("stdout", "stderr"):
        path = place.root / name
        if path.exists():
            setattr(outcome, name, path.read_bytes().decode("utf-8", "backslashreplace"))
    for line in (place.root / "seen").read_text(encoding="utf-8").splitlines():
        name, value = json.loads(line)
        if name == "broken case":
            raise RuntimeError(f"{case.about}: the case itself is broken: {value}")
        if name == "base":
            outcome.peak = max(0.0, usage.ru_maxrss / 1024 - value)
        elif name in ("code", "crash"):
            setattr(outcome, name, value)
        else:
            noted = getattr(outcome, name)
            if value not in noted:
                noted.append(value)
    if outcome.code is None and not (outcome.hang or outcome.crash or outcome.signal):
        outcome.crash = f"the process ended with {os.waitstatus_to_exitcode(status)}"
    outcome.broken = sorted(_broken(place))
    if case.check is not None and outcome.code is not None:
        outcome.found = case.check(place, outcome)
    return outcome


def _computed(child: int) -> float:
    """Seconds that a child has computed; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident() -> float:
    """MiB of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _command(case: Case, place: Place) -> None:
    os.setsid()
    seen = os.open(place.root / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(name: str, value: Any) -> None:
        os.write(seen, json.dumps([name, value]).encode() + b"\n")

    try:
        argv = case.prepare(place)
    except BaseException:
        note("broken case", traceback.format_exc(limit=-3))
        return
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(place.root / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        stream = io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), errors="backslashreplace")
        setattr(sys, name, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["TMPDIR"] = str(place.scratch)
    import tempfile

    tempfile.tempdir = None
    os.chdir(place.output.parent)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the preparation
    note("base", _resident())
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE,) * 2)
    allowed = [place.output, place.scratch, place.world.home]
    allowed += [place.input / name for name in case.writes]
    sys.addaudithook(_Watch(note, [str(path.resolve()) for path in allowed], place))
    from maya_vlm.training import cli

    try:
        code: Any = cli.main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "site-packages" not in f.filename] or list(frames)
        where = f"{'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno}"
        message = " ".join(str(error).split())
        note("crash", f"{type(error).__name__}: {message[:200]} [{where} in {ours[-1].name}]")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    note("code", code)
    os._exit(0)


class _Watch:
    """The audit hook."""

    def __init__(self, note: Any, allowed: list[str], place: Place) -> None:
        self.note, self.ports = note, place.ports
        self.allowed = [*allowed, "/dev", "/proc"]
        self.secret = str(place.secret.resolve())
        self.output = str(place.output.resolve())

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes)):
                self._opened(os.fsdecode(path), flags or 0)
        elif event in _CHANGES:
            path_at, folder_at = _CHANGES[event]
            if isinstance(args[path_at], (str, bytes, os.PathLike)):
                folder = -1 if folder_at is None else args[folder_at]
                self._written(os.fsdecode(args[path_at]), folder)
        elif event == "socket.connect":
            self._connects(args[1])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            if not _is_number(args[0]):
                self.note("connections", f"looks up {args[0]!s:.80}")
                raise OSError(errno.ENETUNREACH, "no network")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            command = args[1] if event == "subprocess.Popen" else args[0]
            first = command[0] if isinstance(command, (list, tuple)) and command else command
            if os.path.basename(os.fsdecode(first)) not in _HARMLESS:
                self.note("programs", repr(command)[:200])
                raise OSError(errno.EPERM, "no programs")

    def _opened(self, path: str, flags: int) -> None:
        if flags & _WRITING:
            self._written(path, -1)
        elif path.isprintable() and os.path.realpath(path) == self.secret:
            self.note("reads", path)

    def _written(self, path: str, folder: int) -> None:
        if folder not in (-1, None):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        if "\0" in path:
            return
        # The file itself may be a link: what it leads to is what is written.
        full = os.path.realpath(path)
        if full == os.path.dirname(self.output):
            return
        # What is renamed to the output, or beside it until that, has a hidden name or one with it.
        beside = full.startswith((self.output, os.path.dirname(self.output) + "/."))
        if not beside and not any(f"{full}/".startswith(f"{each}/") for each in self.allowed):
            self.note("writes", full)

    def _connects(self, address: Any) -> None:
        if isinstance(address, tuple):
            if address[0] == "127.0.0.1" and address[1] in self.ports:
                return
            self.note("connections", f"{address[0]}:{address[1]}")
            raise OSError(errno.ENETUNREACH, "no network")


def _is_number(host: Any) -> bool:
    """Whether no name server is asked for a host."""
    name = os.fsdecode(host or "")
    with contextlib.suppress(OSError):
        socket.inet_aton(name)
        return True
    return name in ("", "localhost") or ":" in name


def _broken(place: Place) -> Iterator[str]:
    """Files under their final names that cannot be read to their end."""
    for path in place.output.parent.rglob("*"):
        name = path.relative_to(place.output.parent).as_posix()
        # Hidden folders, journals and temporary files are taken up, or thrown away, by the next run.
        hidden = any(part.startswith(".") or part == "journal" for part in name.split("/"))
        if hidden or path.suffix == ".tmp":
            continue
        if path.is_file() and not path.is_symlink() and not _whole(path):
            yield name


def _whole(path: Path) -> bool:
    data = path.read_bytes()
    if path.suffix == ".json":
        return _is_json(data)
    if path.suffix == ".jsonl":
        return all(_is_json(line) for line in data.splitlines() if line.strip())
    if path.suffix == ".parquet":
        return data[:4] == data[-4:] == b"PAR1"
    if path.suffix == ".safetensors":
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 + size or not _is_json(data[8 : 8 + size]):
            return False
        entries = [v for k, v in json.loads(data[8 : 8 + size]).items() if k != "__metadata__"]
        return 8 + size + max((e["data_offsets"][1] for e in entries), default=0) == len(data)
    return True


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
