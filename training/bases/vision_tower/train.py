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

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from PIL import Image
from transformers import SiglipVisionModel

from ...common.files import write_json, write_text
from ..storing import complete_folder
from .classes import train_classes
from .codes import train_captions, train_codes
from .dataset import read_dataset
from .network import read_features, scale_stream
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
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    recipe, folder = run.recipe, run.output_dir
    tower = run.averaged().tower
    scale_stream(tower, read_features(tower, run.dataset.train.pixels[::4]))
    tower = tower.to(getattr(torch, recipe.storage_dtype))
    folder.mkdir(parents=True, exist_ok=True)
    # Weights are moved last: a folder with weights is complete.
    with complete_folder(folder, folder / ".partial", lambda f: f.suffix == ".safetensors") as part:
        tower.save_pretrained(part)
        SiglipImageProcessorPil(
            size={"height": recipe.image_size, "width": recipe.image_size},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            resample=Image.Resampling.BICUBIC,
        ).save_pretrained(part)
        values = {"kind": "vision_tower", **dataclasses.asdict(recipe)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_text(part / "recipe.yaml", text)
        metrics = _metrics(run, SiglipVisionModel.from_pretrained(part, dtype=torch.float32))
        write_json(part / "metrics.json", metrics)
    run.state_path.unlink(missing_ok=True)
    saved = metrics["stored_weights"]
    print("stored weights, validation  " + "  ".join(f"{k} {v}" for k, v in saved.items()))
    return folder


def _print_parts(run: TowerRun) -> None:
    tower, data, recipe = run.model.tower, run.dataset, run.recipe
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
    print(
        f"{len(data.concepts)} concepts ({data.held_out} held out), "
        f"{len(data.train.concept)} pictures to train on "
        f"({', '.join(recipe.train_styles)}), {len(data.validation.concept)} to validate "
        f"on ({', '.join(recipe.validation_styles)})",
        flush=True,
    )


def _metrics(run: TowerRun, tower: SiglipVisionModel) -> dict[str, Any]:
    data, recipe = run.dataset, run.recipe
    return {
        "what": "SigLIP vision tower of the mini Maya; scores are shares of pictures named right",
        "validation_styles": recipe.validation_styles,
        "train_styles": recipe.train_styles,
        "note": "No other style was read, and no held-out concept in any style.",
        "concepts": len(data.concepts),
        "held_out_concepts": data.held_out,
        "train_pictures": len(data.train.concept),
        "validation_pictures": len(data.validation.concept),
        "chance_top1": 1 / len(data.concepts),
        "stored_weights": probe(tower.eval(), data),
        "heads_before_storing": run.evaluations[-1] if run.evaluations else {},
        "storage_dtype": recipe.storage_dtype,
        "parameters": tower.num_parameters(),
        "seconds": round(run.seconds, 1),
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "run_key": run.key,
        "evaluations": run.evaluations,
        "log": run.log,
    }
