"""The plan of a dataset: one YAML file that describes a whole build, with every key checked.

plan = load_plan(Path("captions.yaml"), ["languages=[fr, hi]"])
worker = make_worker(plan, "translate/fr")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..common.files import write_bytes
from ..common.languages import check_language
from ..common.names import check_component
from ..common.schema import build, digest, read_mapping, resolve_paths, to_dict
from ..common.telling import one_line
from .checks.identify import Identifier
from .checks.plan import CheckPlan
from .checks.rules import RowChecker
from .dataset.plan import LayoutPlan, licence_of
from .engine.executors import ExecutorPlan
from .engine.units import Worker
from .sources.plan import SourcePlan, plan_for_hash
from .sources.step import finished_sources
from .toxicity.plan import ToxicityPlan
from .translation.plan import TranslatorPlan
from .verification.plan import VerificationPlan

if TYPE_CHECKING:
    from .toxicity.step import ToxicityStep
    from .verification.step import VerificationStep


@dataclass
class Plan:
    """The plan of a dataset build.

    name: name of the dataset.
    output_dir: folder of the build. The same plan continues a build in this folder.
    source: images and texts.
    languages: target languages of the translation, as BCP-47 codes.
    unit_rows: rows per unit file. A unit is the smallest piece of work that is resumed. Changing the
        number restarts the build.
    translator, verification, toxicity: settings of these steps; a step without a section is skipped.
        The translator retries a text that fails the checks of `verification`.
    layout: format and licence of the dataset's folder.
    executor: where the steps run.

    A plan may name code: a judge's `function`, `verification.quality.command`, and the
    `executor.options` that Slurm's shell reads. Loading a plan runs none of it. Building runs it, and
    requires `--allow-code`, so that nobody runs a stranger's plan unread.
    """

    name: str
    output_dir: str
    source: SourcePlan
    languages: list[str] = field(default_factory=list)
    unit_rows: int = 2000
    translator: TranslatorPlan | None = None
    verification: VerificationPlan | None = None
    toxicity: ToxicityPlan | None = None
    layout: LayoutPlan = field(default_factory=LayoutPlan)
    executor: ExecutorPlan = field(default_factory=ExecutorPlan)

    def __post_init__(self) -> None:
        check_component(self.name, "name")
        for place, lang in self._named_languages().items():
            check_language(lang, place)
        if self.unit_rows < 1:
            raise ValueError(f"unit_rows: expected at least 1, found {self.unit_rows}")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(
                f"languages: expected each once, found a repeated one in {self.languages}"
            )
        if self.source_language in self.languages:
            raise ValueError(
                f"languages: expected target languages only, found the source language "
                f"{self.source_language!r}: remove it"
            )
        if self.languages and self.translator is None:
            raise ValueError("languages: expected a translator section, found none: add one")
        if self.translator is not None:
            self.translator.check_languages(self.source_language, self.languages)
        if self.verification is not None and self.translator is None:
            raise ValueError("verification: expected a translator section, found none: add one")
        if self.translator is not None:
            if not self.languages:
                raise ValueError("translator: expected languages to translate into, found none")
            self._check_identified()
        if self.layout.images == "bytes" and not (self.source.images or self.source.extract_images):
            raise ValueError(
                "layout.images: bytes: expected a place of pictures, found none: set source.images, or "
                "source.extract_images for rows that contain them"
            )
        licence_of(self.translator, self.layout)
        if self.toxicity is not None:
            toxicity_step(self)  # checks that judges, languages and policy agree

    def _named_languages(self) -> dict[str, str]:
        """Return {key of the plan: language}."""
        places = {f"languages[{number}]": lang for number, lang in enumerate(self.languages)}
        return {"source.language": self.source_language, **places}

    def _check_identified(self) -> None:
        """Raise ValueError for a language whose translations cannot be checked."""
        checks = self.verification.checks if self.verification is not None else CheckPlan()
        for place, lang in self._named_languages().items():
            try:
                Identifier([lang], scripts=checks.scripts)
            except ValueError as error:
                raise ValueError(f"{place}: {error}; or remove the language") from None
        RowChecker(
            self.source_language, self.languages, checks
        )  # can the identifier tell them apart?

    def check_code(self) -> None:
        """Raise ValueError, naming the key, if the plan names code that a build would run."""
        found = {f"executor.options.{name}": told for name, told in self.executor.shell().items()}
        if self.verification is not None and self.verification.quality is not None:
            found["verification.quality.command"] = " ".join(self.verification.quality.command)
        for number, judge in enumerate(self.toxicity.judges if self.toxicity is not None else ()):
            if judge.function is not None:
                found[f"toxicity.judges[{number}].function"] = judge.function
        for place, told in found.items():
            raise ValueError(
                f"{place}: expected a plan that runs no code, found {one_line(told, 100)!r}: "
                "read the code, and pass --allow-code to allow it"
            )

    @property
    def folder(self) -> Path:
        """Return the folder of the build."""
        return Path(self.output_dir)

    @property
    def source_language(self) -> str:
        """Return the language from which texts are translated."""
        named = self.source.language
        return "en" if named in (None, "detect") else str(named)

    @property
    def images(self) -> Path | None:
        """Return the place of the pictures that rows name; None if there is none."""
        if self.source.extract_images:
            return self.folder / "images"
        return self.source.pictures()

    @property
    def run_id(self) -> str:
        """Return the hash of the whole plan, which is stored with every row."""
        return digest(plan_for_hash(self))


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read and check a plan.

    Args:
        path: file of the plan.
        overrides: `a.b=value` settings that replace values of the plan.

    Raises:
        ValueError: a value is wrong; one line that names file and key.
    """
    data = read_mapping(path, overrides)
    resolved = resolve_paths(data, path.resolve().parent)
    return build(Plan, resolved, str(path))


