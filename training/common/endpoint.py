"""A patient client of any OpenAI-compatible `/v1/chat/completions`: vLLM, SGLang or a hosted one.

    async with Endpoint(EndpointPlan(base_url="http://127.0.0.1:8000", model="aya")) as endpoint:
        answer = await endpoint.complete([{"role": "user", "content": "Hello"}], temperature=0)

What may pass is tried again: overload, time-outs, connections cut, answers that are no answers.
What is the request's fault (400, 413, 422 ...) comes back as an `Answer` with `error`, and so does an
answer that no row could hold: whatever a server sends is data. What makes every further request
pointless (a wrong key, an unknown model, nobody there) raises EndpointError.
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

# Worth another try: the server or the network may do better.
RETRIED = (408, 409, 425, 429)
# Pointless for every other request too: a wrong key, no credit, a wrong address, an unknown model.
FATAL = {
    401: "refuses the API key",
    402: "asks for payment",
    403: "forbids the request",
    404: "does not know the model or the address",
    405: "has no chat completions at this address",
}
_EXCERPT = 300  # characters of a server's message that are quoted
# Bytes of a body; one with the log probabilities of 2,000 tokens and 20 rivals of each has 5 MB.
MAX_BODY = 16 * 2**20
# Characters of an answer, more than any model writes; the checks of a longer one would take minutes.
MAX_TEXT = 100_000

# Parameters of a request: OpenAI's, and those that vLLM, SGLang, llama.cpp, Ollama and gateways add.
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


# The key of parameters that only one server knows; its entries go into the request beside the others.
EXTRA = "extra_body"
# Set by the client itself, or for answers of another form.
_NOT_EXTRA = frozenset(["model", "messages", "stream", "stream_options", "n", EXTRA])


def check_parameters(parameters: dict[str, Any], where: str) -> None:
    """Raise ValueError, naming the key, for unknown names, for NaN and for infinity.

    Servers pass over what they do not know, so a slip of the pen would change nothing in silence. Below
    `extra_body` any other name is allowed.
    """
    for name, value in parameters.items():
        if name == EXTRA:
            _check_extra(value, f"{where}.{EXTRA}")
        elif name not in PARAMETERS:
            close = difflib.get_close_matches(str(name), PARAMETERS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            told = one_line(repr(name), 60)
            raise ValueError(
                f"{where}: expected a parameter of chat completions, found {told}{hint}; put one that "
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
    """Raise ValueError for a value that JSON cannot hold."""
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
    """Both, `second` over `first`; so are the entries of their `extra_body`."""
    merged = {**first, **second}
    if EXTRA in first and EXTRA in second:
        merged[EXTRA] = {**first[EXTRA], **second[EXTRA]}
    return merged


class EndpointError(OSError):
    """The run cannot go on: the endpoint refuses everyone, or nobody is there. One line."""


@dataclass
class EndpointPlan:
    """Where an OpenAI-compatible server is and how patiently it is asked.

    base_url: with or without `/v1`; a path with a version in it, such as `/v1beta/openai`, stays.
    model: the name by which the server knows the model; a translator's preset may fill it in.
    model_revision: the commit of the weights that are served, stored with every answer; a server
        does not tell it.
    api_key_env: the environment variable that holds the API key. The key itself is never stored.
    concurrency: requests in flight at once. A request that waits for its next attempt keeps its
        place, so an overloaded server is asked less.
    timeout, connect_timeout: seconds for one attempt in all, and for its connection.
    max_attempts: how often one request is sent before it has failed.
    backoff: seconds before the second attempt; doubled for each further one, and jittered.
    max_backoff: seconds; the longest wait between attempts, also where Retry-After asks for more.
    stop_after: so many requests failing for good with no answer between them end the run: then it
        is the endpoint that is broken, not the rows.
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
                "base_url: holds a user, password or query, which would be stored; "
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
        """The address that requests are posted to."""
        base = self.base_url.rstrip("/").removesuffix("/chat/completions")
        versions = (s for s in urlsplit(base).path.split("/") if s[:1] == "v" and s[1:2].isdigit())
        return f"{base}/chat/completions" if any(versions) else f"{base}/v1/chat/completions"

    def api_key(self) -> str | None:
        """The key from the environment; ValueError where the named variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"api_key_env: the environment variable {self.api_key_env} is not set or empty; "
                "export the endpoint's API key under that name"
            )
        return key


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    text: the assistant's message; None where there is none, and then `error` says why.
    finish_reason: as the server gave it ("stop", "length", "content_filter", ...), in one line.
    attempts: requests that were sent for it.
    error: one line; None for an answer.
    model: as the server names itself, else as the plan does, in one line.
    logprobs: `choices[0].logprobs.content` where asked for with `logprobs=True`: every token, and every
        one of its `top_logprobs`, has a text and a finite number.
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
    """An attempt that brought no answer; `again` tells whether another one may."""

    error: str
    again: bool = True
    retry_after: float = 0.0
    unreachable: bool = False


class Endpoint:
    """One aiohttp session on an endpoint, to be used as an async context manager.

    Any number of `complete` may be awaited at once: `plan.concurrency` of them are in flight.
    Raises ValueError for a plan without a model.
    """

    def __init__(self, plan: EndpointPlan) -> None:
        if not plan.model:
            raise ValueError(f"endpoint {plan.base_url}: model: missing; name the served model")
        self.plan = plan
        self._key: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._places: asyncio.Semaphore  # of one session: it belongs to that session's event loop
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
        """The answer to `messages`; `parameters` (temperature, max_tokens, extra_body ...) go along.

        Raises:
            EndpointError: 401, 402, 403, 404, 405, a redirect, no connection in `max_attempts`,
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
                f"{self.plan.url}: no connection in {attempt} attempts: {found.error}; "
                "start the server or correct base_url, then run the same command again"
            )
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.plan.stop_after:
            raise EndpointError(
                f"{self.plan.url}: {self._failed_in_a_row} requests in a row failed, the last "
                f"with {found.error}; see to the server, then run the same command again"
            )
        return Answer(None, None, attempt, found.error, self.plan.model)

    def _wait(self, attempt: int, retry_after: float) -> float:
        """Seconds before the next attempt: exponential with jitter, and not before Retry-After."""
        longest = self.plan.max_backoff
        delay = min(longest, self.plan.backoff * 2 ** min(attempt - 1, 32))
        # The jitter comes on top of what the server asked for: else all would return together.
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
            # ValueError: what aiohttp's parsers make of nonsense.
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
            raise EndpointError(f"{self.plan.url} redirects to {target}; set base_url to that")
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
            # It is whole, and would come again.
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
        """One short line for messages and rows, without the key: servers repeat what they got."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return one_line(text, _EXCERPT)


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body of a response; None for one of more than MAX_BODY bytes."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_BODY:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)


def _message(content: bytes) -> str:
    """What a server says is wrong: OpenAI's `error.message`, vLLM's `message`, or the body."""
    text = content.decode("utf-8", errors="replace")
    try:
        data = parse_json(text, "the answer")
    except ValueError:
        return text
    error = data.get("error", data) if isinstance(data, dict) else text
    said = error.get("message", text) if isinstance(error, dict) else error
    return str(said)


def _logprobs(found: Any) -> list[dict] | str | None:
    """`content` of an answer's `logprobs`: None where there is none, or what is wrong with it."""
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
    # A whole number may have any number of digits.
    return isinstance(token, str) and abs(logprob) < 1e9


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds from now, given as seconds or as an HTTP date; 0 for neither."""
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
        except (ValueError, TypeError, IndexError, OverflowError):  # as the parser finds it
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
