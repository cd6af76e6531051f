"""Train the mini vision tower: a small SigLIP that knows emoji concepts across art styles.

It is to the mini Maya what SigLIP is to Maya. It is trained on the mini dataset alone, in three parts:

1. Concept classification trains the lower layers; without this start the other parts learn far too
   slowly at this size. The mean over patches and single random patches must both contain the concept. A
   linear reader of the concepts' text codes (text_codes.py) learns together with them.
2. The lower layers are frozen. `code_layers` further layers express what is seen in terms of words: the
   layer before last, which Maya reads, must come close to the text code, again in the mean and in single
   patches, so that the decoder finds the concept in whatever patch it attends to. No linear map leads from
   classes, arranged by looks, to codes, arranged by words. Layers that learn such a map from the training
   images memorize these, and name fewer concepts of an unseen style than the classes do. So known facts
   are not learned: the first `memory_layers` of these layers begin as an associative memory. Each unit of
   their MLPs responds to one class and adds its code to the stream (Geva et al., 2021,
   arXiv:2012.14913, found that feed-forward layers work this way). Training then removes the
   interference between units. Its target is the class scores, right or wrong, also of mixtures of images
   (function matching: Beyer et al., 2022, arXiv:2106.05237).
3. The last layer and the pooling head are trained on top as in SigLIP, with the pairwise sigmoid loss
   against captions in all languages (Zhai et al., 2023, arXiv:2303.15343). The caption encoder is a bag
   of hashed character n-grams, used only here and not saved.

Concepts that the dataset holds out (seen = False) are in no batch, neither as image nor as text. Matrices
inside the layers are updated with Muon (Jordan et al., 2024), everything else with AdamW.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..image_run import print_data
from .classes import train_classes
from .codes import train_captions, train_codes
from .dataset import read_dataset
from .probe import probe
from .recipe import VisionTowerRecipe
from .run import TowerRun


def train_vision_tower(recipe: VisionTowerRecipe, output_dir: Path) -> Path:
    """Train a tower, save it in `output_dir`, and return that folder.

    The folder gets config.json, model.safetensors, preprocessor_config.json, the resolved recipe.yaml
    and metrics.json. During training it also holds the state of the run; the same call continues from
    it, a call with a changed recipe does not.

    Raises:
        FileNotFoundError: if the dataset does not exist.
        ValueError: if recipe or dataset are bad, or output_dir holds the state of another run.
    """
    run = TowerRun(recipe, read_dataset(recipe), Path(output_dir))
    _print_parts(run)
    train_classes(run)
    train_captions(run, *train_codes(run))
    return save_tower(run)


def save_tower(run: TowerRun) -> Path:
    """Save the averaged tower and its metrics, remove the state, and return the folder."""

    def metrics(tower: PreTrainedModel) -> dict[str, Any]:
        return {
            "what": "SigLIP vision tower of the mini Maya; scores are shares of pictures named right",
            "stored_weights": probe(tower, run.dataset),
            "heads_before_storing": run.evaluations[-1] if run.evaluations else {},
        }

    return run.save_tower("vision_tower", run.averaged().tower, metrics)


def _print_parts(run: TowerRun) -> None:
    tower = run.model.tower
    layers, patches = tower.encoder.layers, tower.embeddings.num_patches
    heads = sum(p.numel() for p in run.model.parameters()) - tower.num_parameters()
    read = sum(p.numel() for part in (tower.embeddings, layers[:-1]) for p in part.parameters())
    rows = [
        ("vision tower, read by Maya", read, f"{patches} patches of {tower.config.hidden_size}"),
        ("vision tower, last layer and head", tower.num_parameters() - read, "saved"),
        ("classifiers and caption encoder", heads, "training only"),
    ]
    for name, count, note in rows:
        print(f"{name:<36}{count:>12,}  trained  {note}")
    print_data(run)
