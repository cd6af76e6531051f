"""The recipe of the mini vision tower: the keys of its YAML and their limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...arguments import MAX_STEPS
from ...common.schema import Bounds
from ..augmentation import WHERE, AugmentationRecipe

COUNT, RATE, SHARE = Bounds(least=1, most=MAX_STEPS), Bounds(least=0), Bounds(least=0, most=1)
# Keys with other limits than COUNT (integers) and RATE (floats).
NUMBERS = {
    **dict.fromkeys(
        ("warmup_steps", "cooldown_steps", "augmentation_ramp"), Bounds(least=0, most=MAX_STEPS)
    ),
    **dict.fromkeys(("ema_decay", "label_smoothing", "mixed_share"), SHARE),
    "seed": Bounds(least=0, below=2**32),
}


@dataclass
class VisionTowerRecipe:
    """All settings of a run; `kind: vision_tower` in a YAML file."""

    data: str  # dataset folder; a relative path may start here or beside `training/`
    train_styles: list[str]  # art styles to train on
    validation_styles: list[str]  # art styles that are only scored
    languages: list[str]  # BCP-47 codes; captions of the contrastive loss

    image_size: int = 64  # pixels per side
    patch_size: int = 16  # pixels per side
    hidden_size: int = 192  # as in SiglipVisionConfig, like the three below
    num_hidden_layers: int = 5
    intermediate_size: int = 576
    num_attention_heads: int = 6

    steps: int = 6000  # steps of the first part
    batch_size: int = 96  # images per step of the first part
    learning_rate: float = 1.5e-3  # AdamW
    matrix_learning_rate: float = 0.02  # Muon
    weight_decay: float = 0.05  # of both optimizers, in the first part
    warmup_steps: int = 100  # first steps, in which the learning rates rise
    cooldown_steps: int = 1500  # last steps, in which the learning rates fall to zero
    label_smoothing: float = 0.1  # of the concept and code losses
    patch_loss_weight: float = 0.5  # weight of the concept loss on single patches
    code_loss_weight: float = 0.5  # weight of the loss of the text-code reader
    category_loss_weight: float = 0.2  # weight of the category loss
    contrastive_dim: int = 192  # size of the vectors that images and captions are compared in
    ema_decay: float = 0.998  # of the averaged weights
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    augmentation_ramp: int = 3000  # steps until augmentation has full strength

    code_layers: int = 2  # layers for the codes, between the class layers and the last layer
    memory_layers: int = 1  # the first of the code layers, which begin as a memory
    code_copies: int = 12  # augmented copies of every training image in the second part
    code_steps: int = 800  # steps of the second part
    code_batch_size: int = 256  # rows of features per step of the second and third part
    code_learning_rate: float = 5e-4  # AdamW, falling to zero
    code_matrix_learning_rate: float = 5e-3  # Muon, falling to zero
    code_stream: float = 0.2  # standard deviation of the stream that enters the code layers
    code_scale: float = (
        8.0  # scale of cosines in the softmax; small, so that cosines must get near 1
    )
    code_cosine_weight: float = 5.0  # weight of the cosine loss
    class_sharpness: float = 2.0  # scale of the class scores (standard deviation 1) in the softmax
    mixed_share: float = 0.5  # share of a batch that is mixtures of two images
    memory_threshold: float = 3.75  # class score above which a unit responds
    memory_sharpness: float = 5.0  # slope of a unit's input over the class score
    memory_gain: float = 0.6  # length that a unit adds, in lengths of the stream, per unit of score
    contrastive_steps: int = 1500  # steps of the third part
    contrastive_learning_rate: float = 2e-3  # AdamW, falling to zero
    contrastive_matrix_learning_rate: float = 0.02  # Muon, falling to zero

    storage_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the saved weights
    seed: int = 0
    log_every: int = 100  # steps
    evaluate_every: int = 500  # steps
    save_every: int = 500  # steps

    def __post_init__(self) -> None:
        check_tower(self, WHERE, NUMBERS)
        if self.num_hidden_layers < 2 + self.code_layers:
            raise ValueError(
                f"{WHERE}: num_hidden_layers: expected at least {2 + self.code_layers}: one for the "
                f"classes, {self.code_layers} for the codes (code_layers) and the last, which Maya does "
                f"not read, found {self.num_hidden_layers}"
            )
        if self.memory_layers > self.code_layers:
            raise ValueError(
                f"{WHERE}: memory_layers: expected at most code_layers, {self.code_layers}, found "
                f"{self.memory_layers}"
            )


def check_tower(recipe: Any, where: str, numbers: Mapping[str, Bounds]) -> None:
    """Check the values that the recipes of all vision towers have.

    Args:
        recipe: a dataclass with the fields of `image_run.ImageRecipe` and those of a tower's shape.
        where: prefix of messages.
        numbers: limits of keys that have others than COUNT (integers) and RATE (floats).

    Raises:
        ValueError: naming the first key with a value that is out of range or contradicts another key's.
    """
    for spec in fields(recipe):
        value = getattr(recipe, spec.name)
        if spec.type in (int, float):
            default = COUNT if spec.type is int else RATE
            numbers.get(spec.name, default).check(value, where, spec.name)
        elif value == []:
            raise ValueError(f"{where}: {spec.name}: expected at least one name, found none")
    if recipe.image_size < recipe.patch_size:
        raise ValueError(
            f"{where}: image_size: expected at least patch_size, {recipe.patch_size}, for one patch, "
            f"found {recipe.image_size}"
        )
    if recipe.hidden_size % recipe.num_attention_heads:
        raise ValueError(
            f"{where}: hidden_size: expected a multiple of num_attention_heads, "
            f"{recipe.num_attention_heads}, found {recipe.hidden_size}"
        )
    shared = sorted(set(recipe.train_styles) & set(recipe.validation_styles))
    if shared:
        raise ValueError(
            f"{where}: validation_styles: expected other styles than train_styles, found "
            f"{', '.join(shared)} in both"
        )
