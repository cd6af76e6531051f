"""The toxicity step of a build: write the inputs of each judge.

For each judge, each distinct image, or each distinct text of a language that it reads, is written once. A later
run writes new inputs to new units, so that nothing is judged twice. Inputs whose request failed for good are
judged again only on demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ...common.files import sha256_file, sha256_text, write_parquet
from ...rows.parquet import Row, check_columns, read_rows
from ..engine.storage import ShaTable
from ..engine.unit_files import UnitManifest, manifest_path
from ..sources.pictures import Pictures
from ..translation.worker import check_translated
from .plan import JudgePlan, ToxicityPlan
from .verdicts import JudgeWorker, image_sha, text_of

_INPUT = ("id", "lang", "text", "image", "image_sha256", "input_sha256")
INPUT_SCHEMA = pa.schema([(name, pa.string()) for name in _INPUT])
IMAGES, RATIONALES = "images", "rationales"
_ROW_COLUMNS = ["id", "lang", "text", "turns", "image", "image_sha256"]


class ToxicityStep:
    """The step in the folder of one build.

    Args:
        plan: judges and policy.
        folder: folder of the build, with `source/` and `translate/<lang>/`.
        source_language: language of the sources.
        languages: target languages of the translation.
        images: folder or zip of the source's images; None if no judge reads images.
        also: further languages of source rows, compared with the plan when the step begins.
        unit_rows: inputs per unit.
        run_id: hash that is stored with every verdict.

    Raises:
        ValueError: as in `ToxicityPlan.check`, or an image judge has no images.
    """

    def __init__(
        self,
        plan: ToxicityPlan,
        folder: Path,
        *,
        source_language: str,
        languages: Sequence[str],
        images: Path | None,
        also: Sequence[str] = (),
        unit_rows: int = 2000,
        run_id: str = "",
    ) -> None:
        self.plan, self.folder = plan, folder
        self.source_language, self.targets = source_language, list(languages)
        self.languages = list(dict.fromkeys([source_language, *languages, *also]))
        self.images, self.unit_rows, self.run_id = images, unit_rows, run_id
        plan.check(self.languages, complete=False)
        for judge in plan.judges:
            if judge.stage == "image" and images is None:
                raise ValueError(
                    f"toxicity: judge {judge.name!r}: expected images in the source, found none: set "
                    "source.images to their folder or zip, or remove this judge"
                )

    @property
    def root(self) -> Path:
        return self.folder / "toxicity"

    def rounds(self, retry_failed: bool = False) -> Iterator[dict[str, list[tuple[Path, Path]]]]:
        """Yield {worker: its (source, target) units}; a round needs the verdicts of the previous round.

        Args:
            retry_failed: judge inputs again whose last verdict is a failure, in further units.
        """
        self.plan.check(self.languages)
        check_translated(self.folder, self.targets)
        first = [judge for judge in self.plan.judges if judge.stage != "rationale"]
        for judges in (first, [j for j in self.plan.judges if j.stage == "rationale"]):
            units: dict[str, list[tuple[Path, Path]]] = {}
            for judge in judges:
                for part in self.parts(judge):
                    self._prepare(judge, part, retry_failed)
                    units[f"toxicity/{judge.name}/{part}"] = self.units(judge, part)
            if units:
                yield units

    def parts(self, judge: JudgePlan) -> list[str]:
        """Return the subfolders of a judge: its languages, "images" or "rationales"."""
        if judge.stage == "text":
            return judge.reading(self.languages)
        return [IMAGES if judge.stage == "image" else RATIONALES]

    def units(self, judge: JudgePlan, part: str) -> list[tuple[Path, Path]]:
        """Return the (inputs, verdicts) files in a judge's subfolder, in order."""
        inputs = sorted((self.root / "inputs" / str(judge.name) / part).glob("*.parquet"))
        return [(path, self.root / str(judge.name) / part / path.name) for path in inputs]

    def worker(self, name: str, trust_remote_code: bool = False) -> JudgeWorker:
        """Return the worker "toxicity/<judge>/<part>"; its model loads when there is work."""
        _, judge_name, part = name.split("/")
        judge = self.plan.judge(judge_name)
        assert judge.stage is not None
        return JudgeWorker(
            judge.make(trust_remote_code),
            name=name,
            judge_name=judge_name,
            stage=judge.stage,
            run_id=self.run_id,
            pictures=Pictures(self.images, follow_links=True)
            if part == IMAGES and self.images
            else None,
        )

    def places(self) -> list[Path]:
        """Return the folders with rows: the source's, and one per target language."""
        return [self.folder / "source", *(self.folder / "translate" / x for x in self.targets)]

    def rows_in(self, place: Path) -> Iterator[Row]:
        """Yield the rows of a folder's units, in order, with the columns that judges need.

        Raises:
            ValueError: the step does not know the language of a row.
        """
        for path in sorted(place.glob("*.parquet")):
            for row in read_rows(path, _ROW_COLUMNS):
                if row["lang"] not in self.languages:
                    raise ValueError(
                        f"{place}: row {row['id']!r}: lang: expected one of {', '.join(self.languages)}, "
                        f"found {row['lang']!r}"
                    )
                yield row

    def _prepare(self, judge: JudgePlan, part: str, retry_failed: bool) -> None:
        """Write inputs that are new to the judge, as further units."""
        failed = self._failed(judge, part) if retry_failed else set()
        with ShaTable() as known:
            for source, target in self.units(judge, part):
                check_columns(source, {name: pa.string() for name in INPUT_SCHEMA.names})
                judged = UnitManifest.read(manifest_path(target))
                if judged is not None and judged.source_sha256 != sha256_file(source):
                    raise ValueError(
                        f"{source}: changed after {judge.name!r} judged it: delete {source.parent} and "
                        f"{target.parent}, and run the step toxicity again"
                    )
                for row in read_rows(source, ["input_sha256"]):
                    if row["input_sha256"] not in failed:
                        known.add(row["input_sha256"])
            fresh = (row for row in self._inputs(judge, part) if known.add(row["input_sha256"]))
            self._write(judge, part, fresh)

    def _failed(self, judge: JudgePlan, part: str) -> set[str]:
        """Return the SHA-256 of inputs whose last verdict is a failure."""
        failed: set[str] = set()
        for _, target in self.units(judge, part):
            if target.is_file():
                check_columns(target, {"input_sha256": pa.string(), "error": pa.string()})
                for row in read_rows(target, ["input_sha256", "error"]):
                    (failed.discard if row["error"] is None else failed.add)(row["input_sha256"])
        return failed

    def _inputs(self, judge: JudgePlan, part: str) -> Iterator[Row]:
        """Yield rows of `INPUT_SCHEMA`; missing columns are null."""
        source = self.folder / "source"
        if judge.stage == "rationale":
            assert judge.reads is not None
            for verdict in self.verdicts(self.plan.judge(judge.reads)):
                if verdict["label"] == "unsafe" and verdict["rationale"]:
                    yield _text_input(verdict["id"], "", verdict["rationale"])
        elif judge.stage == "image":
            for row in self.rows_in(source):
                if row["image"] is not None:
                    named = {name: row[name] for name in ("id", "image", "image_sha256")}
                    yield {**named, "lang": "", "input_sha256": image_sha(row)}
        else:
            for place in (source, self.folder / "translate" / part):
                for row in self.rows_in(place):
                    text = text_of(row)
                    if text is not None and row["lang"] == part:
                        yield _text_input(row["id"], part, text)

    def _write(self, judge: JudgePlan, part: str, rows: Iterable[Row]) -> None:
        folder = self.root / "inputs" / str(judge.name) / part
        number = len(self.units(judge, part))
        batch: dict[tuple[str, str], Row] = {}

        def flush() -> None:
            nonlocal number
            table = pa.Table.from_pylist(list(batch.values()), schema=INPUT_SCHEMA)
            write_parquet(folder / f"{number:05d}.parquet", table)
            number += 1
            batch.clear()

        for row in rows:
            key = (row["id"], row["lang"])
            # A unit has each (id, lang) once; an id with two images continues in the next unit.
            if len(batch) == self.unit_rows or key in batch:
                flush()
            batch[key] = row
        if batch:
            flush()

    def verdicts(self, judge: JudgePlan) -> Iterator[Row]:
        """Yield all stored verdicts of a judge, in the order of the requests.

        Raises:
            ValueError: an input is not judged yet.
        """
        for part in self.parts(judge):
            for source, target in self.units(judge, part):
                if not target.is_file():
                    raise ValueError(
                        f"{source}: expected verdicts of {judge.name!r}, found none: run the step toxicity "
                        "of `maya data build` to its end"
                    )
                yield from read_rows(target)


def _text_input(id_: str, lang: str, text: str) -> Row:
    return {"id": id_, "lang": lang, "text": text, "input_sha256": sha256_text(text)}
