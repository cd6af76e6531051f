"""`maya serve MODEL`: run transformers' OpenAI-compatible server with a Maya.

`transformers serve` looks up a model's class in transformers, which has no custom classes. This module
loads the model as every command does, and gives it to that server. The server answers a conversation or
picture that the model does not support with status 400 and one line.
"""

import socket
from typing import Any

from ..common.models import find_model
from ..common.telling import found, one_line

ROLES = ("system", "user", "assistant")
TEXTS, PICTURES = ("text", "input_text", "output_text"), ("image_url", "input_image")


class Refused(Exception):
    """A request that the model does not support; the message is one line."""


def serve(
    model: str,
    name: str | None = None,
    host: str = "localhost",
    port: int = 8000,
    trust_remote_code: bool = False,
    revision: str | None = None,
    allow_urls: bool = True,
    allow_private: bool = False,
) -> None:
    """Serve one model until the process is stopped.

    Args:
        model: a folder or Hub repository (`user/name@revision` too), of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        name: the model's name for clients; default: the folder's name, or the repository's id.
        host: where the server listens.
        port: where the server listens.
        trust_remote_code: passed on to transformers, for models other than Maya.
        revision: branch, tag or commit of the model's repository.
        allow_urls: fetch pictures from http(s) addresses that clients send. `data:` URIs are always
            read, local files never.
        allow_private: also fetch from addresses of private and local networks.

    Raises:
        ValueError, FileNotFoundError, OSError, MemoryError: one line: there is no such model, or packages
            of the extra `serve` are missing.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ValueError("serving needs more packages: pip install 'maya-vlm[serve]'")
    check_port(host, port)
    from transformers.cli import serve as command

    from .load import load

    if name is None:
        name = find_model(model, revision).title
    network, processor = load(model, trust_remote_code, revision)
    _read_for_strangers(processor, allow_urls, allow_private)
    _hand_over(network, processor)
    command.Serve(force_model=name, host=host, port=port)


def check_port(host: str, port: int) -> None:
    """Raise ValueError, in one line, if the server cannot listen there. Called before a model is loaded."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot listen there ({error}): give another one"
        ) from None


def _read_for_strangers(processor: Any, allow_urls: bool, allow_private: bool) -> None:
    """Stop the processor from reading local files, and make it raise Refused for bad conversations."""
    from jinja2 import TemplateError

    pictures = getattr(processor, "image_processor", None)
    for setting, value in (
        ("allow_files", False),
        ("allow_urls", allow_urls),
        ("allow_private_urls", allow_private),
    ):
        if hasattr(pictures, setting):
            setattr(pictures, setting, value)
    show = processor.apply_chat_template

    def apply_chat_template(*args: Any, **kwargs: Any) -> Any:
        try:
            return show(*args, **kwargs)
        except (ValueError, OSError, TypeError, TemplateError) as error:
            raise Refused(one_line(str(error))) from error

    processor.apply_chat_template = apply_chat_template


def _hand_over(network: Any, processor: Any) -> None:
    """Make transformers' server use this model, and answer Refused with status 400.

    The server does not accept a loaded model, so classes of its modules are replaced.
    """
    from fastapi.responses import JSONResponse
    from transformers.cli.serving import chat_completion, model_manager, server
    from transformers.cli.serving.utils import Modality

    class Loaded(model_manager.ModelManager):
        """A manager of one loaded model, under any name."""

        @staticmethod
        def process_model_name(model_id: str) -> str:
            return model_id

        def load_model_and_processor(self, name: str, *args: Any, **kwargs: Any) -> Any:
            if name not in self.loaded_models:
                held = model_manager.TimedModel(network, timeout_seconds=-1, processor=processor)
                self.loaded_models[name] = held
            return network, processor

        @staticmethod
        def get_model_modality(*args: Any, **kwargs: Any) -> Modality:
            return Modality.VLM

    class Checked(chat_completion.ChatCompletionHandler):
        """A handler that checks a conversation before transformers' server reads it."""

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            body["messages"] = conversation(body.get("messages"))
            return await super().handle_request(body, request_id)

    build = server.build_server

    def build_server(*args: Any, **kwargs: Any) -> Any:
        app = build(*args, **kwargs)

        @app.exception_handler(Refused)
        async def refuse(_: Any, error: Refused) -> JSONResponse:
            told = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": told}, status_code=400)

        return app

    model_manager.ModelManager = Loaded
    chat_completion.ChatCompletionHandler = Checked
    server.build_server = build_server


def conversation(messages: Any) -> list[dict[str, Any]]:
    """Return a client's `messages` in the form of chat templates.

    A developer turn becomes a system turn. System turns at the start become one, with a blank line
    between them.

    Raises:
        Refused: the messages have another form; the message names the place.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused(f"messages: expected a list with a turn or more, found {found(messages)}")
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            raise Refused(
                f"{place}: expected a mapping with role and content, found {found(message)}"
            )
        role = "system" if message.get("role") == "developer" else message.get("role")
        if role not in ROLES or message.get("tool_calls"):
            raise Refused(
                f"{place}: role: expected one of {', '.join(ROLES)}, developer, without tool calls, found "
                f"{found(message.get('role'))}"
            )
        parts = _parts(message.get("content"), place)
        if role == "system" and turns and all(turn["role"] == "system" for turn in turns):
            turns[-1]["content"] += [{"type": "text", "text": "\n\n"}, *parts]
        else:
            turns.append({"role": role, "content": parts})
    return turns


def _parts(content: Any, place: str) -> list[dict[str, Any]]:
    """Return the content of a turn as a list of texts and pictures."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise Refused(f"{place}: content: expected text or a list of parts, found {found(content)}")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        held = part.get("text" if kind in TEXTS else "image_url") if kind else None
        address = held.get("url") if isinstance(held, dict) and kind in PICTURES else held
        if kind not in (*TEXTS, *PICTURES) or not isinstance(address, str):
            raise Refused(
                f"{place}: content[{number}]: expected a part of the type text with a text, or of the type "
                f"image_url with an address, found {found(part)}"
            )
    return content
