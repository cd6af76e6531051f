"""Reading images with captions in eight languages: joined into groups, compared with one language after another.

    python tests/benchmarks/grouped_reading.py [--images 2000] [--rounds 5] [--output FILE]

The dataset is generated: one sorted table of captions per language, and one table of images (random bytes, 47 KB
each, like a photo of LLaVA-Pretrain). Three readers return every caption with its image's undecoded bytes, with
bounded memory:

    grouped      `maya_vlm.training.batches.joined`: one pass over all tables
    joined_by_8  `datasets` in streaming mode: for each language its captions and the images, merged
    separate_8   the same with eight datasets that have the image's bytes in every row

Every round runs each reader in a separate process, which counts the rows and bytes read. The output has medians, and
ratios of medians, of wall time and CPU time (including the opening of the datasets), and Arrow's peak memory, also
for a dataset with a quarter of the images. The result goes to results/grouped_reading.json.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.helpers.languages import PAPER as LANGUAGES  # noqa: E402

RESULT = Path(__file__).parent / "results" / "grouped_reading.json"
PHOTO = 47_000  # bytes
CAPTION = 60  # characters
READERS = ("grouped", "joined_by_8", "separate_8")


def make_dataset(folder: Path, images: int) -> None:
    """Write the layout of a published dataset to `folder`/tables, and rows with bytes to `folder`/rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz      "))
    names = [f"{n:09}" for n in range(images)]
    paths = [f"{n // 100:05}/{name}.jpg" for n, name in enumerate(names)]
    photos = [random.bytes(PHOTO) for _ in range(images)]
    pictures = [{"bytes": b, "path": p} for b, p in zip(photos, paths, strict=True)]
    tables = folder / "tables"
    (tables / "images").mkdir(parents=True)
    table = pa.table({"id": names, "image": pictures})
    pq.write_table(table, tables / "images" / "part-00000.parquet", row_group_size=100)
    configs = ["- config_name: images\n  data_files: images/*.parquet\n"]
    for language in LANGUAGES:
        captions = ["".join(line) for line in random.choice(letters, (images, CAPTION))]
        columns = {"id": names, "image": paths, "lang": [language] * images, "caption": captions}
        for place in (tables / "data" / language, folder / "rows" / language):
            place.mkdir(parents=True)
        file = tables / "data" / language / "clean-00000.parquet"
        pq.write_table(pa.table(columns), file, row_group_size=1000)
        whole = pa.table({**columns, "image": pictures})
        pq.write_table(whole, folder / "rows" / language / "train.parquet", row_group_size=100)
        configs.append(f"- config_name: {language}\n  data_files: data/{language}/*.parquet\n")
    everything = "- config_name: all\n  default: true\n  data_files:\n  - split: train\n    path: data/*/*.parquet\n"
    (tables / "README.md").write_text(f"---\nconfigs:\n{everything}{''.join(configs)}---\n")


# ------------------------------------------------------------------------------ readers


def grouped(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    from tests.helpers.image_groups import image_groups

    for group in image_groups(str(folder / "tables"), "all"):
        assert isinstance(group.image, bytes)
        for row in group.rows:
            yield row["id"], row["lang"], row["caption"], group.image


def joined_by_8(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    import datasets

    def stream(config: str) -> Any:
        found = datasets.load_dataset(str(folder / "tables"), config, split="train", streaming=True)
        return found.cast_column("image", datasets.Image(decode=False)) if config == "images" else found  # fmt: skip

    for language in LANGUAGES:
        images = iter(stream("images"))
        image = next(images)
        for row in stream(language):
            while image["id"] < row["id"]:
                image = next(images)
            assert image["id"] == row["id"]
            yield row["id"], row["lang"], row["caption"], image["image"]["bytes"]


def separate_8(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    import datasets

    for language in LANGUAGES:
        rows = datasets.load_dataset(str(folder / "rows" / language), split="train", streaming=True)
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            yield row["id"], row["lang"], row["caption"], row["image"]["bytes"]


def read(name: str, folder: Path) -> dict[str, Any]:
    """Run a reader once, and return the amount read, the time and the memory."""
    import datasets  # noqa: F401
    import pyarrow

    import maya_vlm.training.batches.joined  # noqa: F401

    reader = {"grouped": grouped, "joined_by_8": joined_by_8, "separate_8": separate_8}[name]

    wall, cpu = time.perf_counter(), time.process_time()
    rows = size = 0
    content = 0
    for identity, language, caption, image in reader(folder):
        rows += 1
        size += len(image)
        # Independent of the order.
        text = f"{identity} {language} {caption}".encode() + image[:16]
        content ^= int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "memory": pyarrow.default_memory_pool().max_memory(),
        "rows": rows,
        "bytes": size,
        "content": content,
    }


def measure(folder: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Run `rounds` of every reader, alternating. Raise RuntimeError if they read different data."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in READERS}
    for _ in range(rounds):
        for name in READERS:
            command = [sys.executable, __file__, "--read", name, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    content = {(r["rows"], r["bytes"], r["content"]) for runs in found.values() for r in runs}
    if len(content) != 1:
        raise RuntimeError(f"the readers did not read the same: {content}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--read", nargs=2, metavar=("READER", "FOLDER"), help="used by the command")
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.read[0], Path(args.read[1]))))
        return 0

    from maya_vlm.training.common.files import write_json
    from maya_vlm.training.common.provenance import provenance

    with tempfile.TemporaryDirectory() as place:
        whole, part = Path(place) / "whole", Path(place) / "part"
        make_dataset(whole, args.images)
        make_dataset(part, args.images // 4)
        found, small = measure(whole, args.rounds), measure(part, 1)

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in found[name])

    record = {
        "what": "reading every caption of eight languages with its image's bytes, undecoded",
        "images": args.images,
        "languages": len(LANGUAGES),
        "bytes_an_image": PHOTO,
        "rounds": args.rounds,
        "readers": {
            name: {
                "pairs_per_second": round(
                    args.images * len(LANGUAGES) / median(name, "seconds"), 1
                ),
                **{
                    key: {
                        "median": round(median(name, key), 4),
                        "least": round(min(run[key] for run in found[name]), 4),
                        "most": round(max(run[key] for run in found[name]), 4),
                    }
                    for key in ("seconds", "cpu_seconds")
                },
                "memory_bytes": int(median(name, "memory")),
                "memory_bytes_a_quarter_of_the_images": small[name][0]["memory"],
            }
            for name in READERS
        },
        "times_faster": {
            other: {
                "wall": round(median(other, "seconds") / median("grouped", "seconds"), 2),
                "cpu": round(median(other, "cpu_seconds") / median("grouped", "cpu_seconds"), 2),
            }
            for other in READERS[1:]
        },
        **provenance(),
    }
    write_json(args.output, record)
    print(json.dumps(record, indent=1))
    for other, ratio in record["times_faster"].items():
        print(f"grouped is {ratio['wall']}x as fast as {other} ({ratio['cpu']}x by CPU time)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
