"""Section `toxicity` of a plan: judges, the inputs they read, and the policy.

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
# Kind of judge -> fields that it may have; below: fields that it must have.
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
    """One judge. Missing keys come from the preset.

    > Parameters for all judges

    preset: a name in `presets.yaml`.
    name: name of the judge in verdicts, folders and policies; default: the preset's name.
    kind: `classifier` (transformers text-classification), `guard` (a model that writes its verdict)
        or `function` (of an installed package).
    stage: what the judge reads: `image`, `text`, or `rationale` (written by the judge that `reads` names).
    languages: BCP-47 codes of languages that the judge is known to read; required for texts.
    only: languages of the plan that the judge reads; default: all. Each must be in `languages`.
    model, revision: a Hub repository and its commit, or a folder.

    > Parameters for classifiers

    toxic: labels that mean toxic, by name or index.
    activation: `softmax` or `sigmoid`.
    max_length: maximum tokens of an input, if the tokenizer does not define it.

    > Parameters for guards

    protocol: prompt and parser, a name in `protocols.py`.
    endpoint: the server of the model; by default the model runs in this process, with transformers.
    prompt: file with a text that replaces the protocol's prompt.
    max_tokens: maximum tokens of an answer.
    logprobs: request log probabilities from the endpoint, from which the score is computed; default: true.
    reads: for the stage `rationale`: the judge whose rationales are read.

    > Parameters for functions

    function: "package.module:name". Building the plan imports and calls it, which requires --allow-code.

    > Parameters for running

    batch_size: inputs per batch; for a guard only in this process.
    device, dtype: for transformers, for example cuda:0 and bfloat16.
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
                    f"preset: expected one of {', '.join(presets())}, found {self.preset!r}"
                )
            for key, value in presets()[self.preset].items():
                if getattr(self, key) is None:
                    setattr(self, key, value)
            self.name = self.name or self.preset
        if self.name is None or not _NAME.fullmatch(self.name):
            raise ValueError(
                "name: expected lower-case letters, digits and . _ - (it names a folder), "
                f"found {self.name!r}"
            )
        if self.name in ("inputs", "audit"):
            raise ValueError(
                f"name: expected another name than the step's own folders, found {self.name!r}"
            )
        for key in ("languages", "only"):
            for lang in getattr(self, key) or ():
                check_language(lang, f"judge {self.name!r}: {key}")
        self._need("kind", "stage")
        assert self.kind is not None
        for item in dataclasses.fields(self):
            if getattr(self, item.name) is not None and item.name not in _FIELDS[self.kind]:
                raise ValueError(
                    f"judge {self.name!r}: {item.name}: expected no such key for a {self.kind}"
                )
        self._need(*_NEEDED[self.kind])
        if self.kind == "classifier" and self.stage != "text":
            raise ValueError(f"judge {self.name!r}: stage: expected text for a classifier")
        if self.kind == "function" and self.stage == "rationale":
            raise ValueError(f"judge {self.name!r}: stage: expected text or image for a function")
        if self.protocol is not None:
            if self.protocol not in PROTOCOLS:
                raise ValueError(
                    f"judge {self.name!r}: protocol {self.protocol!r}: expected one of "
                    + ", ".join(PROTOCOLS)
                )
            if self.stage != (stage := PROTOCOLS[self.protocol].stage):
                raise ValueError(
                    f"judge {self.name!r}: stage: expected {stage} for {self.protocol}, found {self.stage!r}"
                )
            if self.endpoint is None:
                self._need("model")
        if self.stage == "text":
            self._need("languages")
        elif self.only is not None or self.languages is not None:
            raise ValueError(f"judge {self.name!r}: languages, only: expected a judge of texts")
        if (self.reads is not None) != (self.stage == "rationale"):
            raise ValueError(
                f"judge {self.name!r}: reads: expected it for the stage rationale and for no other; it "
                "names the judge whose rationales are read"
            )

    def _need(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(
                    f"judge {self.name!r}: {name}: expected a value, found none"
                    + ("" if self.preset else ": set it, or use a preset")
                )

    def reading(self, languages: Sequence[str], complete: bool = True) -> list[str]:
        """Return the languages that the judge reads.

        Args:
            languages: languages of the texts.
            complete: whether `languages` is complete; if so, `only` may name no others.

        Raises:
            ValueError: names languages that the judge should read but does not know.
        """
        if self.stage != "text":
            return []
        assert self.languages is not None
        wanted = [lang for lang in languages if self.only is None or lang in self.only]
        if complete and (unknown := sorted(set(self.only or ()) - set(languages))):
            raise ValueError(
                f"toxicity: judge {self.name!r}: only: expected languages of the plan "
                f"({', '.join(languages)}), found {', '.join(unknown)}"
            )
        # Ignore scripts and regions: a judge that knows zh knows zh-Hans.
        known = {*self.languages}
        unread = [lang for lang in wanted if not {lang, lang.split("-")[0]} & known]
        if unread:
            rest = [lang for lang in wanted if lang not in unread]
            raise ValueError(
                f"toxicity: judge {self.name!r}: expected languages that it reads "
                f"({', '.join(self.languages)}), found {', '.join(unread)}: add a judge for these, and give "
                f"this one `only: [{', '.join(rest)}]`"
            )
        return wanted

    def make(self, trust_remote_code: bool = False) -> Judge:
        """Return the judge; entering it loads the model."""
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
    """Section `toxicity` of a plan.

    judges: the judges.
    policy: a policy file, or a shipped policy: `default` or `paper`.
    unjudged: languages whose texts no judge reads, listed to confirm this: the image and the source text
        alone decide their rows, as in the papers.
    """

    judges: list[JudgePlan]
    policy: str = "default"
    unjudged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for lang in self.unjudged:
            check_language(lang, "toxicity: unjudged")
        if not self.judges:
            raise ValueError("toxicity: judges: expected at least one, found none")
        names = [judge.name for judge in self.judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"toxicity: judges: expected different names, found {name!r} twice: set a `name`"
                )
        for judge in self.judges:
            if judge.reads is not None and judge.reads not in names:
                raise ValueError(
                    f"toxicity: judge {judge.name!r}: reads: expected one of {', '.join(map(str, names))}, "
                    f"found {judge.reads!r}"
                )

    def judge(self, name: str) -> JudgePlan:
        return next(judge for judge in self.judges if judge.name == name)

    def check(self, languages: Sequence[str], complete: bool = True) -> Policy:
        """Check that judges, languages and policy agree, and return the policy.

        Args:
            languages: languages of the texts: source and targets.
            complete: whether `languages` is complete; the source may bring more before it is read.

        Raises:
            ValueError: a judge does not know a language that it should read, no judge reads a language
                that `unjudged` does not list, or the policy does not fit the judges.
        """
        read = {lang for judge in self.judges for lang in judge.reading(languages, complete)}
        silent = [lang for lang in languages if lang not in read and lang not in self.unjudged]
        if silent:
            raise ValueError(
                f"toxicity: expected a judge for every language, found none for {', '.join(silent)}: add "
                f"a judge, or confirm with `unjudged: [{', '.join(silent)}]`"
            )
        for lang in self.unjudged:
            if lang in read or (complete and lang not in languages):
                why = "a judge reads it" if lang in read else "the plan does not have it"
                raise ValueError(f"toxicity: unjudged: {lang}: {why}")
        policy = Policy.read(self.policy)
        self.check_policy(policy)
        return policy

    def check_policy(self, policy: Policy) -> None:
        """Raise ValueError if the policy does not fit the judges."""
        known = {judge.name for judge in self.judges} | set(presets())
        for name in policy.judges:
            if name not in known:
                raise ValueError(
                    f"policy {policy.name!r}: judges: expected a judge of the plan "
                    f"({', '.join(str(judge.name) for judge in self.judges)}) or a preset, found {name!r}"
                )
        confirmers = [self.confirmer(judge, policy) for judge in self.judges]
        used = {by.name for by in confirmers if by is not None}
        for judge in self.judges:
            if judge.stage == "rationale" and judge.name not in used:
                raise ValueError(
                    f"policy {policy.name!r}: expected a rule with confirmed_by {judge.name!r}, found none: "
                    f"the verdicts on rationales of {judge.reads!r} would have no effect"
                )

    def confirmer(self, judge: JudgePlan, policy: Policy) -> JudgePlan | None:
        """Return the rationale judge that must confirm this judge's drops by the policy, or None."""
        assert judge.name is not None
        wanted = policy.rule(judge.name, judge.preset).confirmed_by
        if wanted is None:
            return None
        for other in self.judges:
            if wanted in (other.name, other.preset) and other.reads == judge.name:
                return other
        raise ValueError(
            f"policy {policy.name!r}: {judge.name}: confirmed_by: expected a judge {wanted!r} that reads "
            f"the rationales of {judge.name!r}, found none: add one with `reads: {judge.name}`"
        )
