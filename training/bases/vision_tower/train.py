"""Train the mini vision tower: a small SigLIP that knows emoji concepts across art styles.

It is to the mini Maya what SigLIP is to Maya, made from the mini dataset alone, in three parts:

1. Concept classification, a start without which the rest learns far too slowly at this size, trains
   the lower layers: the mean over the patches and single patches drawn at random must all carry the
   concept. A linear reader of the concepts' text codes (text_codes.py) learns beside it.
2. The lower layers are kept as they are. `code_layers` layers more say what is seen in the words' own
   terms: the layer before last, the one that Maya reads, must come near to the text code, again in
   the mean and in single patches, so that whatever patch the decoder attends to, it finds the
   concept. No linear map leads from classes, arranged by looks, to codes, arranged by words, and
   layers that learn one from the training pictures know those by heart and name fewer of an unseen
   style than the classes do. So nothing is learned that is known: the first `memory_layers` of these
   layers begin as an associative memory, each unit of their MLPs answering to one class and adding
   its code to the stream (Geva et al., 2021, arXiv:2012.14913, found that feed-forward layers work
   so). What the units do to each other is then trained away, towards what the classes say, whether
   right or not, also of mixtures of pictures (function matching: Beyer et al., 2022,
   arXiv:2106.05237).
3. The last layer and the pooling head are trained on top as SigLIP is, with the pairwise sigmoid
   loss against captions in all languages (Zhai et al., 2023, arXiv:2303.15343); the caption encoder
   is a bag of hashed character n-grams, used for this only and not saved.

Concepts that the dataset holds out (seen = False) are in no batch, neither as picture nor as text.
Matrices inside the layers are updated with Muon (Jordan et al., 2024), everything else with AdamW.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
import yaml
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from ...arguments import MAX_STEPS
from ...common.files import atomic
from ...common.images import decode_picture, to_rgb
from ...common.permissions import ordinary_permissions
from ..augmentation import AugmentationRecipe, augment
from ..muon import Muon
from ..text_codes import BUCKETS, concept_codes, ngram_buckets

# Pictures of these mean something else, or nothing, when mirrored.
ONE_WAY = re.compile(
    r"\b(left|right|clock|clockwise|o.clock|thirty|arrow|quarter|crescent|button|input|level)\b",
    re.IGNORECASE,
)
STORAGE_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
MAY_BE_ZERO = ("seed", "warmup_steps", "cooldown_steps", "augmentation_ramp")
STATE_FILE = "training_state.safetensors"


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
    code_copies: int = 12  # redrawn pictures of the second part, for every picture to train on
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

    storage_dtype: str = "float16"
    seed: int = 0
    log_every: int = 100
    evaluate_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        if isinstance(self.augmentation, dict):
            self.augmentation = _from_mapping(
                AugmentationRecipe, self.augmentation, "vision tower recipe: augmentation"
            )
        for spec in dataclasses.fields(self):
            self._check(spec)
        if self.image_size < self.patch_size:
            raise ValueError(
                f"vision tower recipe: image_size {self.image_size} is smaller than patch_size "
                f"{self.patch_size}; a tower needs at least one patch"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision tower recipe: hidden_size {self.hidden_size} does not divide into "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_hidden_layers < 2 + self.code_layers:
            raise ValueError(
                f"vision tower recipe: num_hidden_layers is {self.num_hidden_layers}; the classes "
                f"need one, the codes have {self.code_layers} (code_layers), and Maya reads the layer "
                f"before last, so at least {2 + self.code_layers} are needed"
            )
        if self.memory_layers > self.code_layers:
            raise ValueError(
                f"vision tower recipe: memory_layers is {self.memory_layers}, of {self.code_layers} "
                "code_layers; it can be at most as many"
            )
        if self.storage_dtype not in STORAGE_DTYPES:
            raise ValueError(
                f"vision tower recipe: storage_dtype {self.storage_dtype!r} is not one of "
                f"{', '.join(STORAGE_DTYPES)}"
            )
        shared = sorted(set(self.train_styles) & set(self.validation_styles))
        if shared:
            raise ValueError(
                f"vision tower recipe: {', '.join(shared)} is both a train and a validation style; "
                "name each style once"
            )

    def _check(self, spec: dataclasses.Field) -> None:
        value, where = getattr(self, spec.name), f"vision tower recipe: {spec.name}"
        if spec.type is int:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{where} is {value!r}, expected a whole number")
            if value < (0 if spec.name in MAY_BE_ZERO else 1):
                raise ValueError(f"{where} is {value}, expected a positive number")
            if value > MAX_STEPS and spec.name != "seed":
                raise ValueError(f"{where} is {value}, expected at most {MAX_STEPS:,}")
            if spec.name == "seed" and value >= 2**32:
                raise ValueError(f"{where} is {value}, expected less than {2**32:,}")
        elif spec.type is float:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{where} is {value!r}, expected a number")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{where} is {value}, expected a finite number of at least 0")
            shares = ("ema_decay", "label_smoothing", "mixed_share")
            if spec.name in shares and value > 1:
                raise ValueError(f"{where} is {value}, expected at most 1")
        elif spec.type is str:
            if not isinstance(value, str):
                raise ValueError(f"{where} is {value!r}, expected text")
        elif spec.type == list[str]:
            texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
            if not texts or not value:
                raise ValueError(f"{where} is {value!r}, expected a non-empty list of names")


def _from_mapping(cls: type, values: dict[str, Any], where: str) -> Any:
    known = {spec.name for spec in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}"
        )
    missing = [
        spec.name
        for spec in dataclasses.fields(cls)
        if spec.default is dataclasses.MISSING
        and spec.default_factory is dataclasses.MISSING
        and spec.name not in values
    ]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return cls(**values)


def read_vision_tower_recipe(path: Path) -> VisionTowerRecipe:
    """Read a YAML recipe with `kind: vision_tower`.

    Raises:
        ValueError: not such a recipe, or a key that is unknown, missing or of the wrong type.
        FileNotFoundError: no such file.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or values.pop("kind", None) != "vision_tower":
        raise ValueError(f"{path}: expected a mapping with `kind: vision_tower`")
    return _from_mapping(VisionTowerRecipe, values, str(path))


