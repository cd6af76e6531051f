"""Processor of Maya: conversations and images to `input_ids`, `attention_mask`, `pixel_values`."""

import re
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

# Import all modules here: transformers before 5.10 copies only those that a processor imports itself.
from .conversations_maya import IMAGE_KEYS, check_messages, count_images, with_images_first
from .image_loading_maya import ImageSource
from .image_processing_maya import MayaImageProcessor, MayaImageProcessorKwargs

# A private-use character put inside a control token that a user typed: `<` BREAK `image>`. The
# processor cuts the text there before tokenization and drops the character, so the model reads exactly
# the typed text, as ordinary text. A tokenizer that gets the string directly finds no control token
# either.
BREAK = "\U000f0002"

# Private-use characters that mark the start and end of the assistant's text in a rendered template.
SPAN_START, SPAN_END = "\U000f0003", "\U000f0004"

# Arguments of a tokenizer call that `apply_chat_template` accepts together with template variables.
TOKENIZER_KWARGS = (
    "add_special_tokens",
    "max_length",
    "pad_to_multiple_of",
    "padding",
    "padding_side",
    "return_attention_mask",
    "return_mm_token_type_ids",
    "return_offsets_mapping",
    "return_text_replacement_offsets",
    "truncation",
    "truncation_side",
)

# Half of a surrogate pair: such a text has no UTF-8 form, and no tokenizer accepts it.
SURROGATE = re.compile("[\ud800-\udfff]")


