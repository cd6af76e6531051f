"""Simple judges for tests, and a build's folder to judge."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from maya_vlm.training.common.files import write_parquet
from maya_vlm.training.data.sources.records import SOURCE_SCHEMA
from maya_vlm.training.data.translation.worker import TRANSLATED

WORDS = {"scum": "insult", "salaud": "insult", "kusoyaro": "insult", "kill": "threat"}
asked_texts: list[str] = []
asked_images: list[Image.Image] = []


def words(texts):
    """Score texts by a word list: 0.97 for a listed word, 0.6 for "hmm"; by category."""
    asked_texts.extend(texts)
    return [
        {
            "insult": max(
                [0.97 for w in WORDS if w in text and WORDS[w] == "insult"], default=0.01
            ),
            "threat": 0.95 if "kill" in text else 0.02,
            "doubt": 0.6 if "hmm" in text else 0.0,
        }
        for text in texts
    ]


def redness(images):
    """Score images by the red of their mean pixel."""
    asked_images.extend(images)
    return [image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images]


def picture(red: int, seed: int = 0, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (red, seed % 256, seed // 256)).save(buffer, format)
    return buffer.getvalue()


def source_row(id_, text, image=None, sha=None, lang="en", turns=None):
    row = {"id": id_, "image": image, "image_sha256": sha, "lang": lang, "task": "caption"}
    return {**row, "text": text, "turns": turns}


def translated_row(source, lang, text):
    row = dict.fromkeys(TRANSLATED.names)
    row |= {k: source[k] for k in ("id", "image", "image_sha256", "task")}
    status = "rejected" if text is None else "ok"
    return row | {"lang": lang, "text": text, "status": status, "source_lang": source["lang"]}


def write_build(folder: Path, sources: list[dict], texts: dict[str, list], unit_rows: int = 3):
    """Write source and translated units; texts: language -> one text (or None) per source row."""
    for start in range(0, len(sources), unit_rows):
        name = f"{start // unit_rows:05d}.parquet"
        part = sources[start : start + unit_rows]
        write_parquet(folder / "source" / name, pa.Table.from_pylist(part, schema=SOURCE_SCHEMA))
        for lang, column in texts.items():
            rows = [
                translated_row(row, lang, text)
                for row, text in zip(part, column[start : start + unit_rows], strict=True)
            ]
            table = pa.Table.from_pylist(rows, schema=TRANSLATED)
            write_parquet(folder / "translate" / lang / name, table)


class GuardServer:
    """An OpenAI-compatible guard on 127.0.0.1, for the duration of a `with` block.

    answer: (text, pictures) -> answer, or (answer, logprobs' content), or an HTTP status; `text` is that of
        the last user message, `pictures` are the pictures sent with it.
    """

    def __init__(self, answer: Callable[[str, list[Image.Image]], Any]) -> None:
        self.answer = answer
        self.bodies: list[dict] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                found = server.answer(*server.read(body["messages"][-1]["content"]))
                if isinstance(found, int):
                    status, payload = found, {"error": {"message": "no answer today"}}
                else:
                    text, logprobs = found if isinstance(found, tuple) else (found, None)
                    choice = {"message": {"content": text}, "finish_reason": "stop"}
                    if logprobs and body.get("logprobs"):
                        choice["logprobs"] = {"content": logprobs}
                    status, payload = 200, {"choices": [choice], "model": body["model"]}
                data = json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @staticmethod
    def read(content: str | list[dict]) -> tuple[str, list[Image.Image]]:
        if isinstance(content, str):
            return content, []
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
        return "".join(part["text"] for part in content if part["type"] == "text"), pictures

    @property
    def endpoint(self) -> dict[str, Any]:
        return {
            "base_url": f"http://127.0.0.1:{self._http.server_port}",
            "model": "guard",
            "model_revision": "r1",
            "max_attempts": 2,
            "backoff": 0.01,
            "concurrency": 4,
        }

    def __enter__(self) -> "GuardServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
