"""Greedy answers to many questions about few images.

Models of other families are asked in batches, with their own processor, chat template and `generate`.
Maya has a faster way, because all of its images take the same number of tokens:

Under causal attention the tokens up to and including the last image of a prompt do not see the question.
Their keys and values are computed once and shared by all questions about the same images. Questions of
similar length run together, padded on the left between image and question, and a finished row leaves the
batch. The tokens are those of `model.generate(do_sample=False)` for one question at a time, up to the
rounding of another batch shape: two tokens whose logits differ by less than that may change places.
"""

import bisect
import copy
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image

from modeling_maya import CACHE

from ..common.telling import shown

# Most questions in a batch of another model, where every question brings its own picture.
FOREIGN_BATCH = 16


class Images(Protocol):
    """A list of pictures, or an object that reads each picture on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Image: ...


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        content: the user's turn in order: texts, and images as indices into the list of images.
        max_new_tokens: most tokens of the answer.
        system: the system turn.
        stop: the answer ends before the first of these texts.
    """

    content: tuple[str | int, ...]
    max_new_tokens: int = 32
    system: str | None = None
    stop: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[int, ...]:
        """Return the indices of the images, in order."""
        return tuple(part for part in self.content if isinstance(part, int))

    def turns(self) -> list[dict[str, Any]]:
        """Return the conversation for a chat template, with images as parts without content."""
        user = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in self.content
        ]
        turns: list[dict[str, Any]] = [{"role": "user", "content": user}]
        if self.system is not None:
            system = [{"type": "text", "text": self.system}]
            turns.insert(0, {"role": "system", "content": system})
        return turns


@dataclass(frozen=True)
class Answer:
    """A decoded answer.

    Args:
        text: without special tokens.
        tokens: number of generated tokens, with those of a stop text and without the end token; None if it
            is not known.
        ended: whether the model ended the answer itself.
    """

    text: str
    tokens: int | None
    ended: bool


def answer(
    model: Any, processor: Any, images: Images, questions: Sequence[Question], **options: Any
) -> list[Answer]:
    """Answer every question greedily, in the order given; options and errors are those of `answers`."""
    found = dict(answers(model, processor, images, questions, **options))
    return [found[place] for place in range(len(questions))]


def answers(
    model: Any,
    processor: Any,
    images: Images,
    questions: Sequence[Question],
    *,
    batch_size: int = 256,
    workers: int = 1,
) -> Iterator[tuple[int, Answer]]:
    """Answer every question greedily, and yield (index of the question, answer) as the answers come.

    Args:
        model: a Maya, or another image-text-to-text model.
        processor: of the model.
        images: each worker decodes one at a time; another model than Maya needs a batch of them at once.
        questions: about the images.
        batch_size: most questions in a batch, and most images whose keys and values are in memory. Other
            models than Maya have at most FOREIGN_BATCH questions in a batch, and one worker.
        workers: threads that share the work. torch computes without Python's lock, and on a CPU two
            threads with a batch each are faster than one batch on two threads.

    Raises:
        ValueError: a batch size or number of workers below 1, or an image index out of range; later, a
            question that the chat template cannot show.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    for number, question in enumerate(questions):
        for image in question.images:
            if not 0 <= image < len(images):
                raise ValueError(
                    f"question {number} is about image {image}, but there are {len(images)}"
                )
    if not is_maya(model):
        batch_size = min(batch_size, FOREIGN_BATCH)
        yield from _answers_by_generate(model, processor, images, questions, batch_size)
        return
    finished: queue.SimpleQueue[tuple[int, Answer] | Future[None]] = queue.SimpleQueue()
    stopping = threading.Event()

    def work(rows: list[int]) -> None:
        # Inference mode is a setting of each thread.
        with torch.inference_mode():
            for found in _answer_chunk(model, processor, images, questions, rows, batch_size):
                finished.put(found)
                if stopping.is_set():
                    return

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work, rows) for rows in _chunks(questions, batch_size)]
        for chunk in running:
            chunk.add_done_callback(finished.put)
        left = len(running)
        try:
            while left:
                found = finished.get()
                if isinstance(found, Future):
                    found.result()
                    left -= 1
                else:
                    yield found
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def is_maya(model: Any) -> bool:
    """Return whether a model is a Maya."""
    return model.config.model_type == "maya"


def _answers_by_generate(
    model: Any, processor: Any, images: Images, questions: Sequence[Question], batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """Yield the answers of any image-text-to-text model, by its own processor and `generate`."""
    tokenizer, ends = processor.tokenizer, _end_tokens(model, processor)
    # An answer begins after the last token of its row.
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    alike: dict[tuple[int, int, tuple[str, ...]], list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        kind = (len(question.images), question.max_new_tokens, question.stop)
        alike[kind].append(place)
    for (_, limit, stop), places in alike.items():
        places.sort(key=lambda place: sum(len(str(part)) for part in questions[place].content))
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            inputs = _foreign_inputs(processor, images, [questions[place] for place in batch])
            inputs = inputs.to(model.device, model.dtype)
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    max_new_tokens=limit,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    **({"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}),
                )
            for place, row in zip(batch, output.tolist(), strict=True):
                new = row[inputs["input_ids"].shape[1] :]
                end = next((i for i, token in enumerate(new) if token in ends), None)
                yield place, _answer_of(tokenizer, new[:end], end is not None, stop)


def _foreign_inputs(processor: Any, images: Images, batch: Sequence[Question]) -> Any:
    """Return a padded batch in the processor's own format; all questions have equally many pictures."""
    prompts = [
        processor.apply_chat_template(question.turns(), add_generation_prompt=True)
        for question in batch
    ]
    pictures = [[images[image] for image in question.images] for question in batch]
    bos = processor.tokenizer.bos_token
    return processor(
        text=prompts,
        images=pictures if pictures[0] else None,
        padding=True,
        return_tensors="pt",
        # As in `apply_chat_template`: a template that writes the first token must not get it twice.
        add_special_tokens=not (bos and prompts[0].startswith(bos)),
    )


