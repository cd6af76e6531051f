"""The recipe of the base language model: the keys of its YAML and their limits."""

from dataclasses import dataclass, field
from typing import Literal

from ...arguments import MAX_STEPS
from ...common.languages import LANGUAGES
from ...common.schema import Bounds, unknown_key
from .tokenizer import IMAGE_TOKEN, TURN_TOKENS

WHERE = "language model recipe"
TASKS = ("name", "yesno", "category", "keywords", "chat")
CONTEXTS = ("soft", "pivot", "other", "keywords", "both", "noisy")


# Keys with other limits than "0 or more".
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
    """All settings of a run; `kind: language_model` in a YAML file."""

    # Data
    # Folder of a model saved by an earlier run, whose weights this run starts from. Both runs must
    # produce the same tokenizer.
    start: str | None = None
    dataset: str | None = None  # folder of the mini dataset; None: the one in the package
    prompts: str | None = None  # JSON of question wordings per language and task; None: likewise
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))  # BCP-47 codes to learn
    pivot: str = "en"  # language of most contexts

    # Tokenizer
    vocab_size: int = 6080  # control tokens, bytes and merges together
    embedding_rows: int = 6144  # embedding rows of the model, at least vocab_size + 30
    caption_weight: int = 5  # weight of a name, relative to a keyword, when merges are learned
    language_weights: dict[str, int] = field(default_factory=dict)  # factor per language; default 2

    # Model: fields of CohereConfig
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    max_position_embeddings: int = 2048
    logit_scale: float = 1.0
    rope_theta: float = 10000.0
    initializer_range: float = 0.08
    output_initializer_scale: float = 0.3  # factor on the initial o_proj and down_proj

    # Contexts and tasks
    context_slots: int = 16  # vectors in a soft context, as many as the mini Maya's image tokens
    contexts: dict[str, float] = field(  # weights of the kinds of contexts
        default_factory=lambda: {
            "soft": 0.5,
            "pivot": 0.15,
            "other": 0.12,
            "keywords": 0.06,
            "both": 0.05,
            "noisy": 0.12,
        }
    )
    tasks: dict[str, float] = field(  # weights of the kinds of questions
        default_factory=lambda: {
            "name": 0.5,
            "yesno": 0.3,
            "category": 0.08,
            "keywords": 0.05,
            "chat": 0.07,
        }
    )
    keyword_count: int = 5  # keywords in one answer
    keyword_loss: float = 0.3  # loss weight of a keyword token
    yesno_loss: float = 1.0  # loss weight of a yes or no
    code_loss: float = 0.5  # weight of the loss on reading a stated name's code in the middle layer
    # Weight of the loss on attending to a soft context exactly if the statement about it is true.
    match_loss: float = 0.0
    soft_scale: float = 0.25  # RMS of a soft context's numbers
    # Upper ends of uniform draws that disturb a soft context; noise in units of the context's RMS.
    soft_slot_noise: float = 1.5
    soft_shared_noise: float = 0.8
    soft_mixture: float = 0.4
    soft_dropout: float = 0.7

    # Optimization
    steps: int = 4000
    rows_per_step: int = 16  # contexts per step
    row_tokens: int = 160  # most tokens of a row
    learning_rate: float = 3e-3  # AdamW, for embeddings and norms
    muon_learning_rate: float = 0.01  # Muon, for matrices
    weight_decay: float = 0.01
    warmup_steps: int = 100
    hold: float = 0.4  # share of the steps after which the rates fall linearly to zero
    # Share of the steps over which three things grow from a quarter to full: the disturbance of soft
    # contexts, the weight of yes/no, and the share of confusable names in it. The model must know the
    # names of contexts before it can compare names with contexts.
    ramp: float = 0.5
    checkpoint_every: int = 500  # steps
    evaluate_concepts: int | None = None  # number of concepts to score at the end; None: all
    storage_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the saved weights
    seed: int = 0

    @property
    def soft_contexts(self) -> bool:
        """Whether some contexts are vectors; otherwise the model is trained and scored on text only."""
        return self.contexts.get("soft", 0) > 0

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
                    f"{WHERE}: {name}: expected weights of 0 or more, not all 0, found {given}"
                )
        needed = self.vocab_size + len(TURN_TOKENS) + 1
        if self.embedding_rows < needed:
            raise ValueError(
                f"{WHERE}: embedding_rows: expected at least {needed}, vocab_size and "
                f"{len(TURN_TOKENS)} turn tokens and {IMAGE_TOKEN}, found {self.embedding_rows}"
            )
        if self.match_loss and not self.soft_contexts:
            raise ValueError(
                f"{WHERE}: match_loss: expected 0 without soft contexts, because statements about these are all "
                f"that it compares, found {self.match_loss:g}: set it to 0, or give contexts.soft a weight"
            )
        if self.match_loss and self.num_hidden_layers < 2:
            raise ValueError(
                f"{WHERE}: num_hidden_layers: expected at least 2 layers, because match_loss reads the "
                f"attention after half of them, found {self.num_hidden_layers}: raise it, or set match_loss to 0"
            )
