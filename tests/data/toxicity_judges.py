"""Judges that tests understand, and a build's folder for them to judge."""

import io
from pathlib import Path

import pyarrow as pa
from PIL import Image

from training.data.files import write_parquet
from training.data.records import SOURCE_SCHEMA
from training.data.toxicity.verdicts import text_sha
from training.data.translation import TRANSLATED

WORDS = {"scum": "insult", "salaud": "insult", "kusoyaro": "insult", "kill": "threat"}
asked_texts: list[str] = []
asked_images: list[Image.Image] = []


def words(texts):
    """Word list: 0.97 for a word on it, 0.6 for "hmm"; by category."""
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
    """Colour rule: how red the mean pixel is."""
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
    """Source and translated units; texts: language -> one text (or None) for each source row."""
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


__all__ = ["picture", "redness", "source_row", "text_sha", "translated_row", "words", "write_build"]
