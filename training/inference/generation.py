"""Greedy answers to many questions about few images.

Any image-text-to-text model is asked by its own processor, chat template and `generate`, in batches.
Maya, whose images all take the same number of tokens, is asked faster:

Under causal attention the tokens up to and including the image never see the question, so their
keys and values are computed once per image and shared by all its questions. Questions of similar
length run together, padded on the left between the image and the question, and a finished row
leaves the batch. Tokens are those of `model.generate(do_sample=False)`, one question at a time, up
to the rounding of another batch shape.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image

from modeling_maya import CACHE

from ..common.telling import shown

# Questions that a model of others is asked together: each brings its picture along.
FOREIGN_BATCH = 16


class Images(Protocol):
    """A list of pictures, or what reads each when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Image: ...


@dataclass(frozen=True)
class Question:
    """One question; `image` is its place in the list of images, None for a blind one."""

    image: int | None
    text: str
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Answer:
    """The decoded answer, how many tokens it took, and whether the model ended it itself."""

    text: str
    tokens: int
    ended: bool


def answer(
    model: Any,
    processor: Any,
    images: Images,
    questions: Sequence[Question],
    *,
    batch_size: int = 256,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer every question greedily, in the order given.

    `batch_size` is the number of questions that run together; images are encoded about as many
    questions at a time. `workers` threads share the work: torch computes outside of Python's lock,
    and on CPU two threads with a batch each do more than one batch on two threads. Equal blind
    questions are answered once. `progress` is called with the number of questions done so far.
    A model that is no Maya is asked at most FOREIGN_BATCH questions together, by one worker.
    Raises ValueError for a batch size or a number of workers below 1, an image index out of range, and
    a question that the chat template cannot show.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    for number, question in enumerate(questions):
        if question.image is not None and not 0 <= question.image < len(images):
            raise ValueError(
                f"question {number} is about image {question.image}, but there are {len(images)}"
            )
    if not is_maya(model):
        batch_size = min(batch_size, FOREIGN_BATCH)
        return _answer_by_generate(model, processor, images, questions, batch_size, progress)
    prompts = _Prompts(processor, questions)
    ends = _end_tokens(model, processor)
    generated: dict[int, tuple[list[int], bool]] = {}

    def work(rows: list[int]) -> list[tuple[int, list[int], bool]]:
        # Inference mode and the like belong to a thread.
        with torch.inference_mode():
            return list(
                _answer_chunk(model, processor, prompts, images, questions, rows, batch_size, ends)
            )

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work, rows) for rows in _chunks(questions, batch_size)]
        try:
            for chunk in as_completed(running):
                for row, tokens, ended in chunk.result():
                    generated[row] = (tokens, ended)
                if progress is not None:
                    progress(len(generated))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    # Equal blind questions were answered by one row.
    first: dict[Question, int] = {}
    source = [
        first.setdefault(question, row) if question.image is None else row
        for row, question in enumerate(questions)
    ]
    texts = processor.tokenizer.batch_decode(
        [generated[row][0] for row in source], skip_special_tokens=True
    )
    return [
        Answer(text.strip(), len(generated[row][0]), generated[row][1])
        for text, row in zip(texts, source, strict=True)
    ]


def is_maya(model: Any) -> bool:
    """Whether a model is a Maya, or one of another kind."""
    return model.config.model_type == "maya"


def _answer_by_generate(
    model: Any,
    processor: Any,
    images: Images,
    questions: Sequence[Question],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> list[Answer]:
    """Answers of any image-text-to-text model, as its own processor and `generate` give them."""
    tokenizer, ends = processor.tokenizer, _end_tokens(model, processor)
    # Answers follow the last token of a row.
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    answers: dict[Question, Answer] = {}
    waiting = sorted(
        dict.fromkeys(questions), key=lambda q: (q.image is None, q.max_new_tokens, len(q.text))
    )
    while waiting:
        first = waiting[0]
        batch = [
            question
            for question in waiting[:batch_size]
            if (question.image is None, question.max_new_tokens)
            == (first.image is None, first.max_new_tokens)
        ]
        waiting = waiting[len(batch) :]
        inputs = _foreign_inputs(processor, images, batch).to(model.device, model.dtype)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=first.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        for question, row in zip(batch, output.tolist(), strict=True):
            new = row[inputs["input_ids"].shape[1] :]
            stop = next((i for i, token in enumerate(new) if token in ends), None)
            text = tokenizer.decode(new[:stop], skip_special_tokens=True)
            length = len(new) if stop is None else stop
            answers[question] = Answer(text.strip(), length, stop is not None)
        if progress is not None:
            progress(sum(question in answers for question in questions))
    return [answers[question] for question in questions]


def _foreign_inputs(processor: Any, images: Images, batch: Sequence[Question]) -> Any:
    """A padded batch in the processor's own format; either every question has its picture or none."""
    prompts, pictures = [], []
    for question in batch:
        content = [{"type": "text", "text": question.text}]
        if question.image is not None:
            content.insert(0, {"type": "image"})
            pictures.append([images[question.image]])
        turns = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(turns, add_generation_prompt=True))
    bos = processor.tokenizer.bos_token
    return processor(
        text=prompts,
        images=pictures or None,
        padding=True,
        return_tensors="pt",
        # As `apply_chat_template` does: a template that writes the beginning must not get a second one.
        add_special_tokens=not (bos and prompts[0].startswith(bos)),
    )


