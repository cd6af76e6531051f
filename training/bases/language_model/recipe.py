"""What decides a run of the base language model; the keys of its YAML."""

from dataclasses import dataclass, field
from typing import Literal

from ...arguments import MAX_STEPS
from ...common.languages import LANGUAGES
from ...common.schema import Bounds, unknown_key
from .tokenizer import IMAGE_TOKEN, TURN_TOKENS

WHERE = "language model recipe"
TASKS = ("name", "yesno", "category", "keywords", "chat")
CONTEXTS = ("soft", "pivot", "other", "keywords", "both", "noisy")


# Numbers that are not just 0 or more.
NUMBERS = {
    "steps": Bounds(least=1, most=MAX_STEPS),
    "rows_per_step": Bounds(least=1),
    "context_slots": Bounds(least=1),
    "keyword_count": Bounds(least=1),
    "seed": Bounds(least=0, below=2**32),
    "learning_rate": Bounds(above=0),
    "muon_learning_rate": Bounds(above=0),
    "hold": Bounds(least=0, most=1),
    "ramp": Bounds(least=0, most=1),
}
WEIGHT = Bounds(least=0, most=1000)


@dataclass
class LanguageModelRecipe:
    """Everything that decides a run; `kind: language_model` in a YAML file."""

    # Data
    # Folder of a model that an earlier run saved, whose weights this run begins with; its tokenizer
    # must come out the same.
    start: str | None = None
    dataset: str | None = None  # folder of the mini dataset; None: the one that ships
    prompts: str | None = None  # JSON of question wordings per language and task; None: as above
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))  # BCP-47 codes to learn
    pivot: str = "en"  # the language that most contexts are written in

    # Tokenizer
    vocab_size: int = 6080  # control tokens + bytes + merges
    embedding_rows: int = 6144  # rows of the model, at least vocab_size + 30
    caption_weight: int = 5  # a name counts as this many keywords when merges are learned
    language_weights: dict[str, int] = field(default_factory=dict)  # times that; missing: 2

    # Model: the fields of CohereConfig
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    max_position_embeddings: int = 2048
    logit_scale: float = 1.0
    rope_theta: float = 10000.0
    initializer_range: float = 0.08
    output_initializer_scale: float = 0.3  # times the initial o_proj and down_proj

    # Contexts and tasks
    context_slots: int = 16  # vectors of a soft context: the image tokens of the mini Maya
    contexts: dict[str, float] = field(  # weights of the kinds
        default_factory=lambda: {
            "soft": 0.5,
            "pivot": 0.15,
            "other": 0.12,
            "keywords": 0.06,
            "both": 0.05,
            "noisy": 0.12,
        }
    )
    tasks: dict[str, float] = field(  # weights of the kinds
        default_factory=lambda: {
            "name": 0.5,
            "yesno": 0.3,
            "category": 0.08,
            "keywords": 0.05,
            "chat": 0.07,
        }
    )
    keyword_count: int = 5  # keywords in one answer
    keyword_loss: float = 0.3  # weight of a keyword token in the loss
    yesno_loss: float = 1.0  # weight of a yes or no
    code_loss: float = 0.5  # weight of reading the code of a stated name half way up
    # Weight of attending to a soft context just if what is stated of it is true.
    match_loss: float = 0.0
    soft_scale: float = 0.25  # RMS of a soft context's numbers
    # Upper ends of the uniform draws of what disturbs a soft context; noise in units of its size.
    soft_slot_noise: float = 1.5
    soft_shared_noise: float = 0.8
    soft_mixture: float = 0.4
    soft_dropout: float = 0.7

    # Optimisation
    steps: int = 4000
    rows_per_step: int = 16
    row_tokens: int = 160
    learning_rate: float = 3e-3  # AdamW, for embeddings and norms
    muon_learning_rate: float = 0.01  # for matrices
    weight_decay: float = 0.01
    warmup_steps: int = 100
    hold: float = 0.4  # part of the steps after which the rates fall linearly to zero
    # Part of the steps over which the disturbance of soft contexts, the weight of yes/no and the share
    # of confusable names in it grow from a quarter to all: the names of contexts have to be known
    # before names can be compared with contexts.
    ramp: float = 0.5
    checkpoint_every: int = 500
    evaluate_concepts: int | None = None  # concepts that are scored at the end; None: all
    storage_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                NUMBERS.get(name, Bounds(least=0)).check(value, WHERE, name)
        for name, weight in self.language_weights.items():
            WEIGHT.check(weight, WHERE, f"language_weights.{name}")
        if self.pivot not in self.languages:
            raise ValueError(
                f"{WHERE}: pivot: expected one of languages, {', '.join(self.languages)}, found "
                f"{self.pivot!r}"
            )
        for name, known, given in (
            ("contexts", CONTEXTS, self.contexts),
            ("tasks", TASKS, self.tasks),
        ):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ValueError(
                    f"{WHERE}: {unknown_key(f'{name}.{unknown[0]}', unknown[0], known)}"
                )
            if not given or min(given.values()) < 0 or sum(given.values()) <= 0:
                raise ValueError(
                    f"{WHERE}: {name}: expected weights of 0 or more that are not all 0, found {given}"
                )
        needed = self.vocab_size + len(TURN_TOKENS) + 1
        if self.embedding_rows < needed:
            raise ValueError(
                f"{WHERE}: embedding_rows: expected at least {needed}, vocab_size and "
                f"{len(TURN_TOKENS)} turn tokens and {IMAGE_TOKEN}, found {self.embedding_rows}"
            )
        if self.match_loss and self.num_hidden_layers < 2:
            raise ValueError(
                f"{WHERE}: num_hidden_layers: expected at least 2 layers, as match_loss reads the "
                f"attention half way up, found {self.num_hidden_layers}: raise it, or set match_loss to 0"
            )