@dataclass
class Pictures:
    """Pictures of the concepts to learn, in memory: uint8, as the dataset stores them."""

    pixels: Tensor  # uint8 [n, 3, image_size, image_size]
    concept: Tensor  # int64 [n], index into Dataset.concepts
    style: list[str]  # [n]


@dataclass
class Dataset:
    """What a run reads of the mini dataset; nothing of the held-out concepts is in it."""

    concepts: list[str]
    categories: list[str]
    category: Tensor  # int64 [concepts]
    may_flip: Tensor  # bool [concepts]
    captions: list[list[str | None]]  # [concepts][languages]; a few have no name in a language
    train: Pictures
    validation: Pictures
    held_out: int  # concepts left out


def find_dataset(data: str) -> Path:
    """The dataset folder: as given, or, if relative and not there, inside this installation."""
    for folder in (Path(data), Path(__file__).resolve().parents[3] / data):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"vision tower recipe: data: no folder {data!r}; give a built mini dataset "
        "(`maya data mini --output DIR` makes one)"
    )


def read_dataset(recipe: VisionTowerRecipe) -> Dataset:
    """Read pictures and captions, without the held-out concepts.

    Raises:
        FileNotFoundError: no dataset folder.
        ValueError: a column, style or language that the recipe needs is not there, or a picture
            does not open.
    """
    folder = find_dataset(recipe.data)
    texts = _read_table(folder, "all", ["lang", "text", "category", "concept", "seen"])
    seen: dict[str, bool] = {}
    category: dict[str, str] = {}
    captions: dict[str, dict[str, str]] = {}
    for lang, text, kind, concept, is_seen in zip(*texts, strict=True):
        if seen.setdefault(concept, is_seen) != is_seen:
            raise ValueError(
                f"{folder}: concept {concept!r} is marked both seen and held out; rebuild the "
                "dataset"
            )
        category[concept] = kind
        captions.setdefault(concept, {})[lang] = text
    absent = sorted(set(recipe.languages) - set(texts[0]))
    if absent:
        raise ValueError(
            f"{folder}: no captions in {', '.join(absent)}; found "
            f"{', '.join(sorted(set(texts[0])))}; change `languages` in the recipe"
        )
    styles, names, owners, pictures = _read_table(
        folder, "images", ["style", "image", "concept", "picture"]
    )
    wanted = [*recipe.train_styles, *recipe.validation_styles]
    absent = sorted(set(wanted) - set(styles))
    if absent:
        raise ValueError(
            f"{folder}: no pictures in style {', '.join(absent)}; found {', '.join(sorted(set(styles)))}"
        )
    drawn_in: dict[str, set[str]] = {style: set() for style in wanted}
    for style, concept in zip(styles, owners, strict=True):
        if style in drawn_in:
            drawn_in[style].add(concept)
    pictured = set().union(*(drawn_in[style] for style in recipe.train_styles))
    # A concept without a picture to learn from has no place among the classes.
    concepts = sorted(
        concept for concept, is_seen in seen.items() if is_seen and concept in pictured
    )
    if not concepts:
        raise ValueError(
            f"{folder}: no row with seen = true has a picture in {', '.join(recipe.train_styles)}; "
            "there is nothing to train on"
        )
    index = {concept: number for number, concept in enumerate(concepts)}
    categories = sorted({category[concept] for concept in concepts})

    parts: dict[str, tuple[list[np.ndarray], list[int], list[str]]] = {
        "train": ([], [], []),
        "validation": ([], [], []),
    }
    for style, name, concept, picture in zip(styles, names, owners, pictures, strict=True):
        if style not in wanted or concept not in index:
            continue
        pixels, numbers, drawn = parts["train" if style in recipe.train_styles else "validation"]
        pixels.append(_decode(picture, f"{folder}: {name}", recipe.image_size))
        numbers.append(index[concept])
        drawn.append(style)
    made = {
        part: Pictures(
            torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(numbers),
            drawn,
        )
        for part, (pixels, numbers, drawn) in parts.items()
        if pixels
    }
    for part in parts:
        if part not in made:
            raise ValueError(f"{folder}: the {part} styles have no picture of a seen concept")
    one_way = [
        category[concept] == "symbols" or bool(ONE_WAY.search(captions[concept].get("en", "")))
        for concept in concepts
    ]
    return Dataset(
        concepts=concepts,
        categories=categories,
        category=torch.tensor([categories.index(category[concept]) for concept in concepts]),
        may_flip=~torch.tensor(one_way),
        captions=[
            [captions[concept].get(lang) for lang in recipe.languages] for concept in concepts
        ],
        train=made["train"],
        validation=made["validation"],
        held_out=sum(not is_seen for is_seen in seen.values()),
    )


def _read_table(folder: Path, config: str, columns: list[str]) -> list[list[Any]]:
    """The named columns of a configuration, all splits in one."""
    import datasets

    try:
        # A cache of its own: the shared one takes a changed folder, or another of the same name,
        # for the one that it has read before.
        with tempfile.TemporaryDirectory() as cache:
            splits = datasets.load_dataset(
                str(folder), config, cache_dir=cache, keep_in_memory=True
            )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: configuration {config!r} does not load: {reason}") from error
    table: list[list[Any]] = [[] for _ in columns]
    for split in splits.values():
        missing = [name for name in columns if name not in split.column_names]
        if missing:
            raise ValueError(
                f"{folder}: configuration {config!r} has no column {', '.join(missing)}; found "
                f"{', '.join(split.column_names)}"
            )
        for name, values in zip(columns, table, strict=True):
            if isinstance(split.features[name], datasets.Image):
                split = split.cast_column(name, datasets.Image(decode=False))
            values.extend(split[name])
    return table


