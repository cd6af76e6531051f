"""A small Cohere language model that reads its context, trained on text alone.

A decoder trained on bare captions and then frozen has no reason to look at what precedes them, so
a projector has nothing to align to. Here the answer always depends on what stands at the place
where the image tokens will stand: a description of one concept, of which the model is asked the
name in ten languages, the category, keywords, or yes/no about a stated name. The description is

- text: the concept's name in English or another language, its keywords, or a shuffled, thinned
  and padded version of these; or
- soft: the concept's text code (text_codes.py), laid into every slot with noise, gaps and a share
  of a confusable concept. This is what projected image features look like to a decoder:
  continuous, distributed and uncertain.

To say whether a stated name is true of a context, the name must first become something that can be
compared with it. Yes/no alone, one bit a question, teaches that too slowly; so half way up the
decoder a linear head, thrown away afterwards, must read the code of a stated name off the last
token of its question, and in the layer above, the first attention head must look at a soft context
from there just if the name is its own: queries and keys are what compares.

One row of a batch is one context with many questions about it. All questions see the context and
none sees another (the attention rule of a group), so the context is computed once.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from processing_maya import load_chat_template

from ...common.files import atomic
from ...common.permissions import ordinary_permissions
from ...common.reading import read_json
from ..muon import Muon
from ..text_codes import concept_codes
from .context_tasks import Batch, Concepts, Corpus, read_concepts, read_prompts, tokenizer_texts
from .recipe import LanguageModelRecipe
from .tokenizer import load_tokenizer, train_tokenizer

SHIPPED_DATASET = Path(__file__).parents[2] / "data" / "mini"
PROMPTS = Path(__file__).parents[2] / "data" / "mini_dataset" / "prompts.json"

# --------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------


def build_language_model(recipe: LanguageModelRecipe, end_of_turn: int) -> CohereForCausalLM:
    """A CohereForCausalLM with fresh weights; seeded by the recipe."""
    torch.manual_seed(recipe.seed)
    config = CohereConfig(
        vocab_size=recipe.embedding_rows,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        logit_scale=recipe.logit_scale,
        initializer_range=recipe.initializer_range,
        # CohereConfig's own default is 500,000; Aya-23's is 10,000, so it is written out.
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    model = CohereForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(recipe.output_initializer_scale)
            layer.mlp.down_proj.weight.mul_(recipe.output_initializer_scale)
    return model


def group_attention(segment: Tensor) -> Tensor:
    """(R, 1, L, L) bool, True where a position may look: back in its own segment, and at the context."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    own = segment[:, :, None] == segment[:, None, :]
    context = segment[:, None, :] == 0
    return (causal & (own | context))[:, None]


@dataclasses.dataclass
class States:
    """What `hidden_states` returns. last, middle: hidden states (R, L, D), the decoder's last and
    those half way up. looks: (K, L) attention scores of the first head on those, in its row."""

    last: Tensor
    middle: Tensor
    looks: Tensor


