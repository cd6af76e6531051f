"""Processor of Maya: conversations and pictures to `input_ids`, `attention_mask`, `pixel_values`."""

import re
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .image_processing_maya import MayaImageProcessor

# A private-use character put inside a control token that somebody typed: `<` BREAK `image>`. The
# processor cuts the text there before tokenising and drops the character, so the model reads
# exactly what was typed, as ordinary text; a tokenizer that is given the string directly does not
# find a control token in it either.
BREAK = "\U000f0002"

ROLES = ("system", "user", "assistant")


def add_image_token(
    tokenizer: Any, num_embeddings: int | None = None, image_token: str = "<image>"
) -> int:
    """Give `tokenizer` the `image_token`, if it has none, and return its id.

    The token is special, so text on either side is tokenised separately. `num_embeddings` is the
    number of embedding rows of the decoder: raises ValueError when none of them is spare, since
    Maya never resizes embeddings.
    """
    if image_token not in tokenizer.get_added_vocab():
        if num_embeddings is not None and len(tokenizer) >= num_embeddings:
            raise ValueError(
                f"No spare embedding row for {image_token!r}: the tokenizer has {len(tokenizer)} tokens and the "
                f"decoder {num_embeddings} rows. Use a decoder with at least {len(tokenizer) + 1} rows."
            )
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False
        )
    return tokenizer.convert_tokens_to_ids(image_token)


def messages_from_conversations(
    conversations: list[dict[str, str]], num_images: int, name: str = "the sample"
) -> list[dict[str, Any]]:
    """Turn a LLaVA `conversations` list into `messages` with `{"type": "image"}` parts.

    The rules are those of the original: `<image>` markers are taken out of a human turn and its
    images come first in it; two markers in one turn stand for one image if there are fewer images
    than markers; a leading gpt turn is dropped (the result is then one turn shorter than the rest
    of the input would give). What the original silently failed to learn raises ValueError, with
    `name` in it: an empty answer, a marker in an answer, markers that do not match `num_images`,
    unknown speakers.
    """
    roles = {
        "human": "user",
        "gpt": "assistant",
        "user": "user",
        "assistant": "assistant",
        "system": "system",
    }
    turns = []
    for index, turn in enumerate(conversations):
        speaker, value = turn.get("from"), turn.get("value")
        if speaker not in roles or not isinstance(value, str):
            raise ValueError(
                f"{name}, turn {index + 1}: expected 'from' (human, gpt or system) and a text 'value', "
                f"found from={speaker!r} and a value of type {type(value).__name__}."
            )
        turns.append((roles[speaker], value))
    if turns and turns[0][0] == "assistant":
        turns = turns[1:]
    markers = [value.count("<image>") for _, value in turns]
    for (role, _), count in zip(turns, markers, strict=True):
        if count and role != "user":
            raise ValueError(
                f"{name}: an <image> marker in {'an' if role == 'assistant' else 'a'} {role} turn; images belong to the human turns."
            )
    marked_turns = sum(count > 0 for count in markers)
    if num_images not in (sum(markers), marked_turns):
        raise ValueError(
            f"{name}: {num_images} images but {sum(markers)} <image> markers in {marked_turns} turns; "
            "give each image one marker."
        )
    messages: list[dict[str, Any]] = []
    for (role, value), count in zip(turns, markers, strict=True):
        if not count:
            messages.append({"role": role, "content": value})
            continue
        images = count if sum(markers) == num_images else 1
        text = value.replace("<image>", "")
        messages.append(
            {
                "role": role,
                "content": [{"type": "image"} for _ in range(images)]
                + [{"type": "text", "text": text}],
            }
        )
    _check_messages(messages, name)
    return messages


