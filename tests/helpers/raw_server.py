"""Server that sends given bytes, for malformed answers."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def raw_server(*replies: bytes) -> Iterator[str]:
    """Send these replies to any request, one per connection; repeat the last reply."""
    waiting = list(replies)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    while not connection.recv(65536).endswith(b"}"):
                        pass
                    connection.sendall(waiting.pop(0) if len(waiting) > 1 else waiting[0])

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    listener.close()


def reply(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = [
        b"HTTP/1.1 " + status,
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def completion(**changes) -> bytes:
    """Return a correct answer with changed fields, also of its choice (`choice_`) or message (`message_`)."""
    message = {"role": "assistant", "content": "chat"}
    choice = {"message": message, "finish_reason": "stop"}
    body = {"model": "m", "choices": [choice], "usage": {"completion_tokens": 1}}
    for name, value in changes.items():
        place, _, key = name.rpartition("__")
        {"": body, "choice": choice, "message": message}[place][key] = value
    return json.dumps(body).encode()
