"""The verdict of a judge about one image or one text, and the worker that asks a judge.

A judge answers with a `Judgement`. A verdict is the judgement with its input. Verdicts are stored unchanged;
the policy (`policy.py`) decides from them later, so that a new threshold needs no model. If a judge cannot
read an input or answer, the label is "review", never "safe".
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa
from PIL import Image

from ...common.files import sha256_bytes, sha256_text
from ...common.images import decode_picture, to_rgb
from ...common.telling import one_line
from ...rows.parquet import Row
from ..sources.pictures import Pictures

Label: TypeAlias = Literal["safe", "unsafe", "review"]
Stage: TypeAlias = Literal["image", "text", "rationale"]

# Image format -> media type, for formats that endpoints accept; other formats are converted to PNG.
SENT = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

VERDICT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("stage", pa.string()),
        ("judge", pa.string()),
        ("model_revision", pa.string()),
        ("policy_sha", pa.string()),
        ("label", pa.string()),
        ("category", pa.string()),
        ("score", pa.float64()),
        ("rationale", pa.string()),
        ("raw", pa.string()),
        ("parse_ok", pa.bool_()),
        ("error", pa.string()),
        ("input_sha256", pa.string()),
        ("run_id", pa.string()),
    ]
)
"""Columns of a verdict. `id`: first row with the image or text. `lang`: "" for an image and for a rationale.
`input_sha256`: hash of the judged image file or UTF-8 text. `policy_sha`: hash of the judge's prompt. `error`:
why there is no answer."""


@dataclass(frozen=True)
class Judgement:
    """The answer of a judge.

    label: "review" if the judge says so, or if the answer is unreadable.
    category: category in the judge's words ("O3: Sexual Content", "insult").
    score: probability (0 to 1) that the input is unsafe; None if the judge gives none.
    raw: the unchanged answer.
    parse_ok: False if the answer does not have the judge's format, or is missing.
    error: one line, if there is no answer.
    """

    label: Label
    category: str | None = None
    score: float | None = None
    rationale: str | None = None
    raw: str | None = None
    parse_ok: bool = True
    error: str | None = None

    def __post_init__(self) -> None:
        if not self.parse_ok and self.label != "review":
            raise ValueError(
                f"label: expected 'review' for an unreadable answer, found {self.label!r}"
            )
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score: expected 0 to 1, found {self.score}")

    @classmethod
    def unreadable(cls, raw: str | None, error: str | None = None) -> Judgement:
        return cls("review", raw=raw, parse_ok=False, error=error)


@dataclass(frozen=True)
class ImageRef:
    """One image of the dataset, decoded.

    data: bytes for an endpoint: the file's bytes if its format is in `SENT`, else a PNG.
    picture: the decoded image, in RGB.
    """

    path: str
    data: bytes
    media_type: str
    picture: Image.Image


class Judge(Protocol):
    """A judge of texts (captions, translations, or rationales of another judge) or of images."""

    key: str
    """Hash of everything that affects its answers: model, revision, prompt, parser, parameters."""
    model_revision: str
    policy_sha: str
    batch_rows: int
    concurrency: int

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: Any) -> Any: ...

    async def judge(self, items: Any) -> list[Judgement]:
        """Return one judgement per (text, BCP-47 language) or per `ImageRef`, in order.

        A fault of one input is a judgement.

        Raises:
            Exception: only for faults that make the whole run pointless.
        """


@dataclass
class JudgeWorker:
    """A judge as a worker of the engine: takes rows of `INPUT_SCHEMA` (step.py), returns rows of `VERDICT_SCHEMA`.

    name: "toxicity/<judge>/<lang or images>".
    pictures: the images of an image judge.
    """

    judge: Judge
    name: str
    judge_name: str
    stage: Stage
    run_id: str
    pictures: Pictures | None = None
    schema = VERDICT_SCHEMA

    def __post_init__(self) -> None:
        self.key = self.judge.key
        self.batch_rows, self.concurrency = self.judge.batch_rows, self.judge.concurrency

    async def __aenter__(self) -> JudgeWorker:
        await self.judge.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.judge.__aexit__(*error)

    async def process(self, rows: list[Row]) -> list[Row]:
        if self.stage == "image":
            judgements = await self._look(rows)
        else:
            judgements = await self.judge.judge([(row["text"], row["lang"]) for row in rows])
        if len(judgements) != len(rows):
            raise ValueError(
                f"{self.name}: expected {len(rows)} judgements, found {len(judgements)}"
            )
        return [self._verdict(row, each) for row, each in zip(rows, judgements, strict=True)]

    async def _look(self, rows: list[Row]) -> list[Judgement]:
        """Judge images; an unreadable image gets the label "review", with the reason."""
        assert self.pictures is not None
        found: dict[int, Judgement] = {}
        images: dict[int, ImageRef] = {}
        for n, row in enumerate(rows):
            try:
                images[n] = await asyncio.to_thread(
                    open_image, self.pictures, row["image"], row["image_sha256"]
                )
            except (ValueError, FileNotFoundError) as error:
                found[n] = Judgement.unreadable(None, str(error))
        if images:
            answers = await self.judge.judge(list(images.values()))
            found.update(zip(images, answers, strict=True))
        return [found[n] for n in range(len(rows))]

    def _verdict(self, row: Row, judgement: Judgement) -> Row:
        found = asdict(judgement)
        for name in ("category", "error"):
            found[name] = found[name] and one_line(found[name])
        for name in ("rationale", "raw"):
            # Escape lone surrogates, which no file can store.
            found[name] = found[name] and found[name].encode("utf-8", "backslashreplace").decode()
        return {
            "id": row["id"],
            "lang": row["lang"],
            "stage": self.stage,
            "judge": self.judge_name,
            "model_revision": self.judge.model_revision,
            "policy_sha": self.judge.policy_sha,
            **found,
            "input_sha256": row["input_sha256"],
            "run_id": self.run_id,
        }


def open_image(pictures: Pictures, path: str, sha256: str | None = None) -> ImageRef:
    """Read and decode the image at `path`, with the guarded loader.

    Args:
        pictures: the images.
        path: name of the image.
        sha256: expected SHA-256 of its bytes; None for any.

    Raises:
        ValueError: the file is not an image, is broken or too large, or has another SHA-256.
        FileNotFoundError: the file is missing.
    """
    data = pictures.read(path)
    found = sha256_bytes(data)
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path}: expected the SHA-256 {sha256[:16]}... of the row, found {found[:16]}...: the file "
            "changed after the rows were read"
        )
    picture = decode_picture(data, path)
    media_type = SENT.get(picture.format or "")
    picture = to_rgb(picture)
    if media_type is None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data, media_type = buffer.getvalue(), "image/png"
    return ImageRef(path, data, media_type, picture)


def text_of(row: Row) -> str | None:
    """Return the text of a row for judges: its caption, or all turns; None for a row without a text.

    The placeholder `<image>` is removed.
    """
    if row.get("text") is not None:
        text = row["text"]
    elif row.get("turns"):
        text = "\n\n".join(turn["content"] for turn in row["turns"])
    else:
        return None
    return text.replace("<image>", " ").strip()


def image_sha(row: Row) -> str | None:
    """Return the identity of a row's image: the SHA-256 of its file, else of its path; None without an image."""
    if row.get("image") is None:
        return None
    return row.get("image_sha256") or sha256_text(f"path:{row['image']}")
