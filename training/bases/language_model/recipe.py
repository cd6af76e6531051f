"""What decides a run of the base language model; the keys of its YAML."""

from dataclasses import dataclass, field

from ...arguments import MAX_STEPS
from ...common.languages import LANGUAGES
from ...common.schema import Bounds
from .tokenizer import IMAGE_TOKEN, TURN_TOKENS

TASKS = ("name", "yesno", "category", "keywords", "chat")
CONTEXTS = ("soft", "pivot", "other", "keywords", "both", "noisy")


# Numbers that are not just 0 or more.
NUMBERS = {
    "steps": Bounds(least=1, most=MAX_STEPS),
    "seed": Bounds(least=0, below=2**32),
    "learning_rate": Bounds(above=0),
    "muon_learning_rate": Bounds(above=0),
    "hold": Bounds(least=0, most=1),
    "ramp": Bounds(least=0, most=1),
}
WEIGHT = Bounds(least=0, most=1000)


@dataclass
class LanguageModelRecipe:
    """Everything that decides a run; the keys of the YAML are these fields.

    > Data
        start: folder of a model that an earlier run saved, whose weights this run begins with (and
        whose tokenizer must come out the same).
        dataset: folder of the mini dataset (None: the one that ships).
        prompts: JSON of question wordings per language and task (None: the one that ships).
        languages: BCP-47 codes to learn. pivot: the language most contexts are written in.
    > Tokenizer
        vocab_size: control tokens + bytes + merges. embedding_rows: rows of the model, at least
        vocab_size + 30. caption_weight: a name counts as this many keywords when merges are
        learned. language_weights: multiplies that per language (missing: 2).
    > Model
        the fields of CohereConfig; output_initializer_scale multiplies the initial o_proj and
        down_proj.
    > Contexts and tasks
        context_slots: length of a soft context in vectors (the image tokens of the mini Maya).
        contexts, tasks: weights of the kinds. keyword_count: keywords in one answer.
        soft_scale: RMS of a soft context's numbers; the other soft_*: upper ends of the uniform
        draws of what disturbs it, in units of its size. keyword_loss: weight of a keyword token in
        the loss, yesno_loss that of a yes or no. code_loss: weight of reading the code of a stated
        name half way up. match_loss: weight of attending to a soft context just if what is stated
        of it is true.
    > Optimisation
        row_tokens x rows_per_step tokens a step; muon_learning_rate for matrices, learning_rate
        (AdamW) for embeddings and norms; both fall linearly to zero after the part `hold` of the
        steps. Over the part `ramp` the disturbance of soft contexts, the weight of yes/no and the
        share of confusable names in it grow from a quarter to all: what a context is called has to
        be known before names can be compared with it.
    """

    start: str | None = None
    dataset: str | None = None
    prompts: str | None = None
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    pivot: str = "en"

    vocab_size: int = 6080
    embedding_rows: int = 6144
    caption_weight: int = 5
    language_weights: dict[str, int] = field(default_factory=dict)

    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    max_position_embeddings: int = 2048
    logit_scale: float = 1.0
    rope_theta: float = 10000.0
    initializer_range: float = 0.08
    output_initializer_scale: float = 0.3

    context_slots: int = 16
    contexts: dict[str, float] = field(
        default_factory=lambda: {
            "soft": 0.5,
            "pivot": 0.15,
            "other": 0.12,
            "keywords": 0.06,
            "both": 0.05,
            "noisy": 0.12,
        }
    )
    tasks: dict[str, float] = field(
        default_factory=lambda: {
            "name": 0.5,
            "yesno": 0.3,
            "category": 0.08,
            "keywords": 0.05,
            "chat": 0.07,
        }
    )
    keyword_count: int = 5
    keyword_loss: float = 0.3
    yesno_loss: float = 1.0
    code_loss: float = 0.5
    match_loss: float = 0.0
    soft_scale: float = 0.25
    soft_slot_noise: float = 1.5
    soft_shared_noise: float = 0.8
    soft_mixture: float = 0.4
    soft_dropout: float = 0.7

    steps: int = 4000
    rows_per_step: int = 16
    row_tokens: int = 160
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.01
    weight_decay: float = 0.01
    warmup_steps: int = 100
    hold: float = 0.4
    ramp: float = 0.5
    checkpoint_every: int = 500
    evaluate_concepts: int | None = None
    storage_dtype: str = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                NUMBERS.get(name, Bounds(least=0)).check(value, "language model recipe", name)
        for name, weight in self.language_weights.items():
            WEIGHT.check(weight, "language model recipe", f"language_weights.{name}")
        if self.pivot not in self.languages:
            raise ValueError(f"pivot is {self.pivot!r}, which is not in languages {self.languages}")
        for name, known, given in (
            ("contexts", CONTEXTS, self.contexts),
            ("tasks", TASKS, self.tasks),
        ):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ValueError(f"{name} has unknown keys {unknown}; known are {list(known)}")
            if not given or min(given.values()) < 0 or sum(given.values()) <= 0:
                raise ValueError(f"{name} needs weights of at least 0 that are not all 0: {given}")
        if self.embedding_rows < self.vocab_size + len(TURN_TOKENS) + 1:
            raise ValueError(
                f"embedding_rows is {self.embedding_rows}; vocab_size {self.vocab_size} needs at "
                f"least {self.vocab_size + len(TURN_TOKENS) + 1} (29 turn tokens and {IMAGE_TOKEN})"
            )
        if self.storage_dtype not in ("float16", "bfloat16", "float32"):
            raise ValueError(
                f"storage_dtype is {self.storage_dtype!r}; use float16, bfloat16 or float32"
            )
        if self.match_loss and self.num_hidden_layers < 2:
            raise ValueError(
                f"match_loss is {self.match_loss:g}, which a decoder of {self.num_hidden_layers} layer "
                "has no attention half way up for; use at least 2 layers, or 0"
            )
        for name in ("rows_per_step", "context_slots", "keyword_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
