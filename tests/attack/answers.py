"""Answers of a translator and of a judge: odd statuses, headers, bodies and fields, or no end."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import yaml

from .case import Case, Expect, Fault, Outcome, Place
from .plans import good_plan
from .world import ODD, deep

GOOD = "Un bateau rouge, numéro 1."
# After these no request has a point, and the build ends.
FATAL = (301, 302, 401, 402, 403, 404, 405)


def cases(chance: random.Random) -> Iterator[Case]:
    """Builds one of whose requests is answered oddly; one row may be lost by it, the build not."""
    yield _case(False, "good", Answer(_reply(f"〘{GOOD}〙")), "accepted", all_good=True)
    while True:
        judge = chance.random() < 0.35
        sort = chance.choice([_field, _field, _field, _body, _status, _wire])
        about, answer, expect = sort(chance)
        yield _case(judge, about, answer, expect)


class Answer:
    """What is sent: a status with its reason, headers and a body; or bytes as they are.

    open: the connection stays open after `raw`, and nothing more comes.
    """

    def __init__(
        self,
        body: Any = b"",
        status: int = 200,
        reason: str | None = None,
        raw: bytes | None = None,
        endless: bytes | None = None,
        open: bool = False,
    ) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.reason, self.raw, self.endless = status, reason, raw, endless
        self.open = open


def _reply(text: Any, **fields: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **fields}
    return {"model": "tiny", "choices": [choice], "usage": {"total_tokens": 5}}


def _handler(odd: Answer, good: str | None) -> type[BaseHTTPRequestHandler]:
    """Answers what is asked about row 1 oddly, all else well."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            number = re.search(rb"umber (\d)", asked)
            text = f"Un bateau rouge, numéro {number[1].decode()}." if number else "Que voit-on ?"
            odd_one = number is not None and number[1] == b"1"
            answer = odd if odd_one else Answer(_reply(good or f"〘{text}〙"))
            if answer.raw is not None:
                self.wfile.write(answer.raw)
                if answer.open:
                    self.rfile.read(1)  # until the client goes
                self.close_connection = True
                return
            self.send_response(answer.status, answer.reason)
            if answer.endless is not None:
                self.end_headers()
                while True:
                    self.wfile.write(answer.endless)
            self.send_header("Location", "http://203.0.113.1/v1")
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the command has gone
                super().handle()

    return Handler


def _case(judge: bool, about: str, odd: Answer, expect: Expect, all_good: bool = False) -> Case:
    def prepare(place: Place) -> list[str]:
        plan = good_plan(place)
        url = place.serve(_handler(odd, "Safety: Safe\nCategories: None" if judge else None))
        endpoint = {"base_url": f"{url}/v1", "model": "tiny", "max_attempts": 1, "timeout": 3}
        if judge:
            guard = {"preset": "qwen3guard", "endpoint": endpoint}
            plan["toxicity"] = {"judges": [guard]}
        else:
            plan["languages"] = ["fr"]
            plan["translator"] = {"preamble": "bare", "endpoint": endpoint, "retries": 0}
        path = place.write("plan.yaml", yaml.safe_dump(plan))
        return ["data", "build", str(path)]

    def check(place: Place, outcome: Outcome) -> list[Fault]:
        return _rows(
            place, outcome, ("row-0", "row-1", "row-2") if all_good else ("row-0", "row-2")
        )

    who = "judge" if judge else "translator"
    names = ("203.0.113.1", "127.0.0.1", "plan.yaml")
    return Case(f"{who} {about}", prepare, expect, names, check=None if judge else check)


def _rows(place: Place, outcome: Outcome, good: tuple[str, ...]) -> list[Fault]:
    """Every row is there once, `good` ones translated; reasons are printable."""
    if outcome.code != 0:
        return []
    import pyarrow.parquet as pq

    rows = []
    for path in sorted(place.output.glob("translate/fr/*.parquet")):
        rows += pq.ParquetFile(path).read().to_pylist()
    faults = []
    if sorted(row["id"] for row in rows) != ["row-0", "row-1", "row-2"]:
        faults.append(Fault("counts do not add up", f"{len(rows)} of 3 rows are translated"))
    for row in rows:
        if row["id"] in good and row["status"] != "ok":
            faults.append(Fault("refused though good", f"{row['id']}: {row['reasons']}"))
        reason = row.get("reasons") or ""
        if not reason.isprintable():
            faults.append(Fault("control characters", f"in a row's reasons: {reason[:100]!r}"))
        if len(reason) > 2000:
            faults.append(Fault("a long line", f"a row's reasons have {len(reason)} characters"))
    return faults