def hidden_states(
    model: CohereForCausalLM,
    x: Tensor,
    positions: Tensor,
    mask: Tensor,
    look_at: Tensor | None = None,
) -> States:
    """The decoder's hidden states from embeddings x (R, L, D).

    look_at: (K,) positions, into R*L, of which `looks` are wanted.

    The last are the same numbers as `model.model(inputs_embeds=..., position_ids=..., attention_mask=...)` with
    one product for query, key, value, gate and up, and fused norms: the library's own forward
    spends a third of a small model's time in element-wise steps on a CPU.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    angle = positions[..., None].float() * model.model.rotary_emb.inv_freq
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]  # (R, L, 1, size / 2)
    rows, length, width = x.shape
    splits = [heads * size, kv_heads * size, kv_heads * size, *[config.intermediate_size] * 2]
    middle, looks = x, x.new_zeros(0, length)
    half = (len(model.model.layers) + 1) // 2
    for number, layer in enumerate(model.model.layers):
        if number == half:
            middle = x
        attn, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        h = F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)
        weight = torch.cat(
            [
                attn.q_proj.weight,
                attn.k_proj.weight,
                attn.v_proj.weight,
                mlp.gate_proj.weight,
                mlp.up_proj.weight,
            ]
        )
        q, k, v, gate, up = F.linear(h, weight).split(splits, dim=-1)
        q = _rotate(q.reshape(rows, length, heads, size), turn)
        k = _rotate(k.reshape(rows, length, kv_heads, size), turn)
        v = v.reshape(rows, length, kv_heads, size).transpose(1, 2)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
        if number == half and look_at is not None:
            row, place = look_at // length, look_at % length
            looks = (k[row, 0] @ q[row, 0, place, :, None])[..., 0] / math.sqrt(size)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = a.transpose(1, 2).reshape(rows, length, heads * size)
        x = x + attn.o_proj(a) + mlp.down_proj(F.silu(gate) * up)
    norm = model.model.norm
    last = F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)
    return States(last, middle, looks)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Cohere's interleaved rotary embedding as a complex product: (R, L, H, S) to (R, H, L, S)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).transpose(1, 2)


def embed(model: CohereForCausalLM, batch: Batch, soft: Tensor, prefix: int, seed: int) -> Tensor:
    """Embeddings of a batch (R, L, D), soft contexts mixed from the codes `soft` (C, D) laid in."""
    x = model.model.embed_tokens(batch.ids)
    rows = len(batch.soft_rows)
    if not rows:
        return x
    slots = batch.soft_weights.shape[1]
    size = soft.pow(2).mean().sqrt()
    noise = torch.randn(
        rows, slots + 1, soft.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    noise = noise * batch.soft_noise[:, :, None] * size
    shared = soft[batch.soft_concepts]  # (rows, 2, D)
    laid = batch.soft_weights @ shared + noise[:, :slots] + noise[:, slots:]
    x = x.index_put((batch.soft_rows[:, None], torch.arange(prefix, prefix + slots)[None]), laid)
    return x


# --------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------


class _Learner:
    """Model, code head and optimisers; one step is a pure function of (state, step number)."""

    def __init__(self, model: CohereForCausalLM, corpus: Corpus):
        recipe = corpus.recipe
        self.model, self.corpus, self.recipe = model, corpus, recipe
        self.soft = soft_contexts(corpus)
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
        """One update; returns the loss and the answer-token counts it was made of."""
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
        rate = schedule(self.step, recipe)
        for optimizer, top in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = top * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "code_loss": float(code_loss.detach()),
            "match_loss": float(match_loss.detach()),
            "questions": len(batch.segments),
            "tokens": int((batch.segment >= 0).sum()),
            "cells": batch.ids.numel(),
        }

    def _code_loss(self, middle: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of which concept's code is read half way up, over `batch.code_at`."""
        if not len(batch.code_at):
            return middle.sum() * 0
        at = middle.reshape(-1, middle.shape[-1])[batch.code_at]
        read = self.code_head(F.layer_norm(at, at.shape[-1:]))
        codes = F.normalize(self.soft, dim=1)
        return F.cross_entropy(read @ codes.T, batch.code_of)

    def _match_loss(self, looks: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy of the attention that a claim pays to the context beside its truth."""
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
        """The concepts of this step: every epoch is one shuffle of all."""
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

    # Checkpoint: tensors and a step number; the random draws follow from seed and step.

    def save(self, path: Path, key: str, seconds: float) -> None:
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"code_head.{n}": p.detach() for n, p in self.code_head.named_parameters()}
        for o, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer.{o}.{i}.{name}"] = value
        tensors = {n: t.contiguous().clone() for n, t in tensors.items()}
        metadata = {"step": str(self.step), "key": key, "seconds": str(seconds)}
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def load(self, path: Path, key: str) -> float | None:
        """Continue from `path` if the same recipe and texts made it; returns the seconds spent."""
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as f:
            meta = f.metadata()
            if meta["key"] != key:
                return None
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
            for name, p in self.code_head.named_parameters():
                p.copy_(tensors[f"code_head.{name}"])
        for o, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for name, value in tensors.items():
                parts = name.split(".")
                if parts[0] == "optimizer" and int(parts[1]) == o:
                    state[int(parts[2])][parts[3]] = value
            whole = optimizer.state_dict()
            whole["state"] = dict(state)
            optimizer.load_state_dict(whole)
        self.step = int(meta["step"])
        return float(meta["seconds"])


def schedule(step: int, recipe: LanguageModelRecipe) -> float:
    """Warm up, hold, then fall linearly to zero; as a factor of the top rate."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    fall = int(recipe.steps * recipe.hold)
    return 1.0 if step < fall else max(0.0, (recipe.steps - step) / max(1, recipe.steps - fall))


def soft_contexts(corpus: Corpus) -> Tensor:
    """The codes of the concepts, (C, D), at the size at which they stand in a soft context."""
    concepts, recipe = corpus.concepts, corpus.recipe
    names: list[list[str | None]] = [
        [concepts.names[lang][i] for lang in recipe.languages] for i in range(len(concepts))
    ]
    return concept_codes(names, concepts.category, recipe.hidden_size) * recipe.soft_scale


def answer_loss(
    model: CohereForCausalLM, corpus: Corpus, batch: Batch, soft: Tensor, seed: int
) -> tuple[Tensor, Tensor, States]:
    """(weighted mean loss over the answer tokens, logits (N, V) of just those, states)."""
    x = embed(model, batch, soft, len(corpus.prefix), seed)
    mask = group_attention(batch.segment)
    states = hidden_states(model, x, batch.positions, mask, look_at=batch.claim_at)
    h = states.last.reshape(-1, states.last.shape[-1])[batch.at]
    logits = F.linear(h, model.model.embed_tokens.weight) * model.config.logit_scale
    losses = F.cross_entropy(logits, batch.target, reduction="none")
    return (losses * batch.weight).sum() / batch.weight.sum(), logits, states


# --------------------------------------------------------------------------------------------
# What it learned
# --------------------------------------------------------------------------------------------

PROBES = (
    "name from the pivot name",
    "name from another language's name",
    "name from keywords",
    "name from a soft context",
    "category from the pivot name",
    "category from a soft context",
    "yes/no from the pivot name",
    "yes/no from a soft context",
    "keywords from the pivot name",
)


@torch.no_grad()
def score(
    model: CohereForCausalLM, corpus: Corpus, soft: Tensor, concepts: list[int], seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Greedy exact match {probe: {language: {"exact": share, "n": questions}}}.

    An answer counts only if every token of it, its end of turn included, is the most likely one
    given the tokens before it: exactly the answers that greedy decoding gives. Yes/no asks of
    every concept its own name and one confusable name. The soft contexts carry noise of half the
    training's largest size, no mixture.
    """
    rng = np.random.default_rng((seed, 3))
    right: dict[str, dict[str, list[bool]]] = {p: defaultdict(list) for p in PROBES}
    recipe, slots = corpus.recipe, corpus.recipe.context_slots
    for probe in PROBES:
        task, _, source = probe.partition(" from ")
        task = {"yes/no": "yesno"}.get(task, task)
        rows = []
        for concept in concepts:
            near = corpus.concepts.confusable[concept]
            wrong = near[rng.integers(len(near))]
            named = rng.permutation(corpus.languages_of(concept)).tolist()
            for langs in (named[: len(named) // 2], named[len(named) // 2 :]):
                described: Any = None
                context = [corpus.tokenizer.unk_token_id] * slots
                if source == "a soft context":
                    noise: np.ndarray = np.full(slots + 1, 0.5 * recipe.soft_slot_noise, np.float32)
                    noise[-1] = 0.5 * recipe.soft_shared_noise
                    weights = np.tile(np.array([[1.0, 0.0]], np.float32), (slots, 1))
                    described = ([concept, concept], weights, noise)
                else:
                    lang, kind = recipe.pivot, "pivot"
                    if source == "another language's name":
                        others = [x for x in named if x not in langs] or langs
                        lang = others[rng.integers(len(others))]
                    elif source == "keywords":
                        lang, kind = langs[0], "keywords"
                    context = corpus.context(kind, concept, lang, rng)
                segments = [
                    corpus.segment(task, concept, x, rng, about)
                    for x in langs
                    for about in ((concept, wrong) if task == "yesno" else (None,))
                    if about is None or corpus.named[x][about]
                ]
                if segments:
                    rows.append((context, described, segments))
        for start in range(0, len(rows), 32):
            batch = corpus.batch(rows[start : start + 32])
            _, logits, _ = answer_loss(model, corpus, batch, soft, seed + start)
            hit = (logits.argmax(-1) == batch.target).long()
            whole = torch.ones(len(batch.segments), dtype=torch.long)
            whole.scatter_reduce_(0, batch.group, hit, "amin")
            for segment, good in zip(batch.segments, whole.tolist(), strict=True):
                right[probe][segment.lang].append(bool(good))
    return {
        probe: {
            lang: {"exact": float(np.mean(found)), "n": len(found)}
            for lang, found in sorted(by.items(), key=lambda x: corpus.languages.index(x[0]))
        }
        for probe, by in right.items()
    }


def score_table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """The scores as a text table, a probe a line and a language a column, in percent."""
    langs = list(next(iter(scores.values())))
    lines = [f"{'exact match, %':36s}" + "".join(f"{x:>6s}" for x in [*langs, "mean", "n"])]
    for probe, by in scores.items():
        values = [100 * by[lang]["exact"] for lang in langs]
        cells = "".join(f"{v:6.1f}" for v in [*values, float(np.mean(values))])
        lines.append(f"{probe:36s}{cells}{sum(int(b['n']) for b in by.values()):6d}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.safetensors"


def train_language_model(recipe: LanguageModelRecipe, output_dir: Path) -> Path:
    """Train a tokenizer and a decoder, score them, and save both with metrics.json.

    The folder loads with AutoModelForCausalLM and AutoTokenizer. While it trains, the folder holds
    only a checkpoint, from which the same command with the same recipe and texts continues.

    Raises:
        FileNotFoundError: the dataset or the prompts are not there.
        ValueError: they lack something, or the output folder already holds a model.
    """
    # Small matrices: on two cores a second thread costs more than it gives.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(recipe, Path(output_dir))
    finally:
        torch.set_num_threads(threads)


def _train(recipe: LanguageModelRecipe, output_dir: Path) -> Path:
    if (output_dir / "config.json").exists():
        raise ValueError(f"{output_dir} already holds a model: choose another folder or remove it")
    dataset = Path(recipe.dataset) if recipe.dataset else SHIPPED_DATASET
    concepts = read_concepts(dataset, recipe.languages, recipe.pivot)
    prompts = read_prompts(Path(recipe.prompts) if recipe.prompts else PROMPTS, recipe.languages)
    print(
        f"{len(concepts)} concepts in {len(recipe.languages)} languages; "
        f"{concepts.held_out} held out; names missing: {sum(concepts.missing.values())}",
        flush=True,
    )
    tokenizer = train_tokenizer(
        tokenizer_texts(concepts, prompts, recipe),
        recipe.vocab_size,
        load_chat_template("aya"),
    )
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    model = build_language_model(recipe, corpus.end)
    if recipe.start:
        _start_from(model, Path(recipe.start), tokenizer)
    learner = _Learner(model, corpus)
    key = _fingerprint(recipe, concepts, prompts)
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = output_dir / CHECKPOINT
    spent = learner.load(checkpoint, key)
    if spent is not None:
        print(f"continuing from {checkpoint} at step {learner.step}", flush=True)
    seconds = _run_steps(learner, checkpoint, key, spent or 0.0)

    # Score what is shipped: the weights after rounding to the storage type.
    dtype = getattr(torch, recipe.storage_dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())
    chosen = np.random.default_rng((recipe.seed, 4)).permutation(len(concepts))
    chosen = np.sort(chosen[: recipe.evaluate_concepts or len(concepts)]).tolist()
    scores = score(model, corpus, learner.soft, chosen, recipe.seed)
    print(score_table(scores), flush=True)
    before = Path(recipe.start) / "metrics.json" if recipe.start else None
    metrics = {
        "recipe": dataclasses.asdict(recipe) | {"dataset": None, "prompts": None, "start": None},
        "started_from": read_json(before) if before else None,
        "data": {
            "fingerprint": key,
            "concepts": len(concepts),
            "held_out": concepts.held_out,
            "names_missing": concepts.missing,
        },
        "parameters": model.num_parameters(),
        "tokens_per_name": {
            lang: round(float(np.mean([len(t) for t in corpus.name[lang] if t])), 2)
            for lang in recipe.languages
        },
        "scores": scores,
        "concepts_scored": len(chosen),
        "training_seconds": round(seconds, 1),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "seed": recipe.seed,
    }
    _save(output_dir, model, tokenizer, dtype, metrics)
    checkpoint.unlink(missing_ok=True)
    return output_dir


def _start_from(model: CohereForCausalLM, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Take the weights of `folder`.

    Raises FileNotFoundError if there is no model, ValueError if it is another's or has another
    tokenizer.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"start: {folder} holds no model; run its recipe first")
    before = CohereForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"start: the tokenizer of {folder} is another one; use the recipe values and the dataset "
            "that it was made with"
        )
    try:
        model.load_state_dict(before.state_dict())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"start: {folder} is a model of another shape: {reason}") from None


def _run_steps(learner: _Learner, checkpoint: Path, key: str, spent: float) -> float:
    """Train to the recipe's last step; returns the seconds of all runs together."""
    recipe = learner.recipe
    started = time.monotonic() - spent
    first, questions = learner.step, 0
    since: dict[str, list[float]] = defaultdict(list)  # what steps returned since the last line
    learner.model.train()
    while learner.step < recipe.steps:
        done = learner.train_step()
        if not math.isfinite(done["loss"]):
            raise FloatingPointError(
                f"loss is {done['loss']} at step {learner.step}: lower the rates"
            )
        for name, value in done.items():
            since[name].append(value)
        questions += int(done["questions"])
        if learner.step % 100 == 0 or learner.step == recipe.steps:
            now = time.monotonic() - started
            pace = (now - spent) / (learner.step - first)
            print(
                f"step {learner.step}/{recipe.steps}  loss {np.mean(since['loss']):.4f}  "
                f"code loss {np.mean(since['code_loss']):.4f}  "
                f"match loss {np.mean(since['match_loss']):.4f}  "
                f"{questions / (now - spent):.0f} questions/s  "
                f"{pace * (recipe.steps - learner.step):.0f} s left",
                flush=True,
            )
            since.clear()
        if learner.step % recipe.checkpoint_every == 0:
            learner.save(checkpoint, key, time.monotonic() - started)
    return time.monotonic() - started


def _fingerprint(recipe: LanguageModelRecipe, concepts: Concepts, prompts: dict[str, Any]) -> str:
    """Hash of everything a run depends on; a checkpoint of another run is not continued."""
    values = dataclasses.asdict(recipe) | {
        "dataset": None,
        "prompts": None,
        "checkpoint_every": None,
    }
    text = json.dumps([values, dataclasses.asdict(concepts), prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(
    folder: Path,
    model: CohereForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    metrics: dict[str, Any],
) -> None:
    """Write everything beside the folder first, then move it in, config.json last."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(dtype).save_pretrained(part)
    ordinary_permissions(part / "model.safetensors")
    tokenizer.save_pretrained(part)
    (part / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):
        os.replace(file, folder / file.name)
    part.rmdir()
