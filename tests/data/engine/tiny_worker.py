"""A worker that answers with the source text in capitals, and produces faults for tests."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [("id", pa.string()), ("lang", pa.string()), ("text", pa.string()), ("status", pa.string())]
)


class TinyWorker:
    """A worker that counts the requests of each row in `asked`."""

    schema = SCHEMA

    def __init__(self, name="translate/fr", key="model-1", batch_rows=1, concurrency=8, pause=0.0):
        self.name, self.key = name, key
        self.batch_rows, self.concurrency, self.pause = batch_rows, concurrency, pause
        self.asked: Counter = Counter()
        self.entered = self.left = self.in_flight = self.most_in_flight = 0

    async def __aenter__(self):
        self.entered += 1
        return self

    async def __aexit__(self, *error):
        self.left += 1

    async def process(self, rows):
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.pause)
            for row in rows:
                self.asked[row["id"]] += 1
            return [self.answer(row) for row in rows]
        finally:
            self.in_flight -= 1

    def answer(self, row):
        return {
            "id": row["id"],
            "lang": self.name.rsplit("/", 1)[1],
            "text": f"{row['text'].upper()} by {self.key}",
            "status": "ok",
        }


def rows(count, start=0, lang="en"):
    return [
        {"id": f"{n:09d}", "lang": lang, "text": f"a picture of {n} 猫"}
        for n in range(start, start + count)
    ]


def write_source(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def sources(folder: Path, units: int, rows_a_unit: int) -> list[tuple[Path, Path]]:
    """Write source units with consecutive ids; return (source, target) of each."""
    return [
        (
            write_source(
                folder / "source" / f"{n:05d}.parquet", rows(rows_a_unit, n * rows_a_unit)
            ),
            folder / "translate" / "fr" / f"{n:05d}.parquet",
        )
        for n in range(units)
    ]


def read(path: Path) -> list[dict]:
    return pq.ParquetFile(path).read().to_pylist()


# Factories of workers, picklable for other processes.


def make(name: str, **options) -> TinyWorker:
    return TinyWorker(name, **options)


class Unpicklable(Exception):
    """An exception like datatrove's InferenceError: a pool that receives it waits forever."""

    def __init__(self, document, error):
        super().__init__(f"{document}: {error}")


class Faulty(TinyWorker):
    """A worker with one fault at one row; a file records that the fault has happened."""

    def __init__(self, name: str, fault: str, at: str, once: Path, **options):
        super().__init__(name, **options)
        self.fault, self.at, self.once = fault, at, once

    async def process(self, rows):
        if rows[0]["id"] == self.at and not self.once.exists():
            self.once.write_text("")
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "unpicklable":
                raise Unpicklable("row", "bad")
            raise ValueError("401: the key is refused")
        return await super().process(rows)


def make_faulty(name: str, **options) -> Faulty:
    return Faulty(name, **options)
