"""A judge's verdict about one image or one text, and the worker that asks judges.

A judge answers with a `Judgement`. Its verdict is that judgement and what it is about: stored as it
came, kept for ever, and decided on later by the policy (`policy.py`), so that a changed threshold
runs no model again. What a judge could not read or answer is "review", never "safe".
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

# What endpoints take as it is; images in other formats are sent as PNG.
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
"""One row a verdict. `id` is the first row that has the image or text, `lang` is "" for an image and
for a rationale; `input_sha256` is what the verdict is about: the image file, or the UTF-8 text.
`policy_sha` is a hash of the prompt the judge was given; `error` says why there is no answer."""


@dataclass(frozen=True)
class Judgement:
    """A judge's answer.

    label: "review" where the judge says so, or said nothing that could be read.
    category: in the judge's own words ("O3: Sexual Content", "insult").
    score: probability from 0 to 1 that the input is unsafe; None where the judge gives none.
    raw: the answer as it came.
    parse_ok: False for an answer that is not in the judge's form, and for no answer.
    error: one line, where there is no answer at all.
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
            raise ValueError(f"an answer that was not understood is 'review', not {self.label!r}")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"score: expected 0 to 1, found {self.score}")

    @classmethod
    def unreadable(cls, raw: str | None, error: str | None = None) -> Judgement:
        return cls("review", raw=raw, parse_ok=False, error=error)


@dataclass(frozen=True)
class ImageRef:
    """One image of the dataset, read and decoded.

    data: the bytes to send to an endpoint: the file's own where its format is one of `SENT`.
    picture: RGB.
    """

    path: str
    data: bytes
    media_type: str
    picture: Image.Image


class Judge(Protocol):
    """A judge of texts (captions, translations, or rationales of another judge) or of images."""

    key: str
    """Hash of all that changes its answers: model, revision, prompt, parser, parameters."""
    model_revision: str
    policy_sha: str
    batch_rows: int
    concurrency: int

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: Any) -> Any: ...

    async def judge(self, items: Any) -> list[Judgement]:
        """Return one judgement for each (text, BCP-47 language), or for each `ImageRef`, in order.

        Raises only what makes the whole run pointless; an item's fault is a judgement.
        """


@dataclass
class JudgeWorker:
    """A judge as a worker of the unit engine: rows of `INPUT_SCHEMA` (step.py) in, of `VERDICT_SCHEMA` out.

    name: "toxicity/<judge>/<lang or images>".
    pictures: where an image judge's images are.
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
                f"{self.name}: {len(rows)} inputs were given and {len(judgements)} judgements came "
                "back"
            )
        return [self._verdict(row, each) for row, each in zip(rows, judgements, strict=True)]

    async def _look(self, rows: list[Row]) -> list[Judgement]:
        """Return the verdict of an image that cannot be read: "review", with the reason."""
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
            # Half of a surrogate pair, which no file can hold, is written out.
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
    """Return the image at `path`, decoded by the guarded loader.

    Raises:
        ValueError: it is no picture, broken, too large, or its bytes are not those whose SHA-256 the
            row gives.
        FileNotFoundError: there is none.
    """
    data = pictures.read(path)
    found = sha256_bytes(data)
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path}: its SHA-256 is {found[:16]}..., the row says {sha256[:16]}...: the file was "
            "changed since the rows were read"
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
    """Return the text of a row for judges: its caption, or all turns; None for a row without text.

    The marks `<image>` stand for pictures and are not read.
    """
    if row.get("text") is not None:
        text = row["text"]
    elif row.get("turns"):
        text = "\n\n".join(turn["content"] for turn in row["turns"])
    else:
        return None
    return text.replace("<image>", " ").strip()


def image_sha(row: Row) -> str | None:
    """Return what identifies a row's image: the SHA-256 of its file, else that of its path."""
    if row.get("image") is None:
        return None
    return row.get("image_sha256") or sha256_text(f"path:{row['image']}")
