"""Client with retries for any OpenAI-compatible `/v1/chat/completions`: vLLM, SGLang or a hosted one.

    async with Endpoint(EndpointPlan(base_url="http://127.0.0.1:8000", model="aya")) as endpoint:
        answer = await endpoint.complete([{"role": "user", "content": "Hello"}], temperature=0)

Temporary failures are retried: overload, timeouts, cut connections, malformed answers. A faulty request
(400, 413, 422 ...) and an answer that cannot be stored return an `Answer` with `error`, because whatever
a server sends is data. A failure that every further request would share (a wrong key, an unknown model,
no server) raises EndpointError.
"""

import asyncio
import difflib
import email.utils
import math
import os
import random
import time
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .reading import NotJSON, parse_json
from .secrets import redact
from .telling import found as described
from .telling import one_line

# Statuses that are retried, besides 5xx: the server or the network may recover.
RETRIED = (408, 409, 425, 429)
# Statuses that end the run, because every other request would fail too.
FATAL = {
    401: "refuses the API key",
    402: "asks for payment",
    403: "forbids the request",
    404: "does not know the model or the address",
    405: "has no chat completions at this address",
}
_EXCERPT = 300  # longest quote of a server's message, in characters
# Longest response body in bytes. Log probabilities of 2,000 tokens with 20 alternatives each take 5 MB.
MAX_BODY = 16 * 2**20
# Longest answer in characters, more than models write. Checking a longer one would take minutes.
MAX_TEXT = 100_000

# Known request parameters: those of OpenAI, vLLM, SGLang, llama.cpp, Ollama and gateways.
PARAMETERS = frozenset(
    [
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "best_of",
        "cache_prompt",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dynatemp_exponent",
        "dynatemp_range",
        "early_stopping",
        "ebnf",
        "echo",
        "enable_thinking",
        "frequency_penalty",
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "ignore_eos",
        "include_reasoning",
        "include_stop_str_in_output",
        "json_schema",
        "keep_alive",
        "length_penalty",
        "logit_bias",
        "logits_processors",
        "logprobs",
        "lora_path",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "min_tokens",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "mm_processor_kwargs",
        "modalities",
        "n_predict",
        "n_probs",
        "no_repeat_ngram_size",
        "no_stop_trim",
        "num_beams",
        "options",
        "plugins",
        "prediction",
        "presence_penalty",
        "priority",
        "prompt_cache_key",
        "prompt_logprobs",
        "provider",
        "random_seed",
        "reasoning",
        "reasoning_effort",
        "reasoning_format",
        "regex",
        "repeat_last_n",
        "repeat_penalty",
        "repetition_penalty",
        "response_format",
        "return_token_ids",
        "route",
        "safe_prompt",
        "safety_identifier",
        "safety_settings",
        "samplers",
        "seed",
        "separate_reasoning",
        "service_tier",
        "session_params",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_regex",
        "stop_token_ids",
        "store",
        "structured_outputs",
        "temperature",
        "tfs_z",
        "think",
        "thinking",
        "thinking_budget",
        "top_a",
        "top_k",
        "top_logprobs",
        "top_n_sigma",
        "top_p",
        "transforms",
        "truncate_prompt_tokens",
        "typical_p",
        "use_beam_search",
        "user",
        "verbosity",
        "xtc_probability",
        "xtc_threshold",
    ]
)


# Key for parameters that only one server knows; its entries are merged into the request body.
EXTRA = "extra_body"
# Parameters that the client sets itself, or that change the form of the answer.
_NOT_EXTRA = frozenset(["model", "messages", "stream", "stream_options", "n", EXTRA])


