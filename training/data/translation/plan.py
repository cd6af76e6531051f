"""Section `translator` of a plan: the model, its prompts, and presets of known models."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...common.endpoint import EndpointPlan, check_parameters, merge_parameters
from ...common.languages import check_language
from ...common.schema import Bounds, build, read_mapping
from .prompts import Brackets, Prompt, read_prompt, translategemma_prompt

PRESETS = Path(__file__).parent / "presets"


@dataclass
class LocalPlan:
    """A model that runs in this process, with transformers.

    model: Hub repository or folder; default: the preset's.
    revision: commit on the Hub; stored with every answer.
    kind: architecture; None takes it from the model's config.
    dtype, device: for example bfloat16, cuda; None means float32 on a CPU, the stored dtype on a GPU.
    batch_size: texts per batch.
    codes: BCP-47 code -> the model's language code; empty for a model of one direction.
    language_token: first token of an answer in a language.
    """

    model: str = ""
    revision: str | None = None
    kind: Literal["seq2seq", "causal"] | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 16
    codes: dict[str, str] = field(default_factory=dict)
    language_token: str = "{code}"

    def __post_init__(self) -> None:
        Bounds(least=1).check(self.batch_size, "translator.local", "batch_size")


@dataclass
class Preset:
    """Facts about a model, from `presets/NAME.yaml`.

    model: repository on the Hub.
    prompt: "none" for models that take the bare text.
    languages: languages that the model knows; None if `codes` lists them.
    brackets: two characters around the model's answers, or none.
    parameters, codes, language_token: as in the plan.
    licence, licence_note: licence of texts made with the model, for the card.
    """

    model: str
    prompt: Literal["preamble", "translategemma", "none"]
    brackets: str
    parameters: dict[str, Any]
    licence: str
    licence_note: str
    languages: list[str] | None = None
    codes: dict[str, str] = field(default_factory=dict)
    language_token: str = "{code}"


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """Read a shipped preset, or a preset from a YAML file; raise ValueError if `name` is neither."""
    path = PRESETS / f"{name}.yaml" if name in presets() else Path(name)
    if not path.is_file():
        raise ValueError(
            f"preset: expected a file or one of {', '.join(presets())}, found {name!r}"
        )
    return build(Preset, read_mapping(path), str(path))


@dataclass
class TranslatorPlan:
    """The translator and its settings.

    > Parameters for the model

    preset: name of a shipped preset (aya-23-35b, aya-expanse-32b, translategemma, nllb-200-600m,
        m2m100-418m) or a file of the same form. It replaces the default values below.
    endpoint: an OpenAI-compatible server; `local`: a model in this process. Set exactly one.
    languages: languages that the model knows; others are an error. None: unknown.
    per_language: language -> another translator, for example for languages that the model does not know.

    > Parameters for requests

    prompt: "preamble"; "translategemma" for that model's message; "none" for the bare text.
    preamble: a shipped preamble (rules, rules_only, native, brief, bare) or a text file.
    second_preamble: preamble for retries; default: the same.
    preamble_parts: files for languages without a shipped one: {sw: ./sw.yaml}.
    brackets: two characters that the model must put around the answer, so that comments outside them
        are removed; "" for none.
    parameters: parameters of a request, with their OpenAI names. Default: greedy decoding. Parameters of
        a particular server go below `extra_body`: {extra_body: {its_name: 1}}.

    > Parameters for retries

    retries: maximum number of retries for an answer with a hard flag.
    retry_parameters: parameters that retries change.
    seed: seed of the first request; each retry adds one. None sends no seed.
    """

    preset: str | None = None
    endpoint: EndpointPlan | None = None
    local: LocalPlan | None = None
    languages: list[str] | None = None
    per_language: dict[str, "TranslatorPlan"] = field(default_factory=dict)

    prompt: Literal["preamble", "translategemma", "none"] | None = None
    preamble: str = "rules"
    second_preamble: str | None = None
    preamble_parts: dict[str, str] = field(default_factory=dict)
    brackets: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    retries: int = 2
    retry_parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.3})
    seed: int | None = 0

    def __post_init__(self) -> None:
        if (self.endpoint is None) == (self.local is None):
            raise ValueError(
                "translator: expected one of endpoint and local, found "
                + ("both" if self.endpoint else "neither")
            )
        Bounds(least=0).check(self.retries, "translator", "retries")
        if self.preset is not None:
            self._fill_in(read_preset(self.preset))
        if self.prompt is None:
            self.prompt = "preamble"
        if self.brackets is None:
            self.brackets = "〘〙" if self.prompt == "preamble" else ""
        if len(self.brackets) not in (0, 2) or len(set(self.brackets)) != len(self.brackets):
            raise ValueError(
                f"translator: brackets: expected two characters or none, found {self.brackets!r}"
            )
        for key in ("parameters", "retry_parameters") if self.endpoint is not None else ():
            check_parameters(getattr(self, key), f"translator: {key}")
        for key in ("languages", "per_language", "preamble_parts"):
            for lang in getattr(self, key) or ():
                check_language(lang, f"translator: {key}")
        self.parameters = {"temperature": 0.0, "max_tokens": 2048, **self.parameters}
        if not self.model:
            place = "endpoint" if self.endpoint else "local"
            raise ValueError(
                f"translator: {place}.model: expected a model or a preset, found neither"
            )
        if self.endpoint is not None and self.prompt == "none":
            raise ValueError(
                'translator: prompt: expected a local model for "none", found an endpoint'
            )

    def _fill_in(self, preset: Preset) -> None:
        self.languages = self.languages or preset.languages or list(preset.codes)
        self.prompt = self.prompt or preset.prompt
        self.brackets = preset.brackets if self.brackets is None else self.brackets
        self.parameters = merge_parameters(preset.parameters, self.parameters)
        if self.endpoint is not None:
            self.endpoint = replace(self.endpoint, model=self.endpoint.model or preset.model)
        if self.local is not None:
            own = self.local.codes
            self.local = replace(
                self.local,
                model=self.local.model or preset.model,
                codes=own or preset.codes,
                language_token=self.local.language_token if own else preset.language_token,
            )

    @property
    def model(self) -> str:
        return self.endpoint.model if self.endpoint else self.local.model if self.local else ""

    @property
    def model_revision(self) -> str | None:
        if self.endpoint:
            return self.endpoint.model_revision
        return self.local.revision if self.local else None

    def for_language(self, lang: str) -> "TranslatorPlan":
        return self.per_language.get(lang, self)

    def check_languages(self, source: str, targets: Sequence[str]) -> None:
        """Raise ValueError that names the languages that a model does not know."""
        for lang in targets:
            plan = self.for_language(lang)
            if plan.languages is None:
                continue
            known = {code.split("-")[0] for code in plan.languages}
            missing = [code for code in (source, lang) if code.split("-")[0] not in known]
            if missing:
                raise ValueError(
                    f"translator: {plan.preset or plan.model} does not know {', '.join(missing)}; "
                    f"its languages: {', '.join(plan.languages)}. Remove it, or set another translator "
                    f"in per_language: {{{missing[0]}: ...}}"
                )

    def prompts(self, source: str, target: str) -> list[Prompt | None]:
        """Return the prompt of the first try and the prompt of retries."""
        if self.prompt == "none":
            return [None, None]
        if self.prompt == "translategemma":
            return [translategemma_prompt(source, target)] * 2
        assert self.brackets is not None
        pair: Brackets | None = (self.brackets[0], self.brackets[1]) if self.brackets else None
        return [
            read_prompt(name, source, target, pair, self.preamble_parts)
            for name in (self.preamble, self.second_preamble or self.preamble)
        ]
