"""The later parts of training, on stored features of the class layers: text codes, then captions.

In the second part the code layers learn to express the classes as text codes. In the third part the last
layer and the pooling head learn from captions, as in SigLIP.
"""

import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .memory import class_keys, class_scores, write_memory
from .network import read_before_last, read_classes, scale_stream
from .probe import score_codes
from .run import TowerRun


def train_codes(run: TowerRun) -> tuple[Tensor, Tensor]:
    """Train the second part, on features of the averaged lower layers.

    Returns:
        The features, float16 [n, patches, hidden], and their concepts, int64 [n].
    """
    recipe, model, started = run.recipe, run.model, time.monotonic()
    model.load_state_dict(run.average)
    # The code layers add to the stream, so make it faint: what they add then stands out. Also subtract
    # the mean over images, which the layers would otherwise have to remove first.
    lower = read_classes(model, run.dataset.train.pixels[::8])
    with torch.no_grad():
        last = model.tower.encoder.layers[model.class_layers - 1]
        last.mlp.fc2.bias -= lower.mean((0, 1))
    scale_stream(model.tower, lower, recipe.code_stream)
    stored, concept = _redrawn_features(run)
    seconds = time.monotonic() - started
    print(f"{len(stored)} redrawn pictures read  {seconds:.0f} s", flush=True)
    keys, offset = class_keys(model, stored[:: recipe.code_copies])
    layers = model.tower.encoder.layers[model.class_layers : -1]
    write_memory(
        layers[: recipe.memory_layers],
        keys,
        model.code.codes,
        threshold=offset + recipe.memory_threshold,
        sharpness=recipe.memory_sharpness,
        gain=recipe.memory_gain,
        stream=4 * recipe.code_stream,  # a single patch's own features are small compared to it
    )
    rates = (recipe.code_matrix_learning_rate, recipe.code_learning_rate)
    loss = partial(_code_loss, run, stored, keys)
    run.fit("code", recipe.code_steps, rates, layers, [], len(stored), loss)
    # Subtract the mean of all codes, which a projector would otherwise have to learn to remove.
    with torch.no_grad():
        raised = read_before_last(model, stored[:: recipe.code_copies])
        layers[-1].mlp.fc2.bias -= raised.mean((0, 1))
    return stored, concept


@torch.no_grad()
def _redrawn_features(run: TowerRun) -> tuple[Tensor, Tensor]:
    """Return features of every training image, augmented `code_copies` times, and the concepts."""
    concept, copies, found = run.dataset.train.concept, run.recipe.code_copies, []
    run.model.eval()
    for copy in range(1, copies + 1):
        for number, rows in enumerate(torch.arange(len(concept)).split(128)):
            pictures = run.redrawn(rows, copy / copies, run.generator(3, copy * 100_003 + number))
            found.append(run.model.classes(pictures).half())
    return torch.cat(found), concept.repeat(copies)


def _code_loss(
    run: TowerRun, stored: Tensor, keys: Tensor, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Train the codes to express the class scores, right or wrong, also for mixtures of images."""
    recipe, model = run.recipe, run.model
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
    figures = {
        "code": concepts,
        "cosine": code[: len(rows)].mean(),
        "agreement": agreeing.float().mean(),
    }
    return concepts + recipe.code_cosine_weight * (1 - code.mean()), figures


def train_captions(run: TowerRun, lower: Tensor, concept: Tensor) -> None:
    """Train the third part, and score codes and captions.

    Args:
        lower, concept: results of `train_codes`.
    """
    recipe, model, tower = run.recipe, run.model, run.model.tower
    stored = read_before_last(model, lower).half()
    last = nn.ModuleList([tower.encoder.layers[-1], tower.head, tower.post_layernorm])
    heads = [model.captions, model.picture_projection, model.log_scale, model.bias]
    rates = (recipe.contrastive_matrix_learning_rate, recipe.contrastive_learning_rate)
    loss = partial(_contrastive_loss, run, stored, concept)
    run.fit("contrastive", recipe.contrastive_steps, rates, last, heads, len(stored), loss)
    run.average = {name: value.clone() for name, value in model.state_dict().items()}
    scores = score_codes(run.averaged(), run.dataset, recipe.languages, run.features)
    run.evaluations.append({"code_step": recipe.code_steps, **scores})
    print(
        "codes  validation  " + "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
    )


def _contrastive_loss(
    run: TowerRun, stored: Tensor, concepts: Tensor, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute SigLIP's loss of images against one caption each, in a random language per image."""
    model, concept, features = run.model, concepts[rows], []
    draws = torch.rand(len(rows), generator=generator).tolist()
    for number, draw in zip(concept.tolist(), draws, strict=True):
        named = [caption for caption in run.features[number] if caption]
        features.append(named[int(draw * len(named))])
    captions = F.normalize(model.captions(features), dim=-1)
    similarity = model.embed(stored[rows].float()) @ captions.T
    pair_logits = similarity * model.log_scale.exp() + model.bias
    # If two images of a batch show one concept, each matches both captions.
    target = (concept[:, None] == concept[None]).float() * 2 - 1
    contrastive = -F.logsigmoid(target * pair_logits).sum() / len(rows)
    return contrastive, {"contrastive": contrastive}
