"""The recipe of the mini vision tower: the keys of its YAML, and what each may be."""

from dataclasses import dataclass, field, fields
from typing import Literal

from ...arguments import MAX_STEPS
from ...common.schema import Bounds
from ..augmentation import WHERE, AugmentationRecipe

COUNT, RATE, SHARE = Bounds(least=1, most=MAX_STEPS), Bounds(least=0), Bounds(least=0, most=1)
# Keys that take other numbers than COUNT (whole numbers) and RATE (the others).
NUMBERS = {
    **dict.fromkeys(
        ("warmup_steps", "cooldown_steps", "augmentation_ramp"), Bounds(least=0, most=MAX_STEPS)
    ),
    **dict.fromkeys(("ema_decay", "label_smoothing", "mixed_share"), SHARE),
    "seed": Bounds(least=0, below=2**32),
}


@dataclass
class VisionTowerRecipe:
    """Everything that decides a run; `kind: vision_tower` in a YAML file."""

    data: str  # dataset folder; a relative one is looked up from here, then beside `training/`
    train_styles: list[str]
    validation_styles: list[str]
    languages: list[str]  # captions of the contrastive loss

    image_size: int = 64
    patch_size: int = 16
    hidden_size: int = 192
    num_hidden_layers: int = 5
    intermediate_size: int = 576
    num_attention_heads: int = 6

    steps: int = 6000
    batch_size: int = 96
    learning_rate: float = 1.5e-3  # AdamW
    matrix_learning_rate: float = 0.02  # Muon
    weight_decay: float = 0.05
    warmup_steps: int = 100
    cooldown_steps: int = 1500  # the last ones, in which the rates fall to zero
    label_smoothing: float = 0.1
    patch_loss_weight: float = 0.5
    code_loss_weight: float = 0.5
    category_loss_weight: float = 0.2
    contrastive_dim: int = 192
    ema_decay: float = 0.998
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    augmentation_ramp: int = 3000  # steps until it is at full strength

    code_layers: int = 2  # of num_hidden_layers, between the classes' layers and the last
    memory_layers: int = 1  # of code_layers, the first ones
    code_copies: int = 12  # augmented copies of every training picture in the second part
    code_steps: int = 800
    code_batch_size: int = 256
    code_learning_rate: float = 5e-4  # AdamW, falling to zero
    code_matrix_learning_rate: float = 5e-3  # Muon, likewise
    code_stream: float = 0.2  # standard deviation of the stream that the code layers begin on
    code_scale: float = 8.0  # of cosines in the softmax; small, so that they must come near to 1
    code_cosine_weight: float = 5.0
    class_sharpness: float = 2.0  # of the softmax over class scores (standard deviation 1) to learn
    mixed_share: float = 0.5  # of a batch, mixtures of two pictures
    memory_threshold: float = 3.75  # class score from which on a unit answers
    memory_sharpness: float = 5.0  # slope of a unit's input over that score
    memory_gain: float = 0.6  # what a unit adds, in lengths of the stream by unit of score
    contrastive_steps: int = 1500  # of the third part, in batches like the second's
    contrastive_learning_rate: float = 2e-3  # AdamW, falling to zero
    contrastive_matrix_learning_rate: float = 0.02  # Muon, likewise

    storage_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    seed: int = 0
    log_every: int = 100
    evaluate_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.type in (int, float):
                default = COUNT if spec.type is int else RATE
                NUMBERS.get(spec.name, default).check(value, WHERE, spec.name)
            elif value == []:
                raise ValueError(f"{WHERE}: {spec.name}: expected at least one name, found none")
        if self.image_size < self.patch_size:
            raise ValueError(
                f"{WHERE}: image_size: expected at least patch_size, {self.patch_size}, for one patch, "
                f"found {self.image_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{WHERE}: hidden_size: expected a multiple of num_attention_heads, "
                f"{self.num_attention_heads}, found {self.hidden_size}"
            )
        if self.num_hidden_layers < 2 + self.code_layers:
            raise ValueError(
                f"{WHERE}: num_hidden_layers: expected at least {2 + self.code_layers}, one for the "
                f"classes, {self.code_layers} for the codes (code_layers) and the last, which Maya does "
                f"not read, found {self.num_hidden_layers}"
            )
        if self.memory_layers > self.code_layers:
            raise ValueError(
                f"{WHERE}: memory_layers: expected at most code_layers, {self.code_layers}, found "
                f"{self.memory_layers}"
            )
        shared = sorted(set(self.train_styles) & set(self.validation_styles))
        if shared:
            raise ValueError(
                f"{WHERE}: validation_styles: expected other styles than train_styles, found "
                f"{', '.join(shared)} in both"
            )
