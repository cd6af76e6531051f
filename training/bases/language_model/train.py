"""Train a small Cohere language model, on text alone, that reads its context.

A decoder trained on bare captions and then frozen has no reason to read what precedes them, so a projector
has nothing to align to. Here every answer depends on the content at the positions of image tokens: a
description of one concept. The model is asked for the concept's name in ten languages, its category, its
keywords, or yes/no about a stated name. The description is

- text: the concept's name in English or another language, its keywords, or a shuffled, thinned
  and padded version of these; or
- soft: the concept's text code (text_codes.py), written to every slot with noise, gaps and a share of a
  confusable concept. Projected image features look like this to a decoder: continuous, distributed and
  uncertain.

To tell whether a stated name is true of a context, the model must first map the name to something that can
be compared with the context. Yes/no alone, one bit per question, teaches that too slowly. So in the middle of
the decoder a linear head, discarded afterwards, must read the code of a stated name from the last token
of its question. In the layer above, the first attention head must attend from there to a soft context
exactly if the name is the context's: queries and keys do the comparison.

One row of a batch is one context with many questions about it. All questions see the context, and no
question sees another (the attention rule of a group), so the context is computed once.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CohereForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from processing_maya import load_chat_template

from ...common.reading import read_json_mapping
from ..storing import complete_folder
from .concepts import Concepts, read_concepts, read_prompts, tokenizer_texts
from .corpus import Corpus
from .learner import Learner
from .network import build_language_model
from .probe import score, score_table
from .recipe import LanguageModelRecipe
from .tokenizer import load_tokenizer, train_tokenizer

SHIPPED_DATASET = Path(__file__).parents[2] / "data" / "mini"
PROMPTS = Path(__file__).parents[2] / "data" / "mini_dataset" / "prompts.json"
CHECKPOINT = "checkpoint.safetensors"


def train_language_model(recipe: LanguageModelRecipe, output_dir: Path) -> Path:
    """Train a tokenizer and a decoder, score them, and save both with metrics.json.

    The folder loads with AutoModelForCausalLM and AutoTokenizer. During training it holds only a
    checkpoint, from which the same command with the same recipe and texts continues.

    Raises:
        FileNotFoundError: if the dataset or the prompts do not exist.
        ValueError: if they are incomplete, or the output folder already holds a model.
    """
    # Matrices are small: on two cores a second thread costs more than it gains.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(recipe, Path(output_dir))
    finally:
        torch.set_num_threads(threads)


def _train(recipe: LanguageModelRecipe, output_dir: Path) -> Path:
    # Data, tokenizer, model.
    if (output_dir / "config.json").exists():
        raise ValueError(
            f"{output_dir}: expected no model, found one: choose another folder or remove it"
        )
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

    # Train, continuing an earlier run if there is one.
    learner = Learner(model, corpus)
    key = _fingerprint(recipe, concepts, prompts)
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = output_dir / CHECKPOINT
    spent = learner.load(checkpoint, key)
    if spent is not None:
        print(f"continuing from {checkpoint} at step {learner.step}", flush=True)
    seconds = _run_steps(learner, checkpoint, key, spent or 0.0)

    # Score the shipped weights, which are rounded to the storage type.
    dtype = getattr(torch, recipe.storage_dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())
    chosen = np.random.default_rng((recipe.seed, 4)).permutation(len(concepts))
    chosen = np.sort(chosen[: recipe.evaluate_concepts or len(concepts)]).tolist()
    scores = score(model, corpus, learner.soft, chosen, recipe.seed)
    print(score_table(scores), flush=True)
    metrics = {
        "recipe": dataclasses.asdict(recipe) | {"dataset": None, "prompts": None, "start": None},
        "started_from": recipe.start and read_json_mapping(Path(recipe.start) / "metrics.json"),
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
    """Load the weights of the model in `folder`.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if its shape or its tokenizer differ.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"start: expected a model in {folder}, found none: run its recipe first"
        )
    before = CohereForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"start: {folder}: expected the same tokenizer, found another: use the recipe values and the dataset "
            "that it was made with"
        )
    try:
        model.load_state_dict(before.state_dict())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"start: {folder}: expected a model of the same shape: {reason}") from None


def _run_steps(learner: Learner, checkpoint: Path, key: str, spent: float) -> float:
    """Train to the recipe's last step; return the seconds of all runs together."""
    recipe = learner.recipe
    started = time.monotonic() - spent
    first, questions = learner.step, 0
    since: dict[str, list[float]] = defaultdict(list)  # results of steps since the last log line
    learner.model.train()
    while learner.step < recipe.steps:
        done = learner.train_step()
        if not math.isfinite(done["loss"]):
            raise FloatingPointError(
                f"step {learner.step}: expected a finite loss, found {done['loss']}: lower the rates"
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
    """Return a hash of everything a run depends on; a checkpoint with another hash is not continued."""
    free = dict.fromkeys(("dataset", "prompts", "checkpoint_every"))
    values = dataclasses.asdict(recipe) | free
    text = json.dumps([values, dataclasses.asdict(concepts), prompts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _save(
    folder: Path,
    model: CohereForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    metrics: dict[str, Any],
) -> None:
    """Write all files beside the folder, then move them in, config.json last."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    beside = folder.with_name(folder.name + ".part")
    with complete_folder(folder, beside, lambda file: file.name == "config.json") as part:
        model.to(dtype).save_pretrained(part)
        tokenizer.save_pretrained(part)
        metrics_text = json.dumps(metrics, indent=1) + "\n"
        (part / "metrics.json").write_text(metrics_text, encoding="utf-8")