def plan_of(folder: Path) -> Plan:
    """Return the plan of a build.

    Raises:
        ValueError: the folder is not a build.
    """
    if not (folder / "plan.yaml").is_file():
        raise ValueError(
            f"{folder}: expected the output_dir of `maya data build`, found no plan.yaml"
        )
    return load_plan(folder / "plan.yaml")


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan with all defaults; `load_plan` reads it from the same working directory."""
    text = yaml.safe_dump(to_dict(plan), sort_keys=False, allow_unicode=True, width=100)
    head = "# The plan of this build, with every default written out (maya data build).\n"
    write_bytes(path, (head + text).encode())


def make_worker(plan: Plan, name: str, trust_remote_code: bool = False) -> Worker:
    """Return the worker of a step, for example "translate/fr"; its model loads when there is work.

    Args:
        plan: the plan.
        name: name of the worker.
        trust_remote_code: allow a model to run its own code.

    Raises:
        ValueError: the plan has no section for the step.
    """
    step, _, rest = name.partition("/")
    if step == "translate" and plan.translator is not None:
        from .translation.worker import TranslateWorker

        return TranslateWorker(
            plan.translator,
            rest,
            source_language=plan.source_language,
            languages=plan.languages,
            checks=plan.verification.checks if plan.verification else None,
            run_id=plan.run_id,
            trust_remote_code=trust_remote_code,
        )
    if step in ("verify", "back_translation") and plan.verification is not None:
        return verification_step(plan).worker(name)
    if step == "toxicity" and plan.toxicity is not None:
        return toxicity_step(plan).worker(name, trust_remote_code)
    raise ValueError(f"{name}: expected a section of the plan for this step, found none")


def verification_step(plan: Plan) -> VerificationStep:
    """Return the verification step of the build's folder."""
    from .verification.step import VerificationStep

    assert plan.verification is not None
    return VerificationStep(
        plan.verification,
        plan.folder,
        source_language=plan.source_language,
        languages=plan.languages,
        workers=plan.executor.workers if plan.executor.kind == "local" else 1,
        run_id=plan.run_id,
    )


def toxicity_step(plan: Plan, also: Sequence[str] = ()) -> ToxicityStep:
    """Return the toxicity step of the build's folder.

    Args:
        plan: the plan.
        also: further languages of source rows, which are not translated.
    """
    from .toxicity.step import ToxicityStep

    assert plan.toxicity is not None
    return ToxicityStep(
        plan.toxicity,
        plan.folder,
        source_language=plan.source_language,
        languages=plan.languages,
        images=plan.images,
        also=also,
        unit_rows=plan.unit_rows,
        run_id=plan.run_id,
    )


def toxicity_step_of_build(plan: Plan) -> ToxicityStep:
    """Return the toxicity step of a build, for all languages of its source rows.

    Raises:
        ValueError: the source units are not finished.
    """
    languages = finished_sources(plan.folder / "source")["languages"]
    return toxicity_step(plan, sorted(set(languages) - {plan.source_language}))
