"""OpenAI-compatible translation server for tests: it knows the right answers and produces faults on demand.

In a thread of the test:

    with EndpointServer({"fr": {"a cat": "un chat"}}, faults=Faults(unavailable=0.1)) as server:
        ...  # post to server.url + "/chat/completions"
        assert server.counts[("fr", "a cat")] == 1

In a separate process, which survives a SIGKILL of its clients:

    with endpoint_process(truths, faults=Faults(reset=0.02), latency=0.05) as url:
        ...
        stats(url)["requests"]

or from a shell, where the first line printed is the address:

    python -m tests.helpers.endpoint_server --truths truths.json --latency 0.05 --faults '{"hang": 0.01}'

The request determines the question. The text is the last user message. The language is named in the previous
message after the word "into" ("Translate ... into French"), or by a native preamble, or by `target_lang_code`
in TranslateGemma's content. If that message contains the brackets 〘〙, the answer is put into them. The fault of a
request is drawn from the seed, the key (language, text) and the number of earlier requests for the key. The order
of arrival has no effect.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "English": "en",
    "Chinese": "zh",
    "Simplified Chinese": "zh",
    "French": "fr",
    "Spanish": "es",
    "Russian": "ru",
    "Hindi": "hi",
    "Japanese": "ja",
    "Arabic": "ar",
    "Bengali": "bn",
    "Urdu": "ur",
}
# Names of languages in the native preambles.
NATIVE = {
    "译成简体中文": "zh",
    "en français": "fr",
    "al español": "es",
    "на русский": "ru",
    "हिन्दी": "hi",
    "日本語": "ja",
    "إلى العربية": "ar",
    "বাংলায়": "bn",
    "اردو": "ur",
}
_INTO = re.compile(r"\binto ((?:Simplified )?[A-Z][a-z]+)")
REFUSAL = "I'm sorry, but I can't help with that request."
PREFACE = "Sure! Here is the translation you asked for:\n"
Truths = Mapping[str, Mapping[str, str]]  # language -> text -> its translation


@dataclasses.dataclass(frozen=True)
class Faults:
    """Shares of requests (0 to 1) that get each fault; their sum is at most 1.

    retry_after: value of the Retry-After header of 429 and 503; None for no header.
    """

    overloaded: float = 0.0  # 429
    unavailable: float = 0.0  # 503
    bad_request: float = 0.0  # 400
    hang: float = 0.0  # accepted, never answered
    reset: float = 0.0  # the connection is closed within the body
    broken_json: float = 0.0
    no_choices: float = 0.0
    no_text: float = 0.0  # a message with null content
    length: float = 0.0  # half an answer, finish_reason "length"
    untranslated: float = 0.0  # the untranslated text
    wrong_language: float = 0.0  # the right answer in another language
    refusal: float = 0.0
    preface: float = 0.0
    chunked: float = 0.0  # a right answer in small chunks
    retry_after: str | None = "0"

    def __post_init__(self) -> None:
        assert sum(self.shares().values()) <= 1 + 1e-9

    def shares(self) -> dict[str, float]:
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "retry_after"}


class EndpointServer:
    """Serve on 127.0.0.1 inside a `with` block, or while `serve` is awaited.

    Args:
        truths: language -> text -> answer. Other texts get the answer of `fallback(text, lang)`, or a 400 if
            that is None.
        latency: seconds that every right answer takes.
        slots: number of answers computed at once; other requests wait. None for no limit.
        always: text -> name of the fault that it always gets.
        rewrite: makes the answer from the messages and the right answer, for answers that depend on the
            instructions.
        api_key: refuse requests without this key (401).
        model: refuse requests for other models (404); answers contain this name.
        record: keep the headers and bodies of all requests in `seen`.
    """

    def __init__(
        self,
        truths: Truths | None = None,
        *,
        faults: Faults | None = None,
        fallback: Callable[[str, str], str | None] | None = None,
        latency: float = 0.0,
        slots: int | None = None,
        seed: int = 0,
        always: Mapping[str, str] | None = None,
        rewrite: Callable[[list[dict], str], str] = lambda messages, truth: truth,
        api_key: str | None = None,
        model: str | None = None,
        port: int = 0,
        record: bool = False,
    ) -> None:
        self.truths = truths or {}
        self.faults = faults or Faults()
        self.fallback = fallback
        self.latency, self.seed = latency, seed
        self.always, self.rewrite = dict(always or {}), rewrite
        self.api_key, self.model, self.port, self.record = api_key, model, port, record
        self.counts: Counter[tuple[str, str]] = Counter()  # (language, text) -> requests
        self.met: Counter[str] = Counter()  # fault -> requests
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.requests = self.in_flight = self.peak = 0
        self.first = self.last = 0.0  # times of the first request and of the last answer
        self.work = 0.0  # total seconds of answering
        self._slots = slots
        self._free: asyncio.Semaphore | contextlib.nullcontext = contextlib.nullcontext()
        self._ready = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "EndpointServer":
        self._thread.start()
        assert self._ready.wait(30), "the endpoint did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join()

    async def serve(self, started: Callable[[str], None] = lambda url: None) -> None:
        if self._slots is not None:
            self._free = asyncio.Semaphore(self._slots)
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._stats)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        started(self.url)
        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self.first = self.first or time.monotonic()
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1
            self.last = time.monotonic()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.record:
            self.seen.append((dict(request.headers), body))
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            said = f"Incorrect API key provided: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": said}}, status=401)
        if self.model and body.get("model") != self.model:
            said = f"The model `{body.get('model')}` does not exist."
            return web.json_response({"error": {"message": said}}, status=404)
        text, lang, bracketed = asked(body["messages"])
        self.counts[(lang, text)] += 1
        fault = self.always.get(text) or self._draw(text, lang)
        if fault:
            self.met[fault] += 1
        if fault in ("overloaded", "unavailable"):
            after = self.faults.retry_after
            status = 429 if fault == "overloaded" else 503
            headers = {} if after is None else {"Retry-After": after}
            said = {"error": {"message": f"the server is {fault}"}}
            return web.json_response(said, status=status, headers=headers)
        if fault == "hang":
            await asyncio.sleep(3600)
        truth = self.truths.get(lang, {}).get(text)
        if truth is None and self.fallback is not None:
            truth = self.fallback(text, lang)
        if fault == "bad_request" or truth is None:
            said = "this text is refused" if fault else f"no {lang!r} truth for {text!r}"
            return web.json_response({"error": {"message": said}}, status=400)
        truth = self.rewrite(body["messages"], truth)
        async with self._free:
            begun = time.monotonic()
            if self.latency:
                await asyncio.sleep(self.latency)
            self.work += time.monotonic() - begun
        if fault == "broken_json":
            return web.Response(text='{"choices": [{"message": {"content": "', status=200)
        content = self._content(fault, text, lang, truth, bracketed)
        finish = "length" if fault == "length" else "stop"
        message: dict[str, str | None] = {"role": "assistant", "content": content}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if fault == "no_text":
            message["content"] = None
        elif body.get("logprobs"):
            tokens = [{"token": t, "logprob": -0.1 * i} for i, t in enumerate(content.split())]
            choice["logprobs"] = {"content": tokens}
        answer = {
            "object": "chat.completion",
            "model": body.get("model"),
            "choices": [] if fault == "no_choices" else [choice],
            "usage": {"completion_tokens": len(content)},
        }
        if fault in ("reset", "chunked"):
            return await self._in_pieces(request, answer, fault == "reset")
        return web.json_response(answer)

    def _draw(self, text: str, lang: str) -> str | None:
        drawn = f"{self.seed}\t{lang}\t{text}\t{self.counts[(lang, text)]}"
        number = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:8], "big") / 2**64
        for name, share in self.faults.shares().items():
            number -= share
            if number < 0:
                return name
        return None

    def _content(self, fault: str | None, text: str, lang: str, truth: str, bracketed: bool) -> str:
        opened, closed = ("〘", "〙") if bracketed else ("", "")
        if fault == "refusal":
            return REFUSAL
        if fault == "length":
            return opened + truth[: max(1, len(truth) // 2)]
        if fault == "untranslated":
            truth = text
        if fault == "wrong_language":
            others = (self.truths[o].get(text) for o in self.truths if o not in (lang, "en"))
            truth = next((o for o in others if o is not None), text)
        before = PREFACE if fault == "preface" else ""
        return f"{before}{opened}{truth}{closed}"

    @staticmethod
    async def _in_pieces(request: web.Request, answer: dict, cut: bool) -> web.StreamResponse:
        content = json.dumps(answer).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if cut:
            response.content_length = len(content)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        if cut:
            await response.write(content[: len(content) // 2])
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.abort()
            return response
        for start in range(0, len(content), 16):
            await response.write(content[start : start + 16])
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model or "truth"}]})

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "requests": self.requests,
                "peak": self.peak,
                "seconds": self.last - self.first,
                "work": self.work,
                "faults": dict(self.met),
                "keys": [[lang, text, n] for (lang, text), n in self.counts.items()],
            }
        )


def asked(messages: list[dict]) -> tuple[str, str, bool]:
    """Return (text, language, whether the answer must be in brackets) of a chat's messages."""
    content = messages[-1]["content"]
    if isinstance(content, list):
        part = next(part for part in content if "text" in part)  # pictures come before the text
        return part["text"], part.get("target_lang_code", "").split("-")[0], False
    said = "\n".join(str(m["content"]) for m in messages[:-1]) or content
    found = _INTO.search(said)
    if found is None:
        return content, next((NATIVE[n] for n in NATIVE if n in said), ""), "〘" in said
    return content, NAMES.get(found.group(1), found.group(1)), "〘" in said