def _decode(picture: dict[str, Any], where: str, size: int) -> np.ndarray:
    try:
        rgb = to_rgb(decode_picture(picture["bytes"], where))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: not a readable picture ({error}); rebuild the dataset"
        ) from error
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


class CaptionEncoder(nn.Module):
    """Captions to vectors: the mean of hashed character 2- to 4-grams, then a two-layer MLP.

    It learns within a few minutes what a transformer over bytes would need hours for, and it is
    thrown away: Maya has a language model of its own.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: list[list[int]]) -> Tensor:
        """Bucket numbers of [batch] captions to float [batch, width]."""
        starts = np.cumsum([0, *(len(row) for row in features[:-1])])
        flat = torch.tensor([number for row in features for number in row])
        bags = self.grams(flat, torch.from_numpy(starts))
        return self.mlp(bags)


class CodeReader(nn.Module):
    """Concept logits of the first part: a linear map of the features beside the fixed codes."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        width = codes.shape[1]
        self.register_buffer("codes", F.normalize(codes, dim=1))
        self.map = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor) -> Tensor:
        """float [n, width] to float [n, concepts]."""
        return self.cosines(self.map(features)) * self.log_scale.exp()

    def cosines(self, features: Tensor) -> Tensor:
        """Of features, float [n, width], with every code: float [n, concepts]."""
        return F.normalize(features, dim=1) @ self.codes.T


class TowerTrainer(nn.Module):
    """The tower with the parts that only training needs.

    Args:
        codes: of the concepts, float [concepts, hidden_size].
    """

    def __init__(self, recipe: VisionTowerRecipe, codes: Tensor, categories: int) -> None:
        super().__init__()
        width = recipe.hidden_size
        config = SiglipVisionConfig(
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            hidden_size=width,
            num_hidden_layers=recipe.num_hidden_layers,
            intermediate_size=recipe.intermediate_size,
            num_attention_heads=recipe.num_attention_heads,
            vision_use_head=True,
        )
        self.tower = SiglipVisionModel(config)
        self.class_layers = recipe.num_hidden_layers - 1 - recipe.code_layers
        with torch.no_grad():
            for layer in self.tower.encoder.layers[self.class_layers : -1]:
                for written in (layer.self_attn.out_proj, layer.mlp.fc2):
                    written.weight.zero_()
                    written.bias.zero_()
        # Normalised over the batch: at the start all pictures look nearly alike to the encoder,
        # and what they share would drown what tells them apart.
        self.mean_norm = nn.BatchNorm1d(width, affine=False)
        self.patch_norm = nn.BatchNorm1d(width, affine=False)
        self.concept = nn.Linear(width, len(codes))
        self.patch_concept = nn.Linear(width, len(codes))
        self.code = CodeReader(codes)
        self.category = nn.Linear(width, categories)
        self.captions = CaptionEncoder(recipe.contrastive_dim)
        self.picture_projection = nn.Linear(width, recipe.contrastive_dim)
        # Starting values of the SigLIP paper, section 3.2.
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def classes(self, pixel_values: Tensor) -> Tensor:
        """float [n, 3, size, size] to float [n, patches, hidden], what the classes are read off."""
        hidden = self.tower.embeddings(pixel_values)
        for layer in self.tower.encoder.layers[: self.class_layers]:
            hidden = layer(hidden, attention_mask=None)
        return hidden

    def before_last(self, classes: Tensor) -> Tensor:
        """From there to hidden_states[-2], of the same shape."""
        for layer in self.tower.encoder.layers[self.class_layers : -1]:
            classes = layer(classes, attention_mask=None)
        return classes

    def pooled(self, before_last: Tensor) -> Tensor:
        """What the tower returns as pooler_output, from its layer before last."""
        hidden = self.tower.encoder.layers[-1](before_last, attention_mask=None)
        return self.tower.head(self.tower.post_layernorm(hidden))

    def embed(self, before_last: Tensor) -> Tensor:
        """Pictures in the space of the captions, unit length."""
        return F.normalize(self.picture_projection(self.pooled(before_last)), dim=-1)


def train_vision_tower(recipe: VisionTowerRecipe | Path | str, output_dir: Path) -> Path:
    """Train a tower and save it.

    Args:
        recipe: the recipe, or a YAML file with one.
        output_dir: gets config.json, model.safetensors, preprocessor_config.json, the resolved
            recipe.yaml and metrics.json. While training it also holds the state of the run; the
            same call continues from it, a call with a changed recipe does not.

    Returns:
        output_dir.

    Raises:
        FileNotFoundError: the dataset or recipe is not there.
        ValueError: bad recipe or dataset, or output_dir holds the state of another run.
    """
    if not isinstance(recipe, VisionTowerRecipe):
        recipe = read_vision_tower_recipe(Path(recipe))
    output_dir = Path(output_dir)
    dataset = read_dataset(recipe)
    run = _Run(recipe, dataset, output_dir)
    run.print_parts()
    run.resume()
    run.train()
    run.train_captions(*run.train_codes())
    return run.save()