def add_image_token(
    tokenizer: Any, num_embeddings: int | None = None, image_token: str = "<image>"
) -> int:
    """Add `image_token` to `tokenizer` unless it is there, and return its id.

    The token is special, so text before and after it is tokenized separately.

    Args:
        num_embeddings: number of embedding rows of the decoder.

    Raises:
        ValueError: if no embedding row is spare; Maya never resizes embeddings.
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


def _assistant_mask(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Return a mask of tokens, given by character offsets, that overlap one of the sorted `spans`."""
    mask = [0] * len(offsets)
    previous_end = None
    current = 0
    for position, (start, end) in enumerate(offsets):
        if not end:
            continue
        # Some tokenizers exclude a leading space from the offsets, although it belongs to the token.
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
    r"""Combines the image processor and the tokenizer.

    Args:
        image_processor (`MayaImageProcessor`): see there.
        tokenizer: a fast tokenizer with `image_token` as an added token (`add_image_token`). Its
            padding side is set to left, as generation needs; for training use `padding_side="right"`
            in the call, or `processor.tokenizer.padding_side = "right"`.
        image_seq_length (`int`): number of tokens per image in the text; the model's
            `config.image_seq_length`.
        chat_template (`str`): a Jinja template; `chat_templates/` has `maya`, `aya`, `plain`.
        image_token (`str`): the placeholder, `<image>`.

    Images enter a conversation only as `{"type": "image"}` parts. Control tokens in the text of a
    message (`<image>`, `<|END_OF_TURN_TOKEN|>`, any added token of the tokenizer) are read as
    ordinary text, see `apply_chat_template`. A plain string passed to the processor is the caller's own
    prompt: every `<image>` in it is a placeholder.
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
                f"image_seq_length: expected a positive whole number, the model's config.image_seq_length, "
                f"found {image_seq_length!r}."
            )
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        if image_token not in tokenizer.get_added_vocab():
            raise ValueError(
                f"tokenizer: expected a token {image_token!r}, found none: add it to a spare embedding row with "
                "processing_maya.add_image_token(tokenizer, num_embeddings)."
            )
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokenizer.padding_side = "left"
        self._control_tokens: tuple[int, re.Pattern | None] = (-1, None)
        self._adds_bos: bool | None = None

    # Facts about the tokenizer

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
        """Return `text` with its control tokens broken up, so that they are read as text."""
        for mark in (BREAK, SPAN_START, SPAN_END):
            text = text.replace(mark, "")
        pattern = self.control_token_pattern
        # A broken token may contain another, shorter token, so repeat.
        while pattern.search(text):
            text = pattern.sub(lambda match: match.group()[0] + BREAK + match.group()[1:], text)
        return text

    # Placeholders

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the text that replaces one `<image>`: the placeholder, repeated. For serving engines."""
        return self.image_token * self.image_seq_length

    def _expand_placeholders(self, rows: list[str]) -> tuple[list[str], list[list[dict]]]:
        """Repeat every placeholder; also return its old `span` and its `new_span`, in characters."""
        replacement = self.image_token * self.image_seq_length
        growth = len(replacement) - len(self.image_token)
        offsets = []
        for row in rows:
            found = []
            for index, match in enumerate(re.finditer(re.escape(self.image_token), row)):
                start = match.start() + index * growth
                found.append(
                    {
                        "type": "image",
                        "span": match.span(),
                        "new_span": (start, start + len(replacement)),
                        "text": self.image_token,
                        "replacement": replacement,
                    }
                )
            offsets.append(found)
        return [row.replace(self.image_token, replacement) for row in rows], offsets

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

        Returns:
            `input_ids` and `attention_mask` [texts, tokens] int64, `pixel_values` float32
            [images, 3, height, width]; lists unless `return_tensors` is given. A text that already
            starts with the BOS token does not get a second one.

        Raises:
            ValueError: if the numbers of placeholders and images differ, in total or in one row, or
                truncation would cut image tokens.
        """
        for other in ("videos", "audio"):
            if kwargs.pop(other, None) is not None:
                raise ValueError(f"{type(self).__name__} takes text and images, found {other}.")
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__} needs text, images or both.")
        text_kwargs, images_kwargs, return_tensors = _sort_kwargs(kwargs)
        data: dict[str, Any] = {}

        pictures, per_row = self._read_images(images)
        rows: list[str] = []
        if text is not None:
            rows = [text] if isinstance(text, str) else list(text)
            if not rows or not all(isinstance(row, str) for row in rows):
                raise ValueError("`text` must be a string or a list of at least one string.")
            for index, row in enumerate(rows):
                _check_text(row, f"text {index + 1}")
            self._check_counts(rows, len(pictures), per_row)
        if pictures:
            data.update(self.image_processor(pictures, **images_kwargs))

        replacement_offsets = None
        if text is not None:
            return_types = text_kwargs.pop("return_mm_token_type_ids", False)
            return_offsets = text_kwargs.pop("return_text_replacement_offsets", False)
            rows = self._with_one_bos(rows, text_kwargs)
            if pictures:
                rows, replacement_offsets = self._expand_placeholders(rows)
            text_inputs = self._tokenize(rows, text_kwargs)
            self._check_truncation(rows, text_inputs["input_ids"], text_kwargs)
            if return_types:
                text_inputs["mm_token_type_ids"] = [
                    [int(token == self.image_token_id) for token in ids]
                    for ids in text_inputs["input_ids"]
                ]
            data = {**text_inputs, **data}
            if not return_offsets:
                replacement_offsets = None
        output = BatchFeature(data, tensor_type=return_tensors)
        if replacement_offsets is not None:
            output["text_replacement_offsets"] = replacement_offsets
        return output

    def _read_images(self, images: Any) -> tuple[list[Any], list[int] | None]:
        """Return a flat list of images, and their number per row if `images` is a list of lists."""
        if images is None:
            return [], None
        if not isinstance(images, (list, tuple)):
            return self.image_processor.flatten_images(images), None
        rows = [self.image_processor.flatten_images(row) for row in images]
        nested = any(isinstance(row, (list, tuple)) for row in images)
        pictures = [picture for row in rows for picture in row]
        return pictures, [len(row) for row in rows] if nested else None

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
        """Take BOS from the text if the text has one, so that it never appears twice."""
        bos = self.tokenizer.bos_token
        if text_kwargs.get("add_special_tokens") is False or not bos:
            return rows
        if not any(row.startswith(bos) for row in rows):
            return rows
        text_kwargs["add_special_tokens"] = False
        if self._adds_bos is None:
            self._adds_bos = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        if not self._adds_bos:
            return rows
        return [row if row.startswith(bos) else bos + row for row in rows]

    def _tokenize(self, rows: list[str], text_kwargs: dict[str, Any]) -> dict[str, Any]:
        # Some tokenizers return token type ids by default, and none of Maya's decoders accepts them.
        text_kwargs = {"return_token_type_ids": False, **text_kwargs}
        if not any(BREAK in row for row in rows):
            return dict(self.tokenizer(rows, **text_kwargs))
        # Pieces between breaks are tokenized separately, so no token crosses a break.
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
        """Return ids and character offsets of one text, without the checks of a tokenizer call."""
        bos = self.tokenizer.bos_token
        add_special_tokens = not (bos and text.startswith(bos))
        backend = self.tokenizer.backend_tokenizer
        # An earlier call of the tokenizer may have left other settings in the backend.
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
        """Return checked messages with images placed and control tokens broken up; the input is unchanged."""
        check_messages(messages, name, allow_empty_last)
        placed = count_images(messages)
        if num_images is not None and placed != num_images:
            if placed:
                raise ValueError(
                    f'{name}: {num_images} images but {placed} {{"type": "image"}} parts in the messages; '
                    "give each image one part, or none to put them all before the first question."
                )
            messages = with_images_first(list(messages), num_images)
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
            # Other templates may render further fields.
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
        tools: list[Any] | None = None,
        documents: list[dict[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: Any = None,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a list of them; see `ProcessorMixin.apply_chat_template`.

        Args:
            conversation: messages with `role` and `content`, text or parts; or a list of such lists.
                A part is {"type": "text", "text"}, {"type": "image"} with the image under one of
                `image`, `url`, `path` and `base64`, or OpenAI's {"type": "image_url"}.
            chat_template: a template other than the processor's: its text, or the name of one of
                several templates that the processor has.
            tokenize: return `input_ids`, not text; with `return_dict=True` all inputs of the model,
                including images.
            processor_kwargs: arguments of the processor's call, such as `padding`. They may also be
                passed directly.
            sanitize_control_tokens: read control tokens in the text of messages as ordinary text. In
                the string that `tokenize=False` returns, each contains one invisible private-use
                character (U+F0002), which the processor removes again.
            kwargs: variables of the template.

        Returns:
            A string, `input_ids`, or a `BatchFeature`; for a list of conversations, lists of them.
            `assistant_masks` (with `return_assistant_tokens_mask=True`) marks the tokens of
            `{% generation %}` blocks.

        Raises:
            ValueError: naming conversation and turn, for unknown roles or parts, an image outside
                user turns, an image part with several images, and an assistant turn without text.
        """
        # Check the arguments and the messages.
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "continue_final_message: expected neither add_generation_prompt nor "
                "return_assistant_tokens_mask with it"
            )
        if not isinstance(conversation, (list, tuple)) or not conversation:
            check_messages(conversation, "the conversation")
        is_batched = isinstance(conversation[0], (list, tuple))
        conversations = [
            self._prepare_messages(
                [_plain_message(message) for message in messages]
                if isinstance(messages, (list, tuple))
                else messages,
                f"conversation {index}" if is_batched else "the conversation",
                sanitize_control_tokens,
                allow_empty_last=bool(continue_final_message),
            )
            for index, messages in enumerate(conversation if is_batched else [conversation])
        ]
        # Render the text.
        call = {name: kwargs.pop(name) for name in TOKENIZER_KWARGS if name in kwargs}
        for name in MayaImageProcessorKwargs.__annotations__:
            if name in kwargs:
                call[name] = kwargs.pop(name)
        call.update(processor_kwargs or {})
        rendered = [
            self._render(
                messages,
                chat_template,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )
            for messages in conversations
        ]
        texts = [text for text, _ in rendered]
        if not tokenize:
            return texts if is_batched else texts[0]

        # Tokenize, with images.
        # Callers of newer releases pass "auto" to leave the choice to the processor.
        if return_tensors is None or return_tensors == "auto":
            return_tensors = call.get("return_tensors")
        call.pop("return_tensors", None)
        images = call.pop("images", None) or [_pictures(messages) for messages in conversations]
        if self.tokenizer.bos_token and texts[0].startswith(self.tokenizer.bos_token):
            call["add_special_tokens"] = False
        if return_assistant_tokens_mask:
            call |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        has_images = any(not isinstance(row, (list, tuple)) or row for row in images)
        output = self(images=images if has_images else None, text=texts, **call)
        # Mark the assistant's tokens.
        if return_assistant_tokens_mask:
            replaced = output.pop("text_replacement_offsets", None) or [[]] * len(texts)
            output["assistant_masks"] = [
                _assistant_mask(offsets, [_shift(span, row) for span in spans])
                for offsets, (_, spans), row in zip(
                    output.pop("offset_mapping"), rendered, replaced, strict=True
                )
            ]
        kept = output.pop("text_replacement_offsets", None)
        output = BatchFeature(dict(output), tensor_type=return_tensors)
        if kept is not None:
            output["text_replacement_offsets"] = kept
        return output if return_dict else output["input_ids"]

    def _render(
        self, messages: list[dict[str, Any]], chat_template: str | None, **kwargs: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of one conversation, and the character spans of the assistant's text."""
        template = chat_template
        if isinstance(self.chat_template, dict):
            name = "default" if chat_template is None else chat_template
            template = self.chat_template.get(name, chat_template)
        elif chat_template is None:
            template = self.chat_template
        if template is None:
            raise ValueError(
                f"{type(self).__name__} has no chat template: give it one, chat_template=..."
            )
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=_marking_template(template), tokenize=False, **kwargs
        )
        if SPAN_START not in text:
            return text, []
        spans: list[tuple[int, int]] = []
        pieces: list[str] = []
        length = 0
        for piece in text.split(SPAN_START):
            spoken, _, rest = piece.partition(SPAN_END)
            # The first piece is the text before the first span.
            if pieces:
                spans.append((length, length + len(spoken)))
            pieces.append(spoken + rest)
            length += len(spoken) + len(rest)
        return "".join(pieces), spans

    def encode_conversation(
        self,
        messages: list[dict[str, Any]],
        num_images: int | None = None,
        chat_template: str | None = None,
        name: str = "the conversation",
        add_generation_prompt: bool = False,
    ) -> dict[str, list[int]]:
        """Encode one conversation, for training or for an answer, without opening its images.

        The result equals `apply_chat_template(..., tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True)`, but is several times faster, because the number of tokens
        per image is fixed.

        Args:
            messages: turns with `role` and `content`, text or parts. Without image parts,
                `num_images` images are put before the text of the first user turn.
            num_images (`int`, *optional*): checked against the image parts.
            chat_template (`str`, *optional*): a template other than the processor's.
            name (`str`): name of the conversation in errors, such as file and row.
            add_generation_prompt (`bool`): end with the start of the assistant's answer, for a model to
                continue. The conversation then needs no assistant turn.

        Returns:
            `input_ids` (image tokens expanded) and `assistant_mask` (1 for the assistant's text,
            including end of turn), two lists of the same length.

        Raises:
            ValueError: for everything that could not be learned as intended, see
                `apply_chat_template`; without `add_generation_prompt` also if nothing is learned.
        """
        prepared = self._prepare_messages(messages, name, sanitize=True, num_images=num_images)
        try:
            text, row_spans = self._render(
                prepared, chat_template, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
        _check_text(text, name)
        ids, offsets = self._encode(text)
        mask = _assistant_mask(offsets, row_spans)
        found, expected = ids.count(self.image_token_id), count_images(prepared)
        if found != expected:
            raise ValueError(
                f"{name}: {expected} images but {found} {self.image_token} placeholders after the chat template."
            )
        if not add_generation_prompt and not any(mask):
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


def _check_text(text: str, where: str) -> None:
    """Raise ValueError, naming the place, for a text that UTF-8 cannot encode."""
    half = SURROGATE.search(text)
    if half:
        raise ValueError(
            f"{where}: expected text, found half of a surrogate pair (U+{ord(half[0]):04X}) after "
            f"{half.start()} characters."
        )


def _sort_kwargs(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Sort a call's arguments into (the tokenizer's, the image processor's, return_tensors).

    They may be flat or nested (`text_kwargs`, `images_kwargs`, `common_kwargs`), as in every processor
    of transformers.
    """
    text_kwargs: dict[str, Any] = {}
    images_kwargs: dict[str, Any] = {}
    image_names = (*MayaImageProcessorKwargs.__annotations__, "input_data_format")
    kinds = ("common", "text", "images", "videos", "audio")
    nested = {kind: dict(kwargs.pop(f"{kind}_kwargs", None) or {}) for kind in kinds}
    for name, value in {**nested["common"], **kwargs}.items():
        (images_kwargs if name in image_names else text_kwargs)[name] = value
    text_kwargs.update(nested["text"])
    images_kwargs.update(nested["images"])
    tensors = [part.pop("return_tensors", None) for part in (text_kwargs, images_kwargs)]
    return text_kwargs, images_kwargs, tensors[0] or tensors[1]


def _marking_template(template: str) -> str:
    """Replace the `{% generation %}` tags of a template by marks around their content.

    Each tag becomes a mark inside an `if` with the same white-space control, so the rest of the text is
    unchanged. Rendering then needs only a plain Jinja renderer.
    """
    for tag, mark in (("generation", SPAN_START), ("endgeneration", SPAN_END)):
        template = re.sub(
            r"\{%([-+]?)\s*" + tag + r"\s*([-+]?)%\}",
            rf'{{%\1 if true %}}{{{{ "{mark}" }}}}{{% endif \2%}}',
            template,
        )
    return template


def _plain_message(message: Any) -> Any:
    """Return a message as plain dicts: `image_url` parts become image parts, None fields are dropped."""
    if not isinstance(message, dict):
        # Message objects of client libraries can convert themselves to dicts.
        if not hasattr(message, "model_dump"):
            return message
        message = message.model_dump()
    message = {name: value for name, value in message.items() if value is not None}
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    parts = []
    for part in content:
        if isinstance(part, dict):
            part = {name: value for name, value in part.items() if value is not None}
            if part.get("type") == "image_url" and "image_url" in part:
                address = part["image_url"]
                url = address.get("url", "") if isinstance(address, dict) else address
                part = {"type": "image", "url": url}
        parts.append(part)
    return {**message, "content": parts}


def _pictures(messages: list[dict[str, Any]]) -> list[ImageSource]:
    """Return the images in a conversation's image parts, in reading order."""
    return [
        part[key]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
        for key in IMAGE_KEYS
        if part.get(key) is not None
    ]


def _shift(span: tuple[int, int], replaced: list[dict[str, Any]]) -> tuple[int, int]:
    """Map a span of the rendered text to its position after placeholders are expanded."""
    shift = 0
    for replacement in replaced:
        if replacement["span"][1] > span[0]:
            break
        shift = replacement["new_span"][1] - replacement["span"][1]
    return span[0] + shift, span[1] + shift


def _offsets_in_text(
    pieces: list[str], word_ids: list[int | None], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Turn offsets within pieces into character offsets in the text that `pieces` were cut from."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece) + len(BREAK))
    return [
        (0, 0) if word is None else (starts[word] + start, starts[word] + end)
        for word, (start, end) in zip(word_ids, offsets, strict=True)
    ]