@contextlib.contextmanager
def endpoint_process(
    truths: Truths | None = None, *, faults: Faults | None = None, **options: Any
) -> Iterator[str]:
    """Start an endpoint in a separate process, and yield its address.

    options: latency, slots, seed, port, model, api_key; `fallback="echo"` answers unknown texts
        with "<lang>: <text>".
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "truths.json")
        path.write_text(json.dumps(truths or {}), encoding="utf-8")
        command = [sys.executable, "-m", "tests.helpers.endpoint_server", "--truths", str(path)]
        command += ["--faults", json.dumps(dataclasses.asdict(faults or Faults()))]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the endpoint did not start"
            yield url
        finally:
            process.terminate()
            process.wait()


def stats(url: str) -> dict[str, Any]:
    """Return a server's counts: requests, peak, seconds, work, faults, keys [[lang, text, n], ...]."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=30) as response:
        return json.load(response)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--truths", type=Path, help="JSON: language -> text -> translation")
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON: fault -> share")
    parser.add_argument("--fallback", choices=["echo"], help="answer other texts all the same")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model")
    parser.add_argument("--api-key")
    args = vars(parser.parse_args())
    path, faults, fallback = args.pop("truths"), args.pop("faults"), args.pop("fallback")
    truths = json.loads(path.read_text(encoding="utf-8")) if path else {}
    echo = (lambda text, lang: f"{lang}: {text}") if fallback else None
    server = EndpointServer(truths, faults=Faults(**faults), fallback=echo, **args)
    asyncio.run(server.serve(lambda url: print(url, flush=True)))


if __name__ == "__main__":
    main()