def _chunks(questions: Sequence[Question], batch_size: int) -> Iterator[list[int]]:
    """Rows that share image prefixes: whole images, several batches' worth of questions."""
    per_image: dict[int, list[int]] = defaultdict(list)
    blind: dict[Question, int] = {}
    for row, question in enumerate(questions):
        if question.image is None:
            blind.setdefault(question, row)
        else:
            per_image[question.image].append(row)
    # Several batches a chunk, so that sorting by length inside the chunk finds alike questions.
    rows: list[int] = []
    for image in sorted(per_image):
        rows += per_image[image]
        if len(rows) >= 4 * batch_size:
            yield rows
            rows = []
    if rows:
        yield rows
    blind_rows = list(blind.values())
    for start in range(0, len(blind_rows), 4 * batch_size):
        yield blind_rows[start : start + 4 * batch_size]


class _Prompts:
    """Token ids of questions in the model's own chat template, placeholders expanded."""

    def __init__(self, processor: Any, questions: Sequence[Question]):
        self.known: dict[tuple[bool, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for has_image, text in dict.fromkeys(map(self._key, questions)):
            content = [{"type": "image"}] if has_image else []
            content.append({"type": "text", "text": text})
            ids = processor.encode_conversation(
                [{"role": "user", "content": content}],
                name=f"the question {shown(text)}",
                add_generation_prompt=True,
            )["input_ids"]
            cut = len(ids) - ids[::-1].index(processor.image_token_id) if has_image else 0
            self.known[has_image, text] = (tuple(ids[:cut]), tuple(ids[cut:]))

    @staticmethod
    def _key(question: Question) -> tuple[bool, str]:
        return question.image is not None, question.text

    def __call__(self, question: Question) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids up to and including the image, ids after it); the first is empty without one."""
        return self.known[self._key(question)]


def _end_tokens(model: Any, processor: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}


def _answer_chunk(
    model: Any,
    processor: Any,
    prompts: _Prompts,
    images: Images,
    questions: Sequence[Question],
    rows: list[int],
    batch_size: int,
    ends: set[int],
) -> Iterator[tuple[int, list[int], bool]]:
    """Answer the questions `rows` of one chunk; yields (row, tokens, ended by the model)."""
    by_prefix: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in rows:
        by_prefix[prompts(questions[row])[0]].append(row)
    for prefix, members in by_prefix.items():
        places: dict[int | None, int] = {}
        cache = None
        if prefix:
            for row in members:
                places.setdefault(questions[row].image, len(places))
            cache = _image_cache(
                model,
                processor,
                prefix,
                [images[image] for image in places if image is not None],
            )
        windowed = cache is not None and any(
            getattr(layer, "is_sliding", False) for layer in cache.layers
        )
        # Questions of one length limit and of similar length run together.
        lengths = {row: len(prompts(questions[row])[1]) for row in members}
        members = sorted(members, key=lambda row: (questions[row].max_new_tokens, lengths[row]))
        start = 0
        while start < len(members):
            limit = questions[members[start]].max_new_tokens
            batch = [
                row
                for row in members[start : start + batch_size]
                if questions[row].max_new_tokens == limit
                # A sliding window counts places in the cache, so no padding may stand in it.
                and not (windowed and lengths[row] != lengths[members[start]])
            ]
            start += len(batch)
            own = None
            if cache is not None:
                own = copy.deepcopy(cache)
                own.batch_select_indices(
                    torch.tensor(
                        [places[questions[row].image] for row in batch], device=model.device
                    )
                )
            suffixes = [prompts(questions[row])[1] for row in batch]
            tokens = _greedy(model, processor, own, len(prefix), suffixes, limit, ends)
            for row, (ids, ended) in zip(batch, tokens, strict=True):
                yield row, ids, ended


def _image_cache(model: Any, processor: Any, prefix: tuple[int, ...], images: list[Image]) -> Any:
    """Keys and values of the prefix, one row for each image."""
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    ids = torch.tensor(prefix, device=model.device)
    output = model(
        input_ids=ids.expand(len(images), -1).contiguous(),
        pixel_values=pixels.to(model.device, model.dtype),
        use_cache=True,
        logits_to_keep=1,
    )
    return output[CACHE]


def _greedy(
    model: Any,
    processor: Any,
    cache: Any,
    prefix_length: int,
    suffixes: list[tuple[int, ...]],
    max_new_tokens: int,
    ends: set[int],
) -> list[tuple[list[int], bool]]:
    """Greedy continuation of `suffixes` [rows][tokens] behind an optional cached prefix."""
    device = model.device
    pad = processor.tokenizer.pad_token_id or 0
    longest = max(len(suffix) for suffix in suffixes)
    gaps = [longest - len(suffix) for suffix in suffixes]
    ids = torch.tensor(
        [[pad] * gap + list(suffix) for gap, suffix in zip(gaps, suffixes, strict=True)],
        device=device,
    )
    gap = torch.tensor(gaps, device=device)[:, None]
    columns = torch.arange(longest, device=device)[None]
    # The padding stands between the image and the question: masked, and not counted as a position.
    seen = torch.cat(
        [
            torch.ones(len(suffixes), prefix_length, dtype=torch.long, device=device),
            (columns >= gap).long(),
        ],
        dim=1,
    )
    positions = (prefix_length + columns - gap).clamp(min=0)
    done: list[list[int]] = [[] for _ in suffixes]
    ended = [False] * len(suffixes)
    alive = list(range(len(suffixes)))
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output[CACHE]
        following = output.logits[:, -1].argmax(-1)
        keep = []
        for place, (row, token) in enumerate(zip(alive, following.tolist(), strict=True)):
            if token in ends:
                ended[row] = True
            else:
                done[row].append(token)
                keep.append(place)
        if not keep or step + 1 == max_new_tokens:
            break
        if len(keep) < len(alive):
            kept = torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            following, seen, positions = following[kept], seen[kept], positions[kept]
            alive = [alive[place] for place in keep]
        ids = following[:, None]
        seen = torch.cat([seen, seen.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return list(zip(done, ended, strict=True))
