"""Estimate quality with a model in a separate environment, over pipes.

Models such as CometKiwi pin versions that cannot be installed with this package. Therefore the model runs
in a program that reads and writes one JSON object per line, in order:

    out  {"ready": "name and version of the model"}                             once, when loaded
    in   {"id": "000042", "source_lang": "en", "lang": "fr", "source": "...", "text": "..."}
    out  {"id": "000042", "score": 0.83}                 or {"id": "000042", "error": "one line"}

Higher scores are better. The program ends when its input ends; its standard error goes to ours. It can work
in batches: up to `batch_rows` lines and an empty line, which ends the batch, are sent before the first
answer is expected. `scorers/cometkiwi.py` is such a program.

An unreadable line leaves its row without a score. The run ends if none of a program's lines is readable, or
if it answers other rows than it was sent.
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
    """Section `verification.quality` of a plan.

    command: the program and its arguments, for example [/opt/comet/bin/python, cometkiwi.py]. Building the
        plan starts it, which requires --allow-code.
    model, model_revision: the model that it runs; stored. Changing them scores all rows again.
    batch_rows: rows per batch.
    share: fraction of rows to score, selected by id; 1 for all.
    flag_below: rows with a lower score get the flag "quality"; None sets no flag.
    timeout: maximum seconds for loading the model, and for one batch.
    environment: environment variables of the program, added to those of this process.
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
    """The running program, which processes one batch at a time; use it as an async context manager.

    Raises:
        OSError: the program does not start, dies, or does not answer in time.
        ValueError: an answer breaks the protocol. Both errors name the program.
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
                # Shield the program from Ctrl-C: we end it once its current rows are done.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise OSError(
                f"verification.quality.command: expected a program that starts, found {self.plan.command[0]!r}: "
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
        """Return the scores of rows {"id", "source_lang", "lang", "source", "text"}; None without a score."""
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

        # Send and read at once: the program may not read while it writes answers.
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
            # The fault is not that of a single row.
            raise ValueError(f"{self._name}: {found[0]}")
        return scores

    def _score(self, row: dict[str, str], line: bytes) -> float | str | None:
        """Return the score in a line; None if the program reports an error; text if the line is faulty.

        Raises:
            ValueError: the answer belongs to another row.
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
        """Return the JSON object in a line, or the line's fault as text."""
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
            raise OSError(
                f"{self._name}: expected an answer within {self.plan.timeout:g} s, found none"
            ) from None
        except ValueError:
            raise ValueError(
                f"{self._name}: expected lines of at most {_LINE_LIMIT} bytes, found a longer one"
            ) from None
        if not line:
            code = await self._process.wait()
            raise OSError(f"{self._name}: ended with status {code} before it answered")
        return line


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the program and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait until a program has ended, and read its last output, which asyncio waits for too."""
    assert process.stdout is not None
    while await process.stdout.read(2**16):
        pass
    await process.wait()