def _check_messages(messages: Any, name: str, allow_empty_last: bool = False) -> None:
    """Raise ValueError, naming the turn, unless `messages` can be rendered and learned from."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(
            f"{name}: expected a list of messages with at least one turn, found {messages!r}."
        )
    for index, message in enumerate(messages):
        where = f"{name}, turn {index + 1}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else type(message).__name__
            raise ValueError(f"{where}: expected a role of {', '.join(ROLES)}, found {role!r}.")
        role, content = message["role"], message.get("content")
        if isinstance(content, str):
            empty = not content
        elif isinstance(content, (list, tuple)):
            empty = True
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                if kind == "text" and isinstance(part.get("text"), str):
                    empty = empty and not part["text"]
                elif kind == "image":
                    if role != "user":
                        raise ValueError(
                            f"{where}: an image in the {role}'s turn; images belong to user turns."
                        )
                else:
                    raise ValueError(
                        f"{where}: expected parts of type 'text' (with 'text') or 'image', found {kind!r}."
                    )
        else:
            raise ValueError(
                f"{where}: expected 'content' as text or a list of parts, found {type(content).__name__}."
            )
        if role == "assistant" and empty and not (allow_empty_last and index == len(messages) - 1):
            raise ValueError(
                f"{where}: the assistant's answer is empty, there is nothing to learn or continue from."
            )


def _count_images(messages: list[dict[str, Any]]) -> int:
    return sum(
        part.get("type") == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def _with_images_first(messages: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Put `num_images` image parts at the start of the first user turn."""
    for index, message in enumerate(messages):
        if message["role"] == "user":
            content = message["content"]
            parts = (
                [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            )
            message = {**message, "content": [{"type": "image"} for _ in range(num_images)] + parts}
            return [*messages[:index], message, *messages[index + 1 :]]
    raise ValueError(f"{num_images} images but no user turn to put them in.")


def _assistant_mask(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Mark the tokens, given by their character offsets, that overlap one of the sorted `spans`."""
    mask = [0] * len(offsets)
    previous_end = None
    current = 0
    for position, (start, end) in enumerate(offsets):
        if not end:
            continue
        # Some tokenizers leave a leading space out of the offsets; it belongs to the token all the same.
        if previous_end is not None and start > previous_end:
            start = previous_end
        previous_end = end
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        if current == len(spans):
            break
        if start < end and end > spans[current][0]:
            mask[position] = 1
    return mask


class MayaProcessor(ProcessorMixin):
    r"""Joins the image processor and the tokenizer.

    Args:
        image_processor (`MayaImageProcessor`): see there.
        tokenizer: a fast tokenizer that has `image_token` as an added token (`add_image_token`).
            It is set to pad on the left, as generation needs; `padding_side="right"` at the call
            or `processor.tokenizer.padding_side = "right"` is for training.
        image_seq_length (`int`): tokens an image takes in the text; the model's
            `config.image_seq_length`.
        chat_template (`str`): a Jinja template; those in `chat_templates/` are `maya`, `aya`,
            `plain`.
        image_token (`str`): the placeholder, `<image>`.

    Images enter a conversation only as `{"type": "image"}` parts. Control tokens that occur in
    the text of a message (`<image>`, `<|END_OF_TURN_TOKEN|>`, any added token of the tokenizer)
    are read as ordinary text, see `apply_chat_template`. A plain string given to the processor is
    the caller's own prompt: there every `<image>` is a placeholder.
    """

    def __init__(
        self,
        image_processor: MayaImageProcessor | None = None,
        tokenizer: Any = None,
        image_seq_length: int | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        **kwargs: Any,
    ):
        if not isinstance(image_seq_length, int) or image_seq_length < 1:
            raise ValueError(
                f"image_seq_length must be a positive whole number, the model's config.image_seq_length; "
                f"found {image_seq_length!r}."
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        if image_token not in tokenizer.get_added_vocab():
            raise ValueError(
                f"The tokenizer has no token {image_token!r}; add it to a spare embedding row with "
                "processing_maya.add_image_token(tokenizer, num_embeddings)."
            )
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokenizer.padding_side = "left"
        self._control_tokens: tuple[int, re.Pattern | None] = (-1, None)
        self._adds_bos: bool | None = None

    # What the processor knows of its tokenizer

    @property
    def control_token_pattern(self) -> re.Pattern:
        """Matches every added token of the tokenizer that text can spell, longest first."""
        size = len(self.tokenizer)
        known_size, pattern = self._control_tokens
        if pattern is None or known_size != size:
            tokens = {
                token
                for token in self.tokenizer.get_added_vocab()
                if len(token) > 1 and not token.isspace()
            }
            tokens.add(self.image_token)
            longest_first = sorted(tokens, key=lambda token: (-len(token), token))
            pattern = re.compile("|".join(map(re.escape, longest_first)))
            self._control_tokens = (size, pattern)
        return pattern

    def neutralize(self, text: str) -> str:
        """Return `text` with the control tokens in it broken up, so that they are read as text."""
        if BREAK in text:
            text = text.replace(BREAK, "")
        pattern = self.control_token_pattern
        # Breaking one token can leave another, shorter one intact in it.
        while pattern.search(text):
            text = pattern.sub(lambda match: match.group()[0] + BREAK + match.group()[1:], text)
        return text

    def _tokenizer_adds_bos(self) -> bool:
        if self._adds_bos is None:
            self._adds_bos = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return self._adds_bos

    # Placeholders

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The text that one `<image>` becomes: the placeholder, `image_seq_length` times."""
        return self.image_token * self.image_seq_length

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(
            num_image_tokens=[self.image_seq_length] * count, num_image_patches=[1] * count
        )

    # Strings and images

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Process prompts and images.

        Args:
            images: PIL images, arrays, paths or URLs: one, a list, or a list per text.
            text (`str` or `list[str]`): prompts, with one `<image>` for each image.
            kwargs: as for every transformers processor: `return_tensors`, `padding`,
                `padding_side`, `truncation`, `max_length`, `return_mm_token_type_ids`,
                `return_text_replacement_offsets`, arguments of the image processor, ...

        Returns `input_ids` and `attention_mask` [texts, tokens] int64, `pixel_values` float32
        [images, 3, height, width]; lists unless `return_tensors` is given. A text that already
        starts with the BOS token does not get a second one.

        Raises ValueError when placeholders and images differ in number, in all or in one row, and
        when truncation would cut image tokens.
        """
        for other in ("videos", "audio"):
            if kwargs.pop(other, None) is not None:
                raise ValueError(f"{type(self).__name__} takes text and images, found {other}.")
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__} needs text, images or both.")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return_tensors = merged["text_kwargs"].pop("return_tensors", None)
        data: dict[str, Any] = {}

        per_row = None
        if images is not None:
            images = self.image_processor.fetch_images(images)
            if isinstance(images, (list, tuple)) and any(
                isinstance(row, (list, tuple)) for row in images
            ):
                per_row = [len(row) if isinstance(row, (list, tuple)) else 1 for row in images]
                images = [
                    image
                    for row in images
                    for image in (row if isinstance(row, (list, tuple)) else [row])
                ]
            elif isinstance(images, (list, tuple)):
                images = list(images)
            else:
                images = [images] if getattr(images, "ndim", 3) != 4 else list(images)
        num_images = len(images) if images is not None else 0

        replacements: list[str] = []
        if text is not None:
            rows = [text] if isinstance(text, str) else list(text)
            if not rows or not all(isinstance(row, str) for row in rows):
                raise ValueError("`text` must be a string or a list of at least one string.")
            self._check_counts(rows, num_images, per_row)
        if num_images:
            processed = self.image_processor(
                images, **{**merged["images_kwargs"], "return_tensors": None}
            )
            data.update(processed)
            replacements = [
                self.replace_image_token(processed, index) for index in range(num_images)
            ]

        if text is not None:
            text_kwargs = merged["text_kwargs"]
            return_types = text_kwargs.pop(
                "return_mm_token_type_ids", merged["return_mm_token_type_ids"]
            )
            return_offsets = text_kwargs.pop(
                "return_text_replacement_offsets", merged["return_text_replacement_offsets"]
            )
            rows = self._with_one_bos(rows, text_kwargs)
            rows, replacement_offsets = self.get_text_with_replacements(rows, replacements)
            text_inputs = self._tokenize(rows, text_kwargs)
            self._check_truncation(rows, text_inputs["input_ids"], text_kwargs)
            if return_offsets:
                text_inputs["text_replacement_offsets"] = replacement_offsets
            if return_types:
                text_inputs["mm_token_type_ids"] = self.create_mm_token_type_ids(
                    text_inputs["input_ids"]
                )
            data = {**text_inputs, **data}
        return BatchFeature(
            data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion
        )

    def _check_counts(self, rows: list[str], num_images: int, per_row: list[int] | None) -> None:
        counts = [row.count(self.image_token) for row in rows]
        hint = (
            f"Write one {self.image_token} in the text for each image, or use apply_chat_template with "
            'one {"type": "image"} part for each.'
        )
        if sum(counts) != num_images:
            raise ValueError(
                f"Found {sum(counts)} {self.image_token} placeholders in the text and {num_images} images. {hint}"
            )
        if per_row is not None and len(rows) == len(per_row) and counts != per_row:
            row = next(index for index in range(len(rows)) if counts[index] != per_row[index])
            raise ValueError(
                f"Row {row}: found {counts[row]} {self.image_token} placeholders and {per_row[row]} images. {hint}"
            )

    def _with_one_bos(self, rows: list[str], text_kwargs: dict[str, Any]) -> list[str]:
        """Let BOS come from the text where the text has one, and never twice."""
        bos = self.tokenizer.bos_token
        if text_kwargs.get("add_special_tokens") is False or not bos:
            return rows
        if not any(row.startswith(bos) for row in rows):
            return rows
        text_kwargs["add_special_tokens"] = False
        if not self._tokenizer_adds_bos():
            return rows
        return [row if row.startswith(bos) else bos + row for row in rows]

    def _tokenize(self, rows: list[str], text_kwargs: dict[str, Any]) -> dict[str, Any]:
        if not any(BREAK in row for row in rows):
            return dict(self.tokenizer(rows, **text_kwargs))
        # Pieces between breaks are tokenised alone, so no token reaches across a break.
        pieces = [row.split(BREAK) for row in rows]
        encoded = self.tokenizer(pieces, **{**text_kwargs, "is_split_into_words": True})
        if "offset_mapping" in encoded:
            encoded["offset_mapping"] = [
                _offsets_in_text(
                    row_pieces, encoded.word_ids(index), encoded["offset_mapping"][index]
                )
                for index, row_pieces in enumerate(pieces)
            ]
        return dict(encoded)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of one text, past the checks of a tokenizer call."""
        bos = self.tokenizer.bos_token
        add_special_tokens = not (bos and text.startswith(bos))
        backend = self.tokenizer.backend_tokenizer
        # A tokenizer call leaves its settings behind.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        if BREAK not in text:
            encoding = backend.encode(text, add_special_tokens=add_special_tokens)
            return encoding.ids, encoding.offsets
        pieces = text.split(BREAK)
        encoding = backend.encode(
            pieces, is_pretokenized=True, add_special_tokens=add_special_tokens
        )
        return encoding.ids, _offsets_in_text(pieces, encoding.word_ids, encoding.offsets)

    def _check_truncation(
        self, rows: list[str], input_ids: list[list[int]], text_kwargs: dict[str, Any]
    ) -> None:
        for index, (row, ids) in enumerate(zip(rows, input_ids, strict=True)):
            expected, found = row.count(self.image_token), ids.count(self.image_token_id)
            if expected != found:
                raise ValueError(
                    f"Row {index}: truncation to max_length={text_kwargs.get('max_length')} leaves {found} of "
                    f"{expected} image tokens. Raise max_length or switch truncation off."
                )

    # Conversations

    def _prepare_messages(
        self,
        messages: Any,
        name: str,
        sanitize: bool,
        num_images: int | None = None,
        allow_empty_last: bool = False,
    ) -> list[dict[str, Any]]:
        """Check `messages`, place loose images, break up control tokens; the input is not changed."""
        _check_messages(messages, name, allow_empty_last)
        placed = _count_images(messages)
        if num_images is not None and placed != num_images:
            if placed:
                raise ValueError(
                    f'{name}: {num_images} images but {placed} {{"type": "image"}} parts in the messages; '
                    "give each image one part, or none to put them all before the first question."
                )
            messages = _with_images_first(list(messages), num_images)
        if not sanitize:
            return list(messages)
        prepared = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = self.neutralize(content)
            else:
                content = [
                    {**part, "text": self.neutralize(part["text"])}
                    if part["type"] == "text"
                    else part
                    for part in content
                ]
            # Templates of others may show further fields.
            others = {
                key: self.neutralize(value) if isinstance(value, str) else value
                for key, value in message.items()
                if key not in ("role", "content")
            }
            prepared.append({"role": message["role"], "content": content, **others})
        return prepared

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *args: Any,
        continue_final_message: bool | str = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a list of them; see `ProcessorMixin.apply_chat_template`.

        Unlike there, control tokens in the text of messages are ordinary text by default, also
        with `tokenize=False` and with `return_assistant_tokens_mask=True`. In the string that
        `tokenize=False` returns they hold one invisible private-use character (U+F0002) that the
        processor removes again. `sanitize_control_tokens=False` switches this off.

        Raises ValueError, naming conversation and turn, for unknown roles or parts, an image
        outside user turns, and an assistant turn without text.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation:
            _check_messages(conversation, "the conversation")
        conversations, is_batched = self._normalize_conversations(conversation)
        prepared = [
            self._prepare_messages(
                messages,
                f"conversation {index}" if is_batched else "the conversation",
                sanitize_control_tokens,
                allow_empty_last=bool(continue_final_message),
            )
            for index, messages in enumerate(conversations)
        ]
        return super().apply_chat_template(
            prepared if is_batched else prepared[0],
            chat_template,
            *args,
            continue_final_message=continue_final_message,
            processor_kwargs=dict(processor_kwargs or {}),
            sanitize_control_tokens=False,
            **kwargs,
        )

    def _adjust_assistant_masks_indices(
        self, processed_dict: dict[str, Any], generation_indices: list[list[tuple[int, int]]]
    ) -> dict[str, Any]:
        offset_mapping = processed_dict.pop("offset_mapping")
        if hasattr(offset_mapping, "tolist"):
            offset_mapping = offset_mapping.tolist()
        replaced = processed_dict.pop("text_replacement_offsets", None) or [[]] * len(
            offset_mapping
        )
        processed_dict["assistant_masks"] = [
            _assistant_mask(offsets, [_shift(span, row_replaced) for span in spans])
            for offsets, spans, row_replaced in zip(
                offset_mapping, generation_indices, replaced, strict=True
            )
        ]
        return processed_dict

    def encode_conversation(
        self,
        messages: list[dict[str, Any]],
        num_images: int | None = None,
        chat_template: str | None = None,
        name: str = "the conversation",
    ) -> dict[str, list[int]]:
        """Encode one conversation for training, without opening its images.

        Equal to `apply_chat_template(..., tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True)`, and several times faster, as the number of tokens of
        an image is fixed.

        Args:
            messages: turns with `role` and `content`, text or parts. If there are no image parts,
                `num_images` images are put before the text of the first user turn.
            num_images (`int`, *optional*): checked against the image parts.
            chat_template (`str`, *optional*): another template than the processor's.
            name (`str`): what to call the conversation in errors, such as file and row.

        Returns `input_ids` (image tokens expanded) and `assistant_mask` (1 where the assistant
        speaks, end-of-turn included), two lists of the same length.

        Raises ValueError for everything that could not be learned as meant, see
        `apply_chat_template`, and if nothing is learned at all.
        """
        template = self._resolve_chat_template(chat_template)
        prepared = self._prepare_messages(messages, name, sanitize=True, num_images=num_images)
        try:
            texts, spans = render_jinja_template(
                conversations=[prepared],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
        text, row_spans = texts[0], spans[0]
        ids, offsets = self._encode(text)
        mask = _assistant_mask(offsets, row_spans)
        found, expected = ids.count(self.image_token_id), _count_images(prepared)
        if found != expected:
            raise ValueError(
                f"{name}: {expected} images but {found} {self.image_token} placeholders after the chat template."
            )
        if not any(mask):
            raise ValueError(f"{name}: no assistant turn, there is nothing to learn.")
        if found:
            expanded_ids: list[int] = []
            expanded_mask: list[int] = []
            for token, flag in zip(ids, mask, strict=True):
                repeat = self.image_seq_length if token == self.image_token_id else 1
                expanded_ids += [token] * repeat
                expanded_mask += [flag] * repeat
            ids, mask = expanded_ids, expanded_mask
        return {"input_ids": ids, "assistant_mask": mask}


def _shift(span: tuple[int, int], replaced: list[dict[str, Any]]) -> tuple[int, int]:
    """Move a span of the rendered text to where it is after the placeholders were expanded."""
    shift = 0
    for replacement in replaced:
        if replacement["span"][1] > span[0]:
            break
        shift = replacement["new_span"][1] - replacement["span"][1]
    return span[0] + shift, span[1] + shift


def _offsets_in_text(
    pieces: list[str], word_ids: list[int | None], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Character offsets in the text that `pieces` were cut from, from offsets within each piece."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece) + len(BREAK))
    return [
        (0, 0) if word is None else (starts[word] + start, starts[word] + end)
        for word, (start, end) in zip(word_ids, offsets, strict=True)
    ]
