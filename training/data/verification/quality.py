"""Estimate quality with a model in an environment of its own, over pipes.

Models such as CometKiwi pin versions that cannot be installed beside this package. So the model is a
program: it reads one JSON object a line and writes one a line, in order.

    out  {"ready": "name and version of the model"}                             once, when loaded
    in   {"id": "000042", "source_lang": "en", "lang": "fr", "source": "...", "text": "..."}
    out  {"id": "000042", "score": 0.83}                 or {"id": "000042", "error": "one line"}

Higher scores are better. The program ends when its input does; what it prints on standard error goes
to ours. Several lines may come before the first answer is due (`batch_rows` of them, then an empty
line that ends the batch), so it can work in batches. `scorers/cometkiwi.py` is such a program.

A line that cannot be read is that of a row without a score. A program none of whose lines can be read,
or that answers other rows than it was given, ends the run.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...common.reading import parse_json
from ...common.schema import Bounds
from ...common.telling import one_line

_LINE_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class QualityPlan:
    """Section `verification.quality`.

    command: the program and its arguments, such as [/opt/comet/bin/python, cometkiwi.py]. It is started
        when the plan is built, which asks for --allow-code.
    model, model_revision: what it runs; stored, and a change of them scores anew.
    batch_rows: rows it is given at once.
    share: of the rows that are scored, drawn by their id; 1 for all.
    flag_below: rows with a lower score have the flag "quality"; None for no flag.
    timeout: seconds for loading the model, and for one batch.
    """

    command: list[str]
    model: str
    model_revision: str | None = None
    batch_rows: int = 64
    share: float = 1.0
    flag_below: float | None = None
    timeout: float = 600.0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("verification.quality.command: expected a program, found nothing")
        Bounds(above=0, most=1).check(self.share, "verification.quality", "share")
        Bounds(least=1).check(self.batch_rows, "verification.quality", "batch_rows")


class QualityScorer:
    """The running program; an async context manager. It has one batch at a time.

    Raises OSError when it cannot be started, dies, or answers nothing in time, and ValueError for an
    answer that is not as the protocol says; both name the program.
    """

    def __init__(self, plan: QualityPlan):
        self.plan = plan
        self.model = ""
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._has_scored = False

    async def __aenter__(self) -> "QualityScorer":
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.plan.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT,
                env={**os.environ, **self.plan.environment},
                # Ctrl-C is for us: we end it when what it works on is done.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise OSError(
                f"verification.quality.command: {self.plan.command[0]!r} cannot be started: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from None
        try:
            hello = self._parsed(await self._line())
            if not isinstance(hello, dict) or not isinstance(hello.get("ready"), str):
                told = one_line(str(hello), 200)
                raise ValueError(f'{self._name}: expected {{"ready": "..."}} first, found {told}')
        except BaseException as error:
            await self.__aexit__(type(error))
            raise
        self.model = one_line(hello["ready"], 200)
        return self

    async def __aexit__(self, kind: Any = None, *error: Any) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if kind is not None:
            _kill(process)
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(_ended(process), 10)
        except TimeoutError:
            _kill(process)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_ended(process), 10)

    @property
    def _name(self) -> str:
        return f"quality estimation ({one_line(' '.join(self.plan.command), 200)})"

    async def score(self, rows: Sequence[dict[str, str]]) -> list[float | None]:
        """Return the scores of rows {"id", "source_lang", "lang", "source", "text"}; None for an error."""
        scores: list[float | None] = []
        async with self._turn:
            for start in range(0, len(rows), self.plan.batch_rows):
                scores += await self._batch(rows[start : start + self.plan.batch_rows])
        return scores

    async def _batch(self, rows: Sequence[dict[str, str]]) -> list[float | None]:
        assert self._process is not None, "use the scorer in an `async with` block"
        stdin = self._process.stdin
        assert stdin is not None
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]

        async def send() -> None:
            stdin.write(("\n".join(lines) + "\n\n").encode())
            await stdin.drain()

        # While it writes answers it may not read: so both at once.
        sending = asyncio.ensure_future(send())
        try:
            found = [self._score(row, await self._line()) for row in rows]
            await sending
        except (BrokenPipeError, ConnectionResetError):
            raise OSError(f"{self._name}: ended early") from None
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
        scores = [each if isinstance(each, float) else None for each in found]
        self._has_scored = self._has_scored or len(scores) > scores.count(None)
        if not self._has_scored and all(isinstance(each, str) for each in found):
            # Not one of these rows is to blame.
            raise ValueError(f"{self._name}: {found[0]}")
        return scores

    def _score(self, row: dict[str, str], line: bytes) -> float | str | None:
        """Return the score in a line; None if the program reports an error; or the fault of the line, as text.

        Raises ValueError for the answer of another row.
        """
        answer = self._parsed(line)
        if isinstance(answer, str):
            return f"row {row['id']!r}: expected a score: {answer}"
        if answer.get("id") != row["id"]:
            raise ValueError(
                f"{self._name}: expected the answer of row {row['id']!r}, found "
                f"{one_line(str(answer), 200)}"
            )
        if isinstance(answer.get("error"), str):
            return None
        score = answer.get("score")
        if isinstance(score, (int, float)) and not isinstance(score, bool) and abs(score) < 1e30:
            return float(score)
        return f"row {row['id']!r}: expected a score, found {one_line(str(answer), 200)}"

    @staticmethod
    def _parsed(line: bytes) -> dict[str, Any] | str:
        """Return the JSON object in a line, or the fault of the line."""
        try:
            answer = parse_json(line, "a line")
        except ValueError as error:
            return f"expected a JSON object a line, found {one_line(repr(line), 80)} ({error})"
        if not isinstance(answer, dict):
            return f"expected a JSON object a line, found {one_line(repr(line), 80)}"
        return answer

    async def _line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), self.plan.timeout)
        except TimeoutError:
            raise OSError(f"{self._name}: no answer within {self.plan.timeout:g} s") from None
        except ValueError:
            raise ValueError(f"{self._name}: a line longer than {_LINE_LIMIT} bytes") from None
        if not line:
            code = await self._process.wait()
            raise OSError(f"{self._name}: ended with status {code} before it had answered")
        return line


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the program and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a program, and read its last output, for which asyncio waits too."""
    assert process.stdout is not None
    while await process.stdout.read(2**16):
        pass
    await process.wait()