class _Run:
    def __init__(self, recipe: VisionTowerRecipe, dataset: Dataset, output_dir: Path) -> None:
        self.recipe, self.dataset, self.output_dir = recipe, dataset, output_dir
        if recipe.memory_layers * recipe.intermediate_size < len(dataset.concepts):
            raise ValueError(
                f"vision tower recipe: {recipe.memory_layers} memory_layers of "
                f"{recipe.intermediate_size} units (intermediate_size) cannot hold "
                f"{len(dataset.concepts)} concepts; raise one of the two"
            )
        # A run is continued only by the same recipe on the same pictures and captions. Its length
        # is left out: until the cool-down, a longer and a shorter run are the same run.
        same = {
            name: value for name, value in dataclasses.asdict(recipe).items() if name != "steps"
        }
        content = hashlib.sha256(json.dumps(same, sort_keys=True).encode())
        content.update(json.dumps([dataset.concepts, dataset.captions]).encode())
        for pictures in (dataset.train, dataset.validation):
            content.update(pictures.pixels.numpy().tobytes())
        self.key = content.hexdigest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = TowerTrainer(recipe, self._codes(), len(dataset.categories))
        self._whiten_patches()
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.features = [
            [ngram_buckets(name) if name else [] for name in captions]
            for captions in dataset.captions
        ]
        upper = [
            *self.model.tower.encoder.layers[self.model.class_layers :].parameters(),
            *self.model.tower.head.parameters(),
            *self.model.tower.post_layernorm.parameters(),
            *self.model.captions.parameters(),
            *self.model.picture_projection.parameters(),
            self.model.log_scale,
            self.model.bias,
        ]
        later = {id(p) for p in upper}
        first = [p for p in self.model.parameters() if id(p) not in later]
        matrices = [
            p for p in self.model.tower.encoder.parameters() if p.ndim == 2 and id(p) not in later
        ]
        chosen = {id(p) for p in matrices}
        others = [p for p in first if id(p) not in chosen]
        decayed = [p for p in others if p.ndim > 1]
        plain = [p for p in others if p.ndim <= 1]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                Muon(matrices, recipe.matrix_learning_rate, recipe.weight_decay, iterations=4),
                recipe.matrix_learning_rate,
            ),
            (
                torch.optim.AdamW(
                    [
                        {"params": decayed, "weight_decay": recipe.weight_decay},
                        {"params": plain, "weight_decay": 0.0},
                    ],
                    lr=recipe.learning_rate,
                    betas=(0.9, 0.98),
                ),
                recipe.learning_rate,
            ),
        ]
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []

    def _codes(self) -> Tensor:
        data = self.dataset
        category = [data.categories[number] for number in data.category.tolist()]
        return concept_codes(data.captions, category, self.recipe.hidden_size)

    def generator(self, purpose: int, number: int) -> torch.Generator:
        """Randomness of one step or pass: nothing to store, and resuming changes nothing."""
        seed = (self.recipe.seed * 4 + purpose) * 1_000_003 + number
        return torch.Generator().manual_seed(seed)

    def print_parts(self) -> None:
        tower = self.model.tower
        heads = sum(p.numel() for p in self.model.parameters()) - tower.num_parameters()
        layers = tower.encoder.layers
        read = sum(p.numel() for p in tower.embeddings.parameters()) + sum(
            p.numel() for layer in layers[:-1] for p in layer.parameters()
        )
        patches = tower.embeddings.num_patches
        rows = [
            (
                "vision tower, read by Maya",
                read,
                f"{patches} patches of {tower.config.hidden_size}",
            ),
            ("vision tower, last layer and head", tower.num_parameters() - read, "saved"),
            ("classifiers and caption encoder", heads, "training only"),
        ]
        for name, count, note in rows:
            print(f"{name:<36}{count:>12,}  trained  {note}")
        data = self.dataset
        print(
            f"{len(data.concepts)} concepts ({data.held_out} held out), "
            f"{len(data.train.concept)} pictures to train on "
            f"({', '.join(self.recipe.train_styles)}), {len(data.validation.concept)} to validate "
            f"on ({', '.join(self.recipe.validation_styles)})",
            flush=True,
        )

    def _whiten_patches(self) -> None:
        """Start the patch embedding from the principal components of the pictures' patches.

        Neighbouring pixels are nearly equal, so that random projections of a patch are nearly
        equal too; whitened ones differ from the first step on.
        """
        embedding = self.model.tower.embeddings.patch_embedding
        generator = self.generator(0, 0)
        pixels = self.dataset.train.pixels
        rows = torch.randperm(len(pixels), generator=generator)[:1500]
        pictures = augment(
            pixels[rows].float() / 255,
            self.dataset.may_flip[self.dataset.train.concept[rows]],
            self.recipe.augmentation.at(0.5),
            generator,
        )
        size = self.recipe.patch_size
        patches = F.unfold(_normalize(pictures), size, stride=size).transpose(1, 2)
        patches = patches.reshape(-1, 3 * size * size)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        count = min(self.recipe.hidden_size, len(values))
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        # Faint components are noise: the floor keeps them faint.
        components = (vectors / (values + 3e-4 * values.sum()).sqrt()).T
        mixing = torch.randn(self.recipe.hidden_size, count, generator=generator)
        if count == self.recipe.hidden_size:
            mixing = torch.linalg.qr(mixing)[0]
        else:
            mixing = mixing / math.sqrt(count)
        weight = mixing @ components
        with torch.no_grad():
            embedding.weight.copy_(weight.view_as(embedding.weight))
            embedding.bias.copy_(-weight @ mean)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Pictures, float [batch, 3, size, size] from -1 to 1, and concepts of this step."""
        train, size = self.dataset.train, self.recipe.batch_size
        passes, rows = len(train.concept), []
        for place in range(self.step * size, (self.step + 1) * size):
            epoch, offset = divmod(place, passes)
            if epoch != getattr(self, "_epoch", None):
                self._epoch = epoch
                self._order = torch.randperm(passes, generator=self.generator(1, epoch))
            rows.append(int(self._order[offset]))
        concept = train.concept[rows]
        ramp = self.recipe.augmentation_ramp
        strength = min(1.0, 0.15 + 0.85 * self.step / ramp) if ramp else 1.0
        pictures = augment(
            train.pixels[rows].float() / 255,
            self.dataset.may_flip[concept],
            self.recipe.augmentation.at(strength),
            self.generator(2, self.step),
        )
        return _normalize(pictures), concept

    def _loss(self) -> dict[str, Tensor]:
        recipe = self.recipe
        pixels, concept = self._batch()
        generator = self.generator(3, self.step)
        classes = self.model.classes(pixels)
        mean = self.model.mean_norm(classes.mean(1))
        logits = self.model.concept(mean)
        smoothing = recipe.label_smoothing
        losses = {"concept": F.cross_entropy(logits, concept, label_smoothing=smoothing)}
        which = torch.randint(classes.shape[1], (len(concept),), generator=generator)
        patch = self.model.patch_norm(classes[torch.arange(len(concept)), which])
        losses["patch"] = recipe.patch_loss_weight * F.cross_entropy(
            self.model.patch_concept(patch), concept, label_smoothing=smoothing
        )
        losses["code"] = recipe.code_loss_weight * F.cross_entropy(
            self.model.code(torch.cat([mean, patch])), concept.repeat(2), label_smoothing=smoothing
        )
        losses["category"] = recipe.category_loss_weight * F.cross_entropy(
            self.model.category(mean), self.dataset.category[concept]
        )
        losses["accuracy"] = (logits.argmax(1) == concept).float().mean().detach()
        return losses

    def _contrastive(
        self, before_last: Tensor, concept: Tensor, generator: torch.Generator
    ) -> Tensor:
        """SigLIP's loss of pictures against one caption each, in a language drawn for each."""
        features = []
        draws = torch.rand(len(concept), generator=generator).tolist()
        for number, draw in zip(concept.tolist(), draws, strict=True):
            named = [caption for caption in self.features[number] if caption]
            features.append(named[int(draw * len(named))])
        captions = F.normalize(self.model.captions(features), dim=-1)
        similarity = self.model.embed(before_last) @ captions.T
        pair_logits = similarity * self.model.log_scale.exp() + self.model.bias
        # Two pictures of one concept in a batch both go with both captions.
        target = (concept[:, None] == concept[None]).float() * 2 - 1
        return -F.logsigmoid(target * pair_logits).sum() / len(concept)

    def train_codes(self) -> tuple[Tensor, Tensor]:
        """The second part, on features of the averaged lower layers; returns them with the concepts,
        as `_redrawn` does."""
        recipe, model, started = self.recipe, self.model, time.monotonic()
        model.load_state_dict(self.average)
        # The code layers add to what is there: beside a faint stream, what they say stands out.
        # What all pictures share would have to be taken away first.
        lower = self._lower(self.dataset.train.pixels[::8])
        with torch.no_grad():
            last = model.tower.encoder.layers[model.class_layers - 1]
            last.mlp.fc2.bias -= lower.mean((0, 1))
        scale_stream(model.tower, lower, recipe.code_stream)
        stored, concept = self._redrawn()
        print(
            f"{len(stored)} redrawn pictures read  {time.monotonic() - started:.0f} s", flush=True
        )
        keys, offset = self._class_keys(stored[:: recipe.code_copies])
        self.seconds += time.monotonic() - started
        layers = model.tower.encoder.layers[model.class_layers : -1]
        write_memory(
            layers[: recipe.memory_layers],
            keys,
            model.code.codes,
            threshold=offset + recipe.memory_threshold,
            sharpness=recipe.memory_sharpness,
            gain=recipe.memory_gain,
            stream=4 * recipe.code_stream,  # beside it, what a patch shows of its own is small
        )

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            seen = stored[rows].float()
            mixed = round(len(rows) * recipe.mixed_share)
            with_which = torch.randint(len(rows), (mixed,), generator=generator)
            share = 0.5 + torch.rand(mixed, 1, 1, generator=generator) / 2
            seen = torch.cat([share * seen[:mixed] + (1 - share) * seen[with_which], seen[mixed:]])
            classes = (class_scores(seen, keys) * recipe.class_sharpness).softmax(1)
            said = model.before_last(seen)
            which = torch.randint(said.shape[1], (len(rows),), generator=generator)
            said = torch.cat([said.mean(1), said[torch.arange(len(rows)), which]])
            code = F.cosine_similarity(said, (classes @ model.code.codes).repeat(2, 1))
            cosines = model.code.cosines(said)
            concepts = F.cross_entropy(cosines * recipe.code_scale, classes.repeat(2, 1))
            agreeing = cosines[: len(rows)].argmax(1) == classes.argmax(1)
            shown = {
                "code": concepts,
                "cosine": code[: len(rows)].mean(),
                "agreement": agreeing.float().mean(),
            }
            return concepts + recipe.code_cosine_weight * (1 - code.mean()), shown

        rates = (recipe.code_matrix_learning_rate, recipe.code_learning_rate)
        self._fit("code", recipe.code_steps, rates, layers, [], len(stored), loss)
        # A projector would have to learn to take away what all codes share.
        with torch.no_grad():
            layers[-1].mlp.fc2.bias -= self._raised(stored[:: recipe.code_copies]).mean((0, 1))
        return stored, concept

    @torch.no_grad()
    def _class_keys(self, features: Tensor) -> tuple[Tensor, float]:
        """Weights that read the classes off `features` as the concept head does without its bias, for
        `class_scores` with a standard deviation of 1, and the mean of these."""
        norm = self.model.mean_norm
        assert norm.running_var is not None
        keys = self.model.concept.weight / (norm.running_var + norm.eps).sqrt()
        scores = class_scores(features.float(), keys)
        return keys / scores.std(), float(scores.mean() / scores.std())

    def train_captions(self, lower: Tensor, concept: Tensor) -> None:
        """The third part, on features of all layers but the last, from what `train_codes` returns."""
        recipe, model = self.recipe, self.model
        stored = self._raised(lower).half()

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            contrastive = self._contrastive(stored[rows].float(), concept[rows], generator)
            return contrastive, {"contrastive": contrastive}

        tower = model.tower
        last = nn.ModuleList([tower.encoder.layers[-1], tower.head, tower.post_layernorm])
        heads = [model.captions, model.picture_projection, model.log_scale, model.bias]
        rates = (recipe.contrastive_matrix_learning_rate, recipe.contrastive_learning_rate)
        self._fit("contrastive", recipe.contrastive_steps, rates, last, heads, len(stored), loss)
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        scores = {"code_step": recipe.code_steps, **self._heads(self._averaged(), coded=True)}
        self.evaluations.append(scores)
        print("codes  validation  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))

    def _fit(
        self,
        name: str,
        steps: int,
        rates: tuple[float, float],
        layers: nn.Module,
        heads: Sequence[nn.Module | nn.Parameter],
        count: int,
        loss: Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]],
    ) -> None:
        """Fit a later part to `loss` of rows drawn from `count`, at the peak `rates` of Muon and
        AdamW; its log's rows have `NAME_step`."""
        recipe, started = self.recipe, time.monotonic()
        matrices = [p for p in layers.parameters() if p.ndim == 2]
        rest = [p for p in layers.parameters() if p.ndim != 2]
        for head in heads:
            rest += [head] if isinstance(head, nn.Parameter) else head.parameters()
        optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, rates[0], weight_decay=0.01, iterations=4),
            torch.optim.AdamW(rest, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.model.train()
        totals: dict[str, float] = {}
        for step in range(steps):
            generator = self.generator(0, step + 1)
            rows = torch.randint(count, (recipe.code_batch_size,), generator=generator)
            value, shown = loss(rows, generator)
            for optimizer in optimizers:
                optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_([*matrices, *rest], 1.0)
            part = min(1.0, (step + 1) / 50, 1.2 * (steps - step) / steps)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * part
                optimizer.step()
            for key, figure in shown.items():
                totals[key] = totals.get(key, 0.0) + float(figure.detach())
            if (step + 1) % recipe.log_every == 0 or step + 1 == steps:
                since = (step % recipe.log_every) + 1
                row = {key: round(total / since, 4) for key, total in totals.items()}
                seconds = self.seconds + time.monotonic() - started
                self.log.append({f"{name}_step": step + 1, "seconds": round(seconds, 1), **row})
                text = "  ".join(f"{key} {figure:.3f}" for key, figure in row.items())
                print(f"{name} {step + 1}/{steps}  {seconds:.0f} s  {text}", flush=True)
                totals = {}
        self.seconds += time.monotonic() - started

    @torch.no_grad()
    def _raised(self, classes: Tensor) -> Tensor:
        """What Maya reads, hidden_states[-2], of stored features of the classes' layers."""
        self.model.eval()
        return torch.cat([self.model.before_last(part.float()) for part in classes.split(256)])

    @torch.no_grad()
    def _lower(self, pixels: Tensor) -> Tensor:
        self.model.eval()
        return torch.cat(
            [self.model.classes(_normalize(part.float() / 255)) for part in pixels.split(256)]
        )

    @torch.no_grad()
    def _redrawn(self) -> tuple[Tensor, Tensor]:
        """Features of every training picture redrawn `code_copies` times, float16 [n, patches,
        hidden], and the concepts [n]."""
        train, found = self.dataset.train, []
        self.model.eval()
        for copy in range(self.recipe.code_copies):
            strength = (copy + 1) / self.recipe.code_copies
            for number, rows in enumerate(torch.arange(len(train.concept)).split(128)):
                pictures = augment(
                    train.pixels[rows].float() / 255,
                    self.dataset.may_flip[train.concept[rows]],
                    self.recipe.augmentation.at(strength),
                    self.generator(3, (copy + 1) * 100_003 + number),
                )
                found.append(self.model.classes(_normalize(pictures)).half())
        return torch.cat(found), train.concept.repeat(self.recipe.code_copies)

    def train(self) -> None:
        recipe, started = self.recipe, time.monotonic()
        totals: dict[str, float] = {}
        since = 0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        while self.step < recipe.steps:
            rate = min(
                1.0,
                (self.step + 1) / max(1, recipe.warmup_steps),
                (recipe.steps - self.step) / max(1, recipe.cooldown_steps),
            )
            self.model.train()
            losses = self._loss()
            accuracy = losses.pop("accuracy")
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"step {self.step}: the loss is {loss.item()}; lower learning_rate and "
                    "matrix_learning_rate in the recipe"
                )
            for optimizer, _ in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, peak in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
                optimizer.step()
            self._update_average()
            self.step += 1
            since += 1
            for name, value in [*losses.items(), ("accuracy", accuracy), ("loss", loss)]:
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            last = self.step == recipe.steps
            if self.step % recipe.log_every == 0 or last:
                row = {name: round(value / since, 4) for name, value in totals.items()}
                seconds = self.seconds + time.monotonic() - started
                self.log.append({"step": self.step, "seconds": round(seconds, 1), **row})
                shown = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
                print(f"step {self.step}/{recipe.steps}  {seconds:.0f} s  {shown}", flush=True)
                totals, since = {}, 0
            if self.step % recipe.evaluate_every == 0 or last:
                scores = {"step": self.step, **self._heads(self._averaged())}
                self.evaluations.append(scores)
                shown = "  ".join(f"{k} {v:.4f}" for k, v in scores.items() if k != "step")
                print(f"step {self.step}/{recipe.steps}  validation  {shown}", flush=True)
            if self.step % recipe.save_every == 0 or last:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self._save_state()

    def _update_average(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    def _averaged(self) -> TowerTrainer:
        codes = self.model.code.codes
        model = TowerTrainer(self.recipe, codes, len(self.dataset.categories))
        model.load_state_dict(self.average)
        return model.eval()

    @torch.no_grad()
    def _heads(self, model: TowerTrainer, coded: bool = False) -> dict[str, float]:
        """Scores of the training heads on the validation styles, all seen concepts: those of the
        first part, or (`coded`) of the second."""
        concept = self.dataset.validation.concept
        category = self.dataset.category
        means, codes, patches, kinds, embedded = [], [], [], [], []
        for pixels in self.dataset.validation.pixels.split(256):
            classes = model.classes(_normalize(pixels.float() / 255))
            if coded:  # the second part rescales the stream that the classes' norms know
                before_last = model.before_last(classes)
                codes.append(model.code.cosines(before_last.mean(1)))
                embedded.append(model.embed(before_last))
                continue
            mean = model.mean_norm(classes.mean(1))
            means.append(model.concept(mean))
            codes.append(model.code(mean))
            kinds.append(model.category(mean))
            flat = model.patch_norm(classes.flatten(0, 1))
            patches.append(model.patch_concept(flat).view(*classes.shape[:2], -1)[:, 0])
        said = torch.cat(codes)
        scores = {"code_top1": _top(said, concept, 1)}
        if not coded:
            logits = torch.cat(means)
            scores |= {
                "top1": _top(logits, concept, 1),
                "top5": _top(logits, concept, 5),
                "first_patch_top1": _top(torch.cat(patches), concept, 1),
                "category": _top(torch.cat(kinds), category[concept], 1),
                "category_of_top1": float(
                    (category[logits.argmax(1)] == category[concept]).float().mean()
                ),
            }
        else:
            scores["code_cosine"] = float(said.gather(1, concept[:, None]).mean())
            pictures = torch.cat(embedded)
            for number, language in enumerate(self.recipe.languages):
                named = [row for row, caption in enumerate(self.features) if caption[number]]
                captions = model.captions([self.features[row][number] for row in named])
                similarity = pictures @ F.normalize(captions, dim=-1).T
                column = torch.full((len(self.features),), -1).index_put(
                    (torch.tensor(named),), torch.arange(len(named))
                )[concept]
                scores[f"caption_top5_{language}"] = _top(
                    similarity[column >= 0], column[column >= 0], 5
                )
        return {name: round(value, 4) for name, value in scores.items()}

    def _state_path(self) -> Path:
        return self.output_dir / STATE_FILE

    def _save_state(self) -> None:
        """Everything that the next step depends on, in one atomically replaced file."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors.update({f"average.{name}": value for name, value in self.average.items()})
        for number, (optimizer, _) in enumerate(self.optimizers):
            for place, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer.{number}.{place}.{name}"] = value
        notes = {
            "key": self.key,
            "step": self.step,
            "steps": self.recipe.steps,
            "seconds": self.seconds,
            "log": self.log,
            "evaluations": self.evaluations,
        }
        with atomic(self._state_path()) as temporary:
            safetensors.torch.save_file(
                {name: value.clone() for name, value in tensors.items()},
                temporary,
                metadata={"run": json.dumps(notes)},
            )

    def resume(self) -> None:
        """Continue from the state in the output folder, if there is one."""
        path = self._state_path()
        if not path.exists():
            return
        with safetensors.safe_open(path, framework="pt") as stored:
            notes = json.loads((stored.metadata() or {}).get("run", "{}"))
            if notes.get("key") != self.key:
                raise ValueError(
                    f"{path}: the state of a run with another recipe or dataset; give another "
                    "output folder, or delete this file to start anew"
                )
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            if part == "optimizer":
                number, place, key = rest.split(".")
                states[int(number)].setdefault(int(place), {})[key] = value
            else:
                parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        self.average = parts["average"]
        for (optimizer, _), state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step, self.seconds = notes["step"], notes["seconds"]
        self.log, self.evaluations = notes["log"], notes["evaluations"]
        if notes["steps"] != self.recipe.steps and self.step > (
            min(notes["steps"], self.recipe.steps) - self.recipe.cooldown_steps
        ):
            raise ValueError(
                f"{path}: at step {self.step} of {notes['steps']} the cool-down has begun; `steps` "
                f"cannot become {self.recipe.steps} any more"
            )
        print(f"continuing after step {self.step}", flush=True)

    def save(self) -> Path:
        """Write the averaged tower and what is known about it; returns the folder."""
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        tower = self._averaged().tower
        scale_stream(tower, read_features(tower, self.dataset.train.pixels[::4]))
        tower = tower.to(STORAGE_DTYPES[self.recipe.storage_dtype])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        partial = self.output_dir / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        tower.save_pretrained(partial)
        ordinary_permissions(partial / "model.safetensors")
        side = self.recipe.image_size
        SiglipImageProcessorPil(
            size={"height": side, "width": side},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            resample=Image.Resampling.BICUBIC,
        ).save_pretrained(partial)
        recipe = {"kind": "vision_tower", **dataclasses.asdict(self.recipe)}
        (partial / "recipe.yaml").write_text(
            yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        metrics = self._metrics(SiglipVisionModel.from_pretrained(partial, dtype=torch.float32))
        (partial / "metrics.json").write_text(
            json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        # The weights go last: a folder with weights is complete.
        for file in sorted(partial.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            os.replace(file, self.output_dir / file.name)
        partial.rmdir()
        self._state_path().unlink(missing_ok=True)
        saved = metrics["stored_weights"]
        print("stored weights, validation  " + "  ".join(f"{k} {v}" for k, v in saved.items()))
        return self.output_dir

    def _metrics(self, tower: SiglipVisionModel) -> dict[str, Any]:
        data = self.dataset
        return {
            "what": "SigLIP vision tower of the mini Maya; scores are shares of pictures named right",
            "validation_styles": self.recipe.validation_styles,
            "train_styles": self.recipe.train_styles,
            "note": "No other style was read, and no held-out concept in any style.",
            "concepts": len(data.concepts),
            "held_out_concepts": data.held_out,
            "train_pictures": len(data.train.concept),
            "validation_pictures": len(data.validation.concept),
            "chance_top1": 1 / len(data.concepts),
            "stored_weights": probe(tower.eval(), data),
            "heads_before_storing": self.evaluations[-1] if self.evaluations else {},
            "storage_dtype": self.recipe.storage_dtype,
            "parameters": tower.num_parameters(),
            "seconds": round(self.seconds, 1),
            "seed": self.recipe.seed,
            "threads": torch.get_num_threads(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "run_key": self.key,
            "evaluations": self.evaluations,
            "log": self.log,
        }


@torch.no_grad()
def scale_stream(tower: SiglipVisionModel, features: Tensor, deviation: float = 1.0) -> None:
    """Give hidden_states[-2] a standard deviation of 1, and change nothing else.

    Every reader of the residual stream inside the tower normalises it first, so the stream may be
    scaled by scaling all that is written to it. Maya's projector reads it as it is, and a linear
    layer learns best from numbers near 1.

    Args:
        tower: changed in place.
        features: float [n, patches, hidden], the stream of some pictures where it is to be scaled.
        deviation: the standard deviation that it gets.
    """
    factor = float(deviation / (features - features.mean((0, 1))).std())
    written = [
        tower.embeddings.patch_embedding.weight,
        tower.embeddings.patch_embedding.bias,
        tower.embeddings.position_embedding.weight,
    ]
    for layer in tower.encoder.layers:
        written += [*layer.self_attn.out_proj.parameters(), *layer.mlp.fc2.parameters()]
    for parameter in written:
        parameter.mul_(factor)


def class_scores(features: Tensor, keys: Tensor) -> Tensor:
    """What a memory's units answer to: float [n, patches, hidden] to float [n, concepts].

    Features are normalised before and after the mean over patches, as in a layer that first attends
    to all patches alike.
    """
    shape = features.shape[-1:]
    return F.layer_norm(F.layer_norm(features, shape).mean(1), shape) @ keys.T


@torch.no_grad()
def write_memory(
    layers: Sequence[nn.Module],
    keys: Tensor,
    codes: Tensor,
    threshold: float,
    sharpness: float,
    gain: float,
    stream: float,
) -> None:
    """Make the MLPs of `layers` a memory, which answers to what is near to a key with its code.

    The first layer's attention adds to every patch the mean over all. A unit's input is
    `sharpness` x (the class score of its key - `threshold`), and what it answers with, its
    activation x `gain` / `sharpness`, goes into the stream along the code, in lengths of that mean.
    Concepts whose codes are alike are in one layer, so that those that could be taken for each other
    answer to the same stream; units left over keep their random input and write nothing.

    Args:
        layers: SiglipEncoderLayers that write nothing yet, changed in place; their norms must still
            be the identity.
        keys: float [concepts, hidden], of `class_scores`.
        codes: float [concepts, hidden], rows of length 1, at most as many as the layers have units.
        stream: standard deviation of the mean that is added.
    """
    width = codes.shape[1]
    attention, identity = layers[0].self_attn, torch.eye(width)
    for alike in (attention.q_proj, attention.k_proj):
        alike.weight.zero_()
        alike.bias.zero_()
    attention.v_proj.weight.copy_(identity)
    attention.v_proj.bias.zero_()
    attention.out_proj.weight.copy_(stream * identity)
    direction = torch.linalg.svd(codes - codes.mean(0), full_matrices=False).Vh[0]
    order = (codes @ direction).argsort()
    for layer, own in zip(layers, order.tensor_split(len(layers)), strict=True):
        mlp, count = layer.mlp, len(own)
        mlp.fc1.weight[:count] = sharpness * keys[own]
        mlp.fc1.bias[:count] = -sharpness * threshold
        mlp.fc2.weight.zero_()
        mlp.fc2.weight[:, :count] = gain * stream * math.sqrt(width) / sharpness * codes[own].T


@torch.no_grad()
def read_features(tower: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """What Maya reads: hidden_states[-2], float [n, patches, hidden], of uint8 [n, 3, size, size]."""
    return torch.cat(
        [
            tower(_normalize(part.float() / 255), output_hidden_states=True).hidden_states[-2]
            for part in pixels.split(256)
        ]
    )


def probe(tower: SiglipVisionModel, dataset: Dataset) -> dict[str, float]:
    """How well concepts can be read off hidden_states[-2], by two probes fitted to train styles.

    `linear_*` is a linear classifier on the mean over patches, fitted with AdamW for 300 full
    passes; `centroid_*` compares that mean, standardised, with each concept's mean over the train
    styles by cosine. Scores are on the validation styles.
    """
    train = read_features(tower, dataset.train.pixels).mean(1)
    validation = read_features(tower, dataset.validation.pixels).mean(1)
    scale = float(train.std())
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, validation = (train - mean) / deviation, (validation - mean) / deviation
    concept, right = dataset.train.concept, dataset.validation.concept

    sums = torch.zeros(len(dataset.concepts), train.shape[1]).index_add_(
        0, concept, F.normalize(train, dim=1)
    )
    near = F.normalize(validation, dim=1) @ F.normalize(sums, dim=1).T

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(train.shape[1], len(dataset.concepts))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.03, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(linear(train), concept, label_smoothing=0.1).backward()
        optimizer.step()
    with torch.no_grad():
        logits = linear(validation)
    category = dataset.category
    scores = {
        "linear_top1": _top(logits, right, 1),
        "linear_top5": _top(logits, right, 5),
        "linear_category": float((category[logits.argmax(1)] == category[right]).float().mean()),
        "centroid_top1": _top(near, right, 1),
        "centroid_top5": _top(near, right, 5),
        "feature_std": scale,
    }
    return {name: round(value, 4) for name, value in scores.items()}


def _normalize(pictures: Tensor) -> Tensor:
    """0 to 1 becomes -1 to 1, as the image processor does with mean and deviation 0.5."""
    return pictures * 2 - 1


def _top(scores: Tensor, right: Tensor, count: int) -> float:
    """Share of rows whose right column is among the `count` highest."""
    above = (scores > scores.gather(1, right[:, None])).sum(1)
    return float((above < count).float().mean())