def check_parameters(parameters: dict[str, Any], where: str) -> None:
    """Raise ValueError, naming the key, for unknown parameters, NaN and infinity.

    Servers ignore unknown parameters, so a typo would silently have no effect. Below `extra_body` other
    names are allowed.
    """
    for name, value in parameters.items():
        if name == EXTRA:
            _check_extra(value, f"{where}.{EXTRA}")
        elif name not in PARAMETERS:
            close = difflib.get_close_matches(str(name), PARAMETERS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            told = one_line(repr(name), 60)
            raise ValueError(
                f"{where}: expected a parameter of chat completions, found {told}{hint}: put a parameter that "
                f"only this server knows below {EXTRA}"
            )
        _check_plain(value, f"{where}.{name}")


def _check_extra(extra: Any, where: str) -> None:
    if not isinstance(extra, dict):
        raise ValueError(f"{where}: expected a mapping of parameters, found {described(extra)}")
    for name, value in extra.items():
        told = one_line(repr(name), 60)
        if not isinstance(name, str) or not name.strip() or name in _NOT_EXTRA:
            raise ValueError(
                f"{where}: expected the name of a server's own parameter, found {told}"
            )
        if name in PARAMETERS:
            raise ValueError(f"{where}: {told} is a known parameter: move it out of {EXTRA}")
        if redact({name: value}) != {name: value}:
            raise ValueError(
                f"{where}: {told} would be stored with the plan: put the key into an environment "
                "variable and name that in api_key_env"
            )


def _check_plain(value: Any, where: str) -> None:
    """Raise ValueError for a value that JSON cannot represent."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{where}: expected a finite number, found {each}")
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
        elif not isinstance(each, (str, int, float, type(None))):
            raise ValueError(
                f"{where}: expected text, numbers, lists and mappings, found {described(each)}"
            )


def merge_parameters(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge parameters and the entries of their `extra_body`; `second` overrides `first`."""
    merged = {**first, **second}
    if EXTRA in first and EXTRA in second:
        merged[EXTRA] = {**first[EXTRA], **second[EXTRA]}
    return merged


class EndpointError(OSError):
    """No request can succeed: the endpoint refuses all of them, or no server answers. One line."""


@dataclass
class EndpointPlan:
    """Address of an OpenAI-compatible server, and the limits and retries of requests.

    base_url: with or without `/v1`; another version in the path, such as `/v1beta/openai`, is kept.
    model: the server's name for the model; a translator's preset may set it.
    model_revision: the commit of the served weights, stored with every answer, because servers do not
        report it.
    api_key_env: the environment variable that holds the API key. The key itself is never stored.
    concurrency: requests in flight at once. A request waiting for its next attempt counts, so an
        overloaded server gets fewer requests.
    timeout, connect_timeout: seconds for one whole attempt, and for its connection.
    max_attempts: attempts per request before it fails.
    backoff: seconds before the second attempt; doubled for each further attempt, with jitter.
    max_backoff: longest wait between attempts in seconds, even if Retry-After asks for more.
    stop_after: the run ends after this many failed requests in a row, because then the endpoint is
        broken, not the rows.
    """

    base_url: str
    model: str = ""
    model_revision: str | None = None
    api_key_env: str | None = None
    concurrency: int = 32
    timeout: float = 300.0
    connect_timeout: float = 10.0
    max_attempts: int = 8
    backoff: float = 0.5
    max_backoff: float = 60.0
    stop_after: int = 100

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: expected http(s)://host, found {self.base_url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "base_url: expected no user, password or query, because it is stored: "
                "put the key into an environment variable and name that in api_key_env"
            )
        for name in ("concurrency", "max_attempts", "stop_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("timeout", "connect_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected seconds above 0, found {getattr(self, name)}")
        for name in ("backoff", "max_backoff"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected seconds, found {getattr(self, name)}")

    @property
    def url(self) -> str:
        """URL of the requests."""
        base = self.base_url.rstrip("/").removesuffix("/chat/completions")
        versions = (s for s in urlsplit(base).path.split("/") if s[:1] == "v" and s[1:2].isdigit())
        return f"{base}/chat/completions" if any(versions) else f"{base}/v1/chat/completions"

    def api_key(self) -> str | None:
        """Return the key from the environment. Raises ValueError if the named variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"api_key_env: expected the environment variable {self.api_key_env} to be set, found nothing: "
                "export the endpoint's API key under that name"
            )
        return key


@dataclass(frozen=True)
class Answer:
    """The result of one request.

    text: the assistant's message; None on failure, and then `error` has the reason.
    finish_reason: from the server ("stop", "length", "content_filter", ...), in one line.
    attempts: number of requests sent.
    error: one line; None on success.
    model: the name that the server reports, otherwise that of the plan, in one line.
    logprobs: `choices[0].logprobs.content` if requested with `logprobs=True`: every token, and each of
        its `top_logprobs`, has a text and a finite number.
    usage: the server's token counts.
    """

    text: str | None
    finish_reason: str | None
    attempts: int
    error: str | None
    model: str
    logprobs: list | None = None
    usage: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Fault:
    """A failed attempt; `again` is whether a retry may succeed."""

    error: str
    again: bool = True
    retry_after: float = 0.0
    unreachable: bool = False


class Endpoint:
    """One aiohttp session with an endpoint, used as an async context manager.

    Any number of `complete` calls may be awaited at once; `plan.concurrency` of them are in flight.

    Raises:
        ValueError: if the plan names no model.
    """

    def __init__(self, plan: EndpointPlan) -> None:
        if not plan.model:
            raise ValueError(
                f"endpoint {plan.base_url}: model: expected a name, found nothing: name the served model"
            )
        self.plan = plan
        self._key: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._places: asyncio.Semaphore  # one per session, bound to the session's event loop
        self._failed_in_a_row = 0

    async def __aenter__(self) -> "Endpoint":
        self._key = self.plan.api_key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._places = asyncio.Semaphore(self.plan.concurrency)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.plan.concurrency),
            timeout=aiohttp.ClientTimeout(
                total=self.plan.timeout, sock_connect=self.plan.connect_timeout
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def complete(self, messages: list[dict], **parameters: Any) -> Answer:
        """Request an answer to `messages`, with `parameters` (temperature, max_tokens, extra_body ...).

        Raises:
            EndpointError: on 401, 402, 403, 404, 405, a redirect, no connection in `max_attempts`,
                or `stop_after` failures in a row.
        """
        assert self._session is not None, "use the endpoint in an `async with` block"
        extra = parameters.pop(EXTRA, {})
        body = {"model": self.plan.model, "messages": messages, **parameters, **extra}
        async with self._places:
            for attempt in range(1, self.plan.max_attempts + 1):
                found = await self._attempt(body, attempt)
                if isinstance(found, Answer):
                    self._failed_in_a_row = 0
                    return found
                if not found.again:
                    break
                if attempt < self.plan.max_attempts:
                    await asyncio.sleep(self._wait(attempt, found.retry_after))
        assert isinstance(found, _Fault)
        if found.unreachable:
            raise EndpointError(
                f"{self.plan.url}: no connection in {attempt} attempts: {found.error}: "
                "start the server or correct base_url, then run the same command again"
            )
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.plan.stop_after:
            raise EndpointError(
                f"{self.plan.url}: {self._failed_in_a_row} requests in a row failed, the last "
                f"with {found.error}: check the server, then run the same command again"
            )
        return Answer(None, None, attempt, found.error, self.plan.model)

    def _wait(self, attempt: int, retry_after: float) -> float:
        """Return the seconds before the next attempt: exponential with jitter, at least Retry-After."""
        longest = self.plan.max_backoff
        delay = min(longest, self.plan.backoff * 2 ** min(attempt - 1, 32))
        # Jitter is added to Retry-After too, otherwise all requests would return at the same time.
        return max(min(retry_after, longest), delay / 2) + random.uniform(0, delay / 2)

    async def _attempt(self, body: dict[str, Any], attempt: int) -> Answer | _Fault:
        assert self._session is not None
        try:
            async with self._session.post(
                self.plan.url, json=body, allow_redirects=False
            ) as response:
                content = await _body(response)
                status, headers = response.status, response.headers
        except aiohttp.ClientConnectorError as error:
            return _Fault(self._line(str(error)), unreachable=True)
        except TimeoutError:
            return _Fault(f"no answer within {self.plan.timeout:g} s")
        except (
            aiohttp.ClientError,
            aiohttp.http.HttpProcessingError,
            OSError,
            ValueError,
        ) as error:
            # ValueError: aiohttp's parsers raise it for malformed responses.
            return _Fault(self._line(f"{type(error).__name__}: {error}"))
        if content is None:
            return _Fault(f"HTTP {status}: an answer of more than {MAX_BODY:,} bytes", again=False)
        if status != 200:
            return self._refused(status, headers, content)
        return self._read(content, attempt, with_logprobs=bool(body.get("logprobs")))

    def _refused(self, status: int, headers: Any, content: bytes) -> _Fault:
        said = self._line(_message(content))
        error = f"HTTP {status}: {said}" if said else f"HTTP {status}"
        if status in FATAL:
            raise EndpointError(
                f"{self.plan.url} {FATAL[status]} (model {self.plan.model!r}, "
                f"key from {self.plan.api_key_env or 'nowhere'}): {error}"
            )
        if 300 <= status < 400:
            target = self._line(headers.get("Location", "elsewhere"))
            raise EndpointError(f"{self.plan.url} redirects to {target}: set base_url to that")
        again = status in RETRIED or status >= 500
        return _Fault(error, again, retry_after=_seconds(headers.get("Retry-After")))

    def _read(self, content: bytes, attempt: int, with_logprobs: bool) -> Answer | _Fault:
        try:
            data = parse_json(content.decode("utf-8-sig"), "the answer")
        except NotJSON:
            data = None
        except UnicodeDecodeError:
            return self._unreadable(attempt, "the answer: expected UTF-8 text, found other bytes")
        except ValueError as error:
            # The JSON is complete, so a retry would bring the same answer.
            return self._unreadable(attempt, str(error))
        choices = data.get("choices") if isinstance(data, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or "content" not in message:
            said = self._line(_message(content)) or "an empty body"
            return _Fault(f"an answer without choices: {said}")
        assert isinstance(choice, dict)
        text, reason = message["content"], choice.get("finish_reason")
        if not isinstance(reason, (str, type(None))):
            return self._unreadable(attempt, f"finish_reason: expected text, found {reason!r}")
        reason = reason and self._line(reason)
        if not isinstance(text, str):
            return self._unreadable(
                attempt, f"an answer without text (finish_reason {reason!r})", reason
            )
        if len(text) > MAX_TEXT:
            told = f"an answer of {len(text):,} characters, expected at most {MAX_TEXT:,}"
            return self._unreadable(attempt, told, reason)
        logprobs = _logprobs(choice.get("logprobs")) if with_logprobs else None
        if isinstance(logprobs, str):
            return self._unreadable(attempt, logprobs, reason)
        if self._key and len(self._key) >= 8:
            text = text.replace(self._key, "[key]")
        model, usage = data.get("model"), data.get("usage")
        return Answer(
            text=text,
            finish_reason=reason,
            attempts=attempt,
            error=None,
            model=(self._line(model) if isinstance(model, str) else "") or self.plan.model,
            logprobs=logprobs,
            usage=usage if isinstance(usage, dict) else {},
        )

    def _unreadable(self, attempt: int, why: str, reason: str | None = None) -> Answer:
        return Answer(None, reason, attempt, self._line(why), self.plan.model)

    def _line(self, text: str) -> str:
        """Return one short line for messages and rows, without the key, which servers may echo."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return one_line(text, _EXCERPT)


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the body of a response; None if it has more than MAX_BODY bytes."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)


def _message(content: bytes) -> str:
    """Return a server's error message: OpenAI's `error.message`, vLLM's `message`, or the body."""
    text = content.decode("utf-8", errors="replace")
    try:
        data = parse_json(text, "the answer")
    except ValueError:
        return text
    error = data.get("error", data) if isinstance(data, dict) else text
    said = error.get("message", text) if isinstance(error, dict) else error
    return str(said)


def _logprobs(found: Any) -> list[dict] | str | None:
    """Return `content` of an answer's `logprobs`; None without it; a text if it is malformed."""
    content = found.get("content") if isinstance(found, dict) else found
    if content is None:
        return None
    wrong = "logprobs: expected a list of tokens with their log probabilities"
    if not isinstance(content, list):
        return f"{wrong}, found {one_line(repr(content), 60)}"
    for item in content:
        rivals = item.get("top_logprobs") if isinstance(item, dict) else None
        for each in [item, *(rivals if isinstance(rivals, list) else [])]:
            if not isinstance(each, dict) or not _is_token(each):
                return f"{wrong}, found {one_line(repr(each), 60)}"
        if not isinstance(rivals, (list, type(None))):
            return f"{wrong}, found top_logprobs {one_line(repr(rivals), 60)}"
    return content


def _is_token(item: dict[str, Any]) -> bool:
    token, logprob = item.get("token"), item.get("logprob")
    if not isinstance(logprob, (int, float)) or isinstance(logprob, bool):
        return False
    # Integers in JSON have no size limit.
    return isinstance(token, str) and abs(logprob) < 1e9


def _seconds(retry_after: str | None) -> float:
    """Return the seconds until Retry-After, given in seconds or as an HTTP date; 0 if it is neither."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(retry_after)
            if when.tzinfo is None:
                when = when.replace(tzinfo=UTC)
            seconds = when.timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):  # all raised by the date parser
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
