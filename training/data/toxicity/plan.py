"""The `toxicity` section of a dataset's plan: the judges, their inputs, and the policy.

toxicity:
  policy: default
  judges:
    - preset: textdetox-v2
    - preset: llavaguard-v1.2
      endpoint: {base_url: "http://127.0.0.1:8000", model: AIML-TUDA/LlavaGuard-v1.2-7B-OV}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...common.endpoint import EndpointPlan
from ...common.languages import check_language
from ...common.reading import read_text, read_yaml
from .classifiers import ClassifierJudge, FunctionJudge
from .guards import EndpointChat, GuardJudge, LocalChat
from .policy import Policy
from .protocols import PROTOCOLS
from .verdicts import Judge

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_COMMON = {"name", "preset", "kind", "stage", "revision", "batch_size"}
_TEXT = {"languages", "only"}
_LOCAL = {"model", "device", "dtype"}
# Fields that a judge of each kind may have, and those that it must have.
_FIELDS = {
    "classifier": {*_COMMON, *_TEXT, *_LOCAL, "toxic", "activation", "max_length"},
    "function": {*_COMMON, *_TEXT, "function"},
    "guard": {*_COMMON, *_TEXT, *_LOCAL, "protocol", "prompt", "max_tokens", "endpoint"}
    | {"logprobs", "reads"},
}
_NEEDED = {
    "classifier": ("model", "toxic", "activation"),
    "function": ("function",),
    "guard": ("protocol",),
}


@cache
def presets() -> dict[str, dict[str, Any]]:
    return read_yaml(Path(__file__).with_name("presets.yaml"))


@dataclass
class JudgePlan:
    """One judge. Keys that are not given come from the preset.

    > What it is

    preset: a name in `presets.yaml`.
    name: the judge's name in verdicts, folders and policies; the preset's by default.
    kind: `classifier` (transformers text-classification), `guard` (a model that writes its verdict)
        or `function` (of an installed package).
    stage: what it reads: `image`, `text`, or `rationale` (what the judge named in `reads` wrote).
    languages: BCP-47 codes of the languages it is known to read; needed for texts.
    only: of the plan's languages those it shall read; all by default. Each must be in `languages`.
    model, revision: a Hub repository and its commit, or a folder.

    > Classifiers

    toxic: labels that mean toxic, by name or index.
    activation: `softmax` or `sigmoid`.
    max_length: tokens that it takes, where its tokenizer does not say so.

    > Guards

    protocol: how it is asked and read: see `protocols.py`.
    endpoint: where it is served; without it, it runs in this process through transformers.
    prompt: a file whose text is used instead of the protocol's prompt.
    max_tokens: of an answer.
    logprobs: ask the endpoint for log probabilities, from which the score is read; true by default.
    reads: for rationales: the judge whose rationales it reads.

    > Functions

    function: "package.module:name". It is imported and called when the plan is built, which asks for
        --allow-code.

    > Running

    batch_size: inputs at once; of a guard only in this process.
    device, dtype: for transformers, such as cuda:0 and bfloat16.
    """

    preset: str | None = None
    name: str | None = None
    kind: Literal["classifier", "guard", "function"] | None = None
    stage: Literal["image", "text", "rationale"] | None = None
    languages: list[str] | None = None
    only: list[str] | None = None
    model: str | None = None
    revision: str | None = None
    toxic: list[int | str] | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    max_length: int | None = None
    protocol: str | None = None
    endpoint: EndpointPlan | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    logprobs: bool | None = None
    reads: str | None = None
    function: str | None = None
    batch_size: int | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            if self.preset not in presets():
                raise ValueError(
                    f"preset: unknown {self.preset!r}; there are {', '.join(presets())}"
                )
            for key, value in presets()[self.preset].items():
                if getattr(self, key) is None:
                    setattr(self, key, value)
            self.name = self.name or self.preset
        if self.name is None or not _NAME.fullmatch(self.name):
            raise ValueError(
                "name: expected small letters, digits and . _ - (it is the name of a folder), "
                f"found {self.name!r}"
            )
        if self.name in ("inputs", "audit"):
            raise ValueError(f"name: {self.name!r} is the name of a folder of the step itself")
        for key in ("languages", "only"):
            for lang in getattr(self, key) or ():
                check_language(lang, f"judge {self.name!r}: {key}")
        self._need("kind", "stage")
        assert self.kind is not None
        for item in dataclasses.fields(self):
            if getattr(self, item.name) is not None and item.name not in _FIELDS[self.kind]:
                raise ValueError(f"judge {self.name!r}: {item.name}: not for a {self.kind}")
        self._need(*_NEEDED[self.kind])
        if self.kind == "classifier" and self.stage != "text":
            raise ValueError(f"judge {self.name!r}: stage: a classifier reads text")
        if self.kind == "function" and self.stage == "rationale":
            raise ValueError(f"judge {self.name!r}: stage: a function reads text or images")
        if self.protocol is not None:
            if self.protocol not in PROTOCOLS:
                raise ValueError(
                    f"judge {self.name!r}: protocol: unknown {self.protocol!r}; there are "
                    + ", ".join(PROTOCOLS)
                )
            if self.stage != (stage := PROTOCOLS[self.protocol].stage):
                raise ValueError(
                    f"judge {self.name!r}: stage: {self.protocol} reads {stage}s, found {self.stage!r}"
                )
            if self.endpoint is None:
                self._need("model")
        if self.stage == "text":
            self._need("languages")
        elif self.only is not None or self.languages is not None:
            raise ValueError(f"judge {self.name!r}: languages, only: only for a judge of texts")
        if (self.reads is not None) != (self.stage == "rationale"):
            raise ValueError(
                f"judge {self.name!r}: reads: needed for the stage rationale, and only there; it "
                "names the judge whose rationales are read"
            )

    def _need(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(
                    f"judge {self.name!r}: {name}: missing"
                    + ("" if self.preset else "; a preset would bring it")
                )

    def reading(self, languages: Sequence[str], complete: bool = True) -> list[str]:
        """Return those of the languages that the judge reads.

        Args:
            complete: these are all; `only` may name no others.

        Raises ValueError, naming them, for languages that it shall read and does not know.
        """
        if self.stage != "text":
            return []
        assert self.languages is not None
        wanted = [lang for lang in languages if self.only is None or lang in self.only]
        if complete and (unknown := sorted(set(self.only or ()) - set(languages))):
            raise ValueError(
                f"toxicity: judge {self.name!r}: only: {', '.join(unknown)} not among the plan's "
                f"languages ({', '.join(languages)})"
            )
        # A script or region says nothing about whether the language is known: zh-Hans is zh.
        known = {*self.languages}
        unread = [lang for lang in wanted if not {lang, lang.split("-")[0]} & known]
        if unread:
            rest = [lang for lang in wanted if lang not in unread]
            raise ValueError(
                f"toxicity: judge {self.name!r} does not read {', '.join(unread)} (it reads "
                f"{', '.join(self.languages)}); add a judge that does, and give this one "
                f"`only: [{', '.join(rest)}]`"
            )
        return wanted

    def make(self, trust_remote_code: bool = False) -> Judge:
        """Return the judge; entering it loads its model."""
        batched: dict[str, Any] = {} if self.batch_size is None else {"batch_size": self.batch_size}
        if self.kind == "function":
            return FunctionJudge(
                str(self.function),
                stage="image" if self.stage == "image" else "text",
                revision=self.revision,
                **batched,
            )
        local: dict[str, Any] = {
            "revision": self.revision,
            "device": self.device,
            "dtype": self.dtype,
            "trust_remote_code": trust_remote_code,
        }
        if self.kind == "classifier":
            assert self.toxic
            assert self.activation
            return ClassifierJudge(
                model=str(self.model),
                toxic=self.toxic,
                activation=self.activation,
                max_length=self.max_length,
                **local,
                **batched,
            )
        chat: EndpointChat | LocalChat
        if self.endpoint is not None:
            chat = EndpointChat(self.endpoint, logprobs=self.logprobs is not False)
        else:
            chat = LocalChat(str(self.model), images=self.stage == "image", **local)
        return GuardJudge(
            PROTOCOLS[str(self.protocol)],
            chat,
            prompt=None if self.prompt is None else read_text(self.prompt).strip(),
            max_tokens=self.max_tokens,
            batch_size=self.batch_size or 8,
        )


@dataclass
class ToxicityPlan:
    """The `toxicity` section.

    policy: a policy file, or a shipped policy's name: `default` or `paper`.
    unjudged: languages whose texts no judge reads, said on purpose: their rows are decided by the
        image and the source text alone, as in the papers.
    """

    judges: list[JudgePlan]
    policy: str = "default"
    unjudged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for lang in self.unjudged:
            check_language(lang, "toxicity: unjudged")
        if not self.judges:
            raise ValueError("toxicity: judges: expected at least one")
        names = [judge.name for judge in self.judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"toxicity: judges: two have the name {name!r}; give one a `name`")
        for judge in self.judges:
            if judge.reads is not None and judge.reads not in names:
                raise ValueError(
                    f"toxicity: judge {judge.name!r}: reads: no judge is named {judge.reads!r}; "
                    f"there are {', '.join(map(str, names))}"
                )

    def judge(self, name: str) -> JudgePlan:
        return next(judge for judge in self.judges if judge.name == name)

    def check(self, languages: Sequence[str], complete: bool = True) -> Policy:
        """Check that judges, languages and policy fit each other, and return the policy.

        Args:
            languages: of the texts: the source's and the targets.
            complete: these are all of them; before the source is read it may have more.

        Raises:
            ValueError: a language that a judge shall read and does not, a language that no judge
                reads and `unjudged` does not name, or a policy that does not fit the judges.
        """
        read = {lang for judge in self.judges for lang in judge.reading(languages, complete)}
        silent = [lang for lang in languages if lang not in read and lang not in self.unjudged]
        if silent:
            raise ValueError(
                f"toxicity: no judge reads {', '.join(silent)}: their texts would pass unread; add "
                f"a judge, or say so with `unjudged: [{', '.join(silent)}]`"
            )
        for lang in self.unjudged:
            if lang in read or (complete and lang not in languages):
                why = "a judge reads it" if lang in read else "the plan has no such language"
                raise ValueError(f"toxicity: unjudged: {lang}: {why}")
        policy = Policy.read(self.policy)
        self.check_policy(policy)
        return policy

    def check_policy(self, policy: Policy) -> None:
        """Raise ValueError if the policy names unknown judges."""
        known = {judge.name for judge in self.judges} | set(presets())
        for name in policy.judges:
            if name not in known:
                raise ValueError(
                    f"policy {policy.name!r}: judges: {name!r} is neither a judge of the plan "
                    f"({', '.join(str(judge.name) for judge in self.judges)}) nor a preset"
                )
        confirmers = [self.confirmer(judge, policy) for judge in self.judges]
        used = {by.name for by in confirmers if by is not None}
        for judge in self.judges:
            if judge.stage == "rationale" and judge.name not in used:
                raise ValueError(
                    f"policy {policy.name!r}: nothing is confirmed_by {judge.name!r}, which reads "
                    f"the rationales of {judge.reads!r}: its verdicts would count for nothing"
                )

    def confirmer(self, judge: JudgePlan, policy: Policy) -> JudgePlan | None:
        """Return the rationale judge that must confirm this judge's drops, by the policy."""
        assert judge.name is not None
        wanted = policy.rule(judge.name, judge.preset).confirmed_by
        if wanted is None:
            return None
        for other in self.judges:
            if wanted in (other.name, other.preset) and other.reads == judge.name:
                return other
        raise ValueError(
            f"policy {policy.name!r}: {judge.name}: confirmed_by: no judge {wanted!r} of the plan "
            f"reads the rationales of {judge.name!r}; add one with `reads: {judge.name}`"
        )
