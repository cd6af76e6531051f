"""The recipe of a tower trained by contrast: the keys of its YAML and their limits."""

from dataclasses import dataclass, field
from typing import Literal

from ...arguments import MAX_STEPS
from ...common.schema import Bounds
from ..augmentation import AugmentationRecipe
from ..vision_tower.recipe import check_tower

WHERE = "contrastive recipe"
# Keys with other limits than all integers or floats have.
NUMBERS = {
    **dict.fromkeys(
        ("warmup_steps", "cooldown_steps", "augmentation_ramp"), Bounds(least=0, most=MAX_STEPS)
    ),
    "ema_decay": Bounds(least=0, most=1),
    "batch_size": Bounds(least=2),
    # A caption's tokens are at least its first, one of the text, and the end.
    "text_length": Bounds(least=3),
    # hidden_states[-2], which Maya reads, must come out of a layer.
    "num_hidden_layers": Bounds(least=2),
    "seed": Bounds(least=0, below=2**32),
}


@dataclass
class ContrastiveRecipe:
    """All settings of a run; `kind: contrastive` in a YAML file."""

    # sigmoid: SigLIP's towers and pairwise loss; softmax: CLIP's towers, with a class token, and loss.
    loss: Literal["sigmoid", "softmax"]
    data: str  # dataset folder; a relative path may start here or beside `training/`
    train_styles: list[str]  # art styles to train on
    validation_styles: list[str]  # art styles that are only scored
    languages: list[str]  # BCP-47 codes of the captions

    image_size: int = 64  # pixels per side
    patch_size: int = 16  # pixels per side
    hidden_size: int = 128  # of both towers, as in SiglipVisionConfig, like the three below
    num_hidden_layers: int = 6
    intermediate_size: int = 384
    num_attention_heads: int = 4

    vocab_size: int = 3072  # of the tokenizer that is learned from the captions
    text_length: int = (
        12  # tokens of a caption, its first and its end included; longer ones are cut
    )
    text_layers: int = 1
    # Captions of an image in a step, each in another language where it has so many. The image tower is the
    # costly one, and each language's captions are learned for themselves.
    captions_per_image: int = 4

    steps: int = 1500
    batch_size: int = 128  # images per step, each of another concept
    learning_rate: float = 1e-3  # AdamW
    matrix_learning_rate: float = 0.015  # Muon
    weight_decay: float = 0.05
    warmup_steps: int = 50  # first steps, in which the learning rates rise
    cooldown_steps: int = 700  # last steps, in which the learning rates fall to zero
    ema_decay: float = 0.99  # of the averaged weights
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    augmentation_ramp: int = 800  # steps until augmentation has full strength

    storage_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the saved weights
    seed: int = 0
    log_every: int = 100  # steps
    evaluate_every: int = 500  # steps
    save_every: int = 250  # steps

    def __post_init__(self) -> None:
        check_tower(self, WHERE, NUMBERS)