# ------------------------------------------------------------------------------ sorts of answers


def _field(chance: random.Random) -> tuple[str, Answer, Expect]:
    """One field of a good reply has an odd value."""
    value = chance.choice(ODD)
    keys = ["content", "finish_reason", "model", "usage", "logprobs", "message", "choices", "index"]
    key = chance.choice(keys)
    reply = _reply(f"〘{GOOD}〙")
    choice = reply["choices"][0]
    if key == "content":
        choice["message"][key] = value
    elif key in ("finish_reason", "message", "index"):
        choice[key] = value
    elif key == "logprobs":
        item = {"token": "Safe", "logprob": value, "top_logprobs": [{"token": value}]}
        choice[key] = chance.choice([value, {"content": value}, {"content": [value, item]}])
        value = choice[key]
    else:
        reply[key] = value
    return f"{key} = {value!r:.40}", Answer(reply), "accepted"


def _body(chance: random.Random) -> tuple[str, Answer, Expect]:
    """A body that is another thing."""
    bodies = {
        "empty": b"",
        "html": b"<html>\x1b[2J</html>",
        "deep": deep(100_000).encode(),
        "list": b"[]",
        "null": b"null",
        "number": b"1" * 10_000,
        "binary": bytes(range(256)),
        "cut": json.dumps(_reply(GOOD)).encode()[:40],
        "NaN": b'{"choices": NaN}',
        "error": b'{"error": {"message": "\\u001b[2J \\ud800 no"}}',
        "error is a list": b'{"error": [1]}',
        "a megabyte": json.dumps(_reply("bateau " * 150_000)).encode(),
        "UTF-16": json.dumps(_reply(GOOD)).encode("utf-16"),
    }
    name = chance.choice(sorted(bodies))
    return f"body {name}", Answer(bodies[name]), "accepted"


def _status(chance: random.Random) -> tuple[str, Answer, Expect]:
    """A status that is no success, with a reason and a body of control characters."""
    status = chance.choice([*FATAL, 204, 400, 409, 413, 418, 422, 429, 500, 503, 599, 999])
    body = chance.choice([b"", b'{"error": {"message": "a\\u001b[2J\\nb"}}', b"x" * 60_000, b"\0"])
    reason = chance.choice(["", "No\x1b[2J", "A" * 5000])
    return (
        f"status {status}",
        Answer(body, status, reason),
        "refused" if status in FATAL else "either",
    )


def _wire(chance: random.Random) -> tuple[str, Answer, Expect]:
    """What is no HTTP, or has no end."""
    head = b"HTTP/1.1 200 OK\r\n"
    ways = {
        "nothing": Answer(raw=b""),
        "no HTTP": Answer(raw=b"\x1b[2J\x00\xff\n" * 20),
        "binary status": Answer(raw=b"HTTP/1.1 \xff\xfe OK\r\n\r\n"),
        "long header": Answer(raw=head + b"X: " + b"a" * 10**6 + b"\r\n\r\n"),
        "wrong length": Answer(raw=head + b"Content-Length: 99999\r\n\r\n{}"),
        "negative length": Answer(raw=head + b"Content-Length: -1\r\n\r\n{}"),
        "bad gzip": Answer(raw=head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
        "chunks without an end": Answer(
            raw=head + b"Transfer-Encoding: chunked\r\n\r\n4\r\n{   \r\n"
        ),
        "bad chunk": Answer(raw=head + b"Transfer-Encoding: chunked\r\n\r\n\x1b[2J\r\n{}"),
        "headers without an end": Answer(raw=head + b"X: y\r\n", open=True),
        "body without an end": Answer(raw=head + b'Content-Length: 99\r\n\r\n{"choices', open=True),
        "stream": Answer(
            raw=head + b"Content-Type: text/event-stream\r\n\r\ndata: {}\n\n", open=True
        ),
        "endless": Answer(endless=b" " * 2**20),
        "slow and endless": Answer(endless=b" "),
    }
    name = chance.choice(sorted(ways))
    return f"wire {name}", ways[name], "accepted"