def _answer_of(tokenizer: Any, tokens: list[int], ended: bool, stop: tuple[str, ...]) -> Answer:
    """Return the answer of generated tokens: their text, cut before the first stop text."""

    def text(count: int) -> str:
        return tokenizer.decode(tokens[:count], skip_special_tokens=True)

    def stopped(count: int) -> bool:
        said = text(count)
        return any(each in said for each in stop)

    if not stop or not stopped(len(tokens)):
        return Answer(text(len(tokens)).strip(), len(tokens), ended)
    count = bisect.bisect_left(range(len(tokens)), True, key=stopped)
    said = text(count)
    first = min(said.find(each) for each in stop if each in said)
    return Answer(said[:first].strip(), count, True)


def _stops(tokenizer: Any, tokens: list[int], stop: tuple[str, ...]) -> bool:
    """Return whether the last token completes a stop text."""
    # A token has at least one byte. Decode a few more tokens, because the first ones may decode differently.
    tail = tokens[-max(len(each.encode()) for each in stop) - 8 :]
    said = tokenizer.decode(tail, skip_special_tokens=True)
    return any(each in said for each in stop)


def _chunks(questions: Sequence[Question], batch_size: int) -> Iterator[list[int]]:
    """Yield chunks of question indices, with all questions about the same images in one chunk.

    A chunk has several batches of questions, so that sorting by length finds similar ones, and about a
    batch of images.
    """
    about: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, question in enumerate(questions):
        about[question.images].append(row)
    blind = about.pop((), [])
    rows: list[int] = []
    held = 0
    for images in sorted(about):
        if rows and (len(rows) >= 4 * batch_size or held + len(images) > batch_size):
            yield rows
            rows, held = [], 0
        rows += about[images]
        held += len(images)
    if rows:
        yield rows
    for start in range(0, len(blind), 4 * batch_size):
        yield blind[start : start + 4 * batch_size]


