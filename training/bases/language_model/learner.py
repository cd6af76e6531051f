"""One training step, and the state that the next step depends on."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CohereForCausalLM

from ..muon import Muon
from ..storing import (
    load_optimizers,
    optimizer_tensors,
    part_of,
    read_state,
    save_state,
    set_rates,
)
from .corpus import Batch, Corpus
from .network import answer_loss, group_attention, soft_contexts
from .recipe import LanguageModelRecipe


class Learner:
    """Model, code head and optimizers; a step is a pure function of (state, step number)."""

    def __init__(self, model: CohereForCausalLM, corpus: Corpus):
        recipe = corpus.recipe
        self.model, self.corpus, self.recipe = model, corpus, recipe
        # A model of text only has no soft contexts, and its names are not mapped to codes either.
        codes = recipe.soft_contexts or recipe.code_loss
        self.soft = soft_contexts(corpus) if codes else torch.zeros(0, recipe.hidden_size)
        self.code_head = nn.Linear(recipe.hidden_size, recipe.hidden_size)
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        others = [p for p in model.model.layers.parameters() if p.ndim != 2]
        others += [model.model.norm.weight, model.model.embed_tokens.weight]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, recipe.muon_learning_rate, recipe.weight_decay),
            torch.optim.AdamW(
                [*others, *self.code_head.parameters()],
                recipe.learning_rate,
                betas=(0.9, 0.98),
                weight_decay=0.0,
            ),
        ]
        self.rates = [recipe.muon_learning_rate, recipe.learning_rate]
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """Do one update; return the losses and the number of questions."""
        recipe = self.recipe
        batch = self.corpus.sample(
            np.random.default_rng((recipe.seed, 1, self.step)),
            self._concepts(),
            0.25 + 0.75 * min(1.0, self.step / max(1.0, recipe.steps * recipe.ramp)),
        )
        loss, _, states = answer_loss(self.model, self.corpus, batch, self.soft, self.step)
        code_loss = self._code_loss(states.middle, batch)
        match_loss = self._match_loss(states.looks, batch)
        (loss + recipe.code_loss * code_loss + recipe.match_loss * match_loss).backward()
        set_rates(self.optimizers, self.rates, schedule(self.step, recipe))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "code_loss": float(code_loss.detach()),
            "match_loss": float(match_loss.detach()),
            "questions": len(batch.segments),
        }

    def _code_loss(self, middle: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of the concept read from the middle layer, at `batch.code_at`."""
        if not len(batch.code_at) or not self.recipe.code_loss:
            return middle.sum() * 0
        at = middle.reshape(-1, middle.shape[-1])[batch.code_at]
        read = self.code_head(F.layer_norm(at, at.shape[-1:]))
        codes = F.normalize(self.soft, dim=1)
        return F.cross_entropy(read @ codes.T, batch.code_of)

    def _match_loss(self, looks: Tensor, batch: Batch) -> Tensor:
        """Return the binary cross-entropy between a claim's truth and its attention to the context."""
        if not len(looks):
            return looks.sum() * 0
        row, first = batch.claim_at // looks.shape[1], len(self.corpus.prefix)
        seen = group_attention(batch.segment)[row, 0, batch.claim_at % looks.shape[1]]
        context = torch.zeros_like(seen)
        context[:, first : first + self.recipe.context_slots] = True
        inside = looks.masked_fill(~context, -math.inf).logsumexp(1)
        outside = looks.masked_fill(context | ~seen, -math.inf).logsumexp(1)
        return F.binary_cross_entropy_with_logits(inside - outside, batch.claim_true)

    def _concepts(self) -> np.ndarray:
        """Return the concepts of this step; every epoch is one shuffle of all concepts."""
        rows, count = self.recipe.rows_per_step, len(self.corpus.concepts)
        wanted = np.arange(self.step * rows, (self.step + 1) * rows)
        return np.concatenate(
            [
                np.random.default_rng((self.recipe.seed, 2, int(epoch))).permutation(count)[
                    wanted[wanted // count == epoch] % count
                ]
                for epoch in np.unique(wanted // count)
            ]
        )

    # The state is tensors and a step number; random draws depend only on seed and step.

    def save(self, path: Path, key: str, seconds: float) -> None:
        """Replace the state at `path` by the current one."""
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"code_head.{n}": p.detach() for n, p in self.code_head.named_parameters()}
        notes = {"step": str(self.step), "key": key, "seconds": str(seconds)}
        save_state(path, tensors | optimizer_tensors(self.optimizers), notes)

    def load(self, path: Path, key: str) -> float | None:
        """Restore `path` if it has the same recipe and texts; return the seconds spent, else None."""
        if not path.is_file():
            return None
        tensors, notes = read_state(path)
        if notes["key"] != key:
            return None
        # Tied weights are stored once, so some of the model's names are missing.
        self.model.load_state_dict(part_of(tensors, "model"), strict=False)
        self.code_head.load_state_dict(part_of(tensors, "code_head"))
        load_optimizers(self.optimizers, tensors)
        self.step = int(notes["step"])
        return float(notes["seconds"])


def schedule(step: int, recipe: LanguageModelRecipe) -> float:
    """Return the factor of the peak rates at a step: warm-up, constant, then linear decay to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    fall = int(recipe.steps * recipe.hold)
    return 1.0 if step < fall else max(0.0, (recipe.steps - step) / max(1, recipe.steps - fall))