def _prompts(
    processor: Any, questions: Sequence[Question], rows: Sequence[int]
) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return question index -> (token ids up to and including the last image, ids after it).

    The first part is empty for a question without images. The ids are those of the model's own chat
    template, with placeholders expanded.
    """
    known: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    prompts = {}
    for row in rows:
        question = questions[row]
        key = (
            *(part if isinstance(part, str) else None for part in question.content),
            question.system,
        )
        if key not in known:
            told = " ".join(part for part in question.content if isinstance(part, str))
            ids = processor.encode_conversation(
                question.turns(), name=f"the question {shown(told)}", add_generation_prompt=True
            )["input_ids"]
            cut = len(ids) - ids[::-1].index(processor.image_token_id) if question.images else 0
            known[key] = (tuple(ids[:cut]), tuple(ids[cut:]))
        prompts[row] = known[key]
    return prompts


def _end_tokens(model: Any, processor: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}


def _answer_chunk(
    model: Any,
    processor: Any,
    images: Images,
    questions: Sequence[Question],
    rows: list[int],
    batch_size: int,
) -> Iterator[tuple[int, Answer]]:
    """Answer the questions `rows` of one chunk, and yield (row, answer)."""
    prompts = _prompts(processor, questions, rows)
    by_prefix: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in rows:
        by_prefix[prompts[row][0]].append(row)
    for prefix, members in by_prefix.items():
        cache = None
        places: dict[tuple[int, ...], int] = {}
        if prefix:
            for row in members:
                places.setdefault(questions[row].images, len(places))
            cache = _image_cache(model, processor, prefix, images, list(places))
        windowed = cache is not None and any(
            getattr(layer, "is_sliding", False) for layer in cache.layers
        )
        # Questions with the same limit and of similar length run together.
        lengths = {row: len(prompts[row][1]) for row in members}

        def alike(row: int, windowed: bool = windowed, lengths: dict[int, int] = lengths) -> Any:
            question = questions[row]
            # A sliding window counts positions of the cache, so there must be no padding in it.
            return question.max_new_tokens, question.stop, lengths[row] if windowed else 0

        members = sorted(members, key=lambda row: (alike(row), lengths[row]))
        start = 0
        while start < len(members):
            batch = [
                row
                for row in members[start : start + batch_size]
                if alike(row) == alike(members[start])
            ]
            start += len(batch)
            own = None
            if cache is not None:
                own = copy.deepcopy(cache) if start < len(members) else cache
                selected = [places[questions[row].images] for row in batch]
                own.batch_select_indices(torch.tensor(selected, device=model.device))
            limit, stop = questions[batch[0]].max_new_tokens, questions[batch[0]].stop
            suffixes = [prompts[row][1] for row in batch]
            found = _greedy(model, processor, own, len(prefix), suffixes, limit, stop)
            for row, (tokens, ended) in zip(batch, found, strict=True):
                yield row, _answer_of(processor.tokenizer, tokens, ended, stop)


def _image_cache(
    model: Any,
    processor: Any,
    prefix: tuple[int, ...],
    images: Images,
    shown_together: list[tuple[int, ...]],
) -> Any:
    """Return keys and values of the prefix, one row for each distinct tuple of images."""
    # Process the pictures one by one, so that only one is decoded at a time.
    pixels = torch.cat(
        [
            processor.image_processor([images[image]], return_tensors="pt")["pixel_values"]
            for row in shown_together
            for image in row
        ]
    )
    ids = torch.tensor(prefix, device=model.device)
    output = model(
        input_ids=ids.expand(len(shown_together), -1).contiguous(),
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
    stop: tuple[str, ...],
) -> list[tuple[list[int], bool]]:
    """Continue `suffixes` [rows][tokens] greedily after an optional cached prefix.

    Returns the tokens of each row, and whether it ended with an end token. A stop text ends a row too.
    """
    device, ends = model.device, _end_tokens(model, processor)
    pad = processor.tokenizer.pad_token_id or 0
    longest = max(len(suffix) for suffix in suffixes)
    gaps = [longest - len(suffix) for suffix in suffixes]
    ids = torch.tensor(
        [[pad] * gap + list(suffix) for gap, suffix in zip(gaps, suffixes, strict=True)],
        device=device,
    )
    gap = torch.tensor(gaps, device=device)[:, None]
    columns = torch.arange(longest, device=device)[None]
    # The padding is between image and question. It is masked, and has no positions.
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
                if not stop or not _stops(processor.tokenizer, done[row], stop):
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
