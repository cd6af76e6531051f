"""Conversations to tokens, fast enough for small models: what repeats is tokenised once.

A chat template surrounds texts with control tokens, and a control token is a border no token
crosses. So a conversation's tokens are the template's own pieces, the same for every conversation
of that shape, with the tokens of its texts between them. Pieces are learned from the processor
itself and checked against it; a conversation for which this does not hold goes through the
processor, which is always right.
"""

from typing import Any

import numpy as np

from .source import Conversation

# Stands for the text of a turn while the pieces are learned; ordinary words, two of a shape.
_STAND_INS = ("Ab cd {}.", "q{}w")
KEPT_TEXTS = 1 << 18


class ConversationEncoder:
    """`encode` gives what `MayaProcessor.encode_conversation` gives, as arrays."""

    def __init__(self, processor: Any):
        self.processor = processor
        self._pieces: dict[Any, list[tuple[np.ndarray, np.ndarray]] | None] = {}
        self._flags: dict[Any, list[bool]] = {}
        self._texts: dict[str, np.ndarray] = {}

    def encode(
        self, conversation: Conversation, chat_template: str | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids (n,) int32 and trained (n,) bool. Raises ValueError with `name` in it, as the processor."""
        images = len(conversation.images)
        shape, texts = _shape(conversation.messages)
        if texts is None or not all(self._plain(text) for text in texts):
            return self._slow(conversation.messages, images, chat_template, name)
        key = (shape, images, chat_template)
        if key not in self._pieces:
            self._pieces[key] = self._learn(conversation.messages, images, chat_template, name, key)
        pieces = self._pieces[key]
        if pieces is None:
            return self._slow(conversation.messages, images, chat_template, name)
        ids, trained = [pieces[0][0]], [pieces[0][1]]
        for text, flag, (piece, piece_trained) in zip(
            texts, self._flags[key], pieces[1:], strict=True
        ):
            tokens = self._tokens(text)
            ids += [tokens, piece]
            trained += [np.full(len(tokens), flag), piece_trained]
        return np.concatenate(ids), np.concatenate(trained)

    def _slow(
        self, messages: list, images: int, chat_template: str | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens = self.processor.encode_conversation(
            messages, num_images=images, chat_template=chat_template, name=name
        )
        return np.array(tokens["input_ids"], np.int32), np.array(tokens["assistant_mask"], bool)

    def _plain(self, text: str) -> bool:
        """Whether a text is tokenised alone as it is between control tokens."""
        return (
            bool(text)
            and text == text.strip()
            and text.isprintable()
            and not self.processor.control_token_pattern.search(text)
        )

    def _tokens(self, text: str) -> np.ndarray:
        known = self._texts.get(text)
        if known is None:
            found = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            known = np.array(found, np.int32)
            if len(self._texts) < KEPT_TEXTS:
                self._texts[text] = known
        return known

    def _learn(
        self, messages: list, images: int, chat_template: str | None, name: str, key: Any
    ) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """The template's pieces around the texts, or None when they cannot be told apart."""
        found = None
        for stand_in in _STAND_INS:
            texts = [stand_in.format(f"{i}x") for i in range(len(messages))]
            # What is wrong with the shape is wrong with the row: hence its name.
            ids, trained = self._slow(_with_texts(messages, texts), images, chat_template, name)
            pieces, flags, position = [], [], 0
            for text in texts:
                tokens = self._tokens(text)
                start = _find(ids, tokens, position)
                if start is None:
                    return None
                inside = trained[start : start + len(tokens)]
                if inside.any() != inside.all():
                    return None
                pieces.append((ids[position:start], trained[position:start]))
                flags.append(bool(inside.all()))
                position = start + len(tokens)
            pieces.append((ids[position:], trained[position:]))
            # A text must begin and end at control tokens, or it would merge with its neighbours.
            controls = set(self.processor.tokenizer.get_added_vocab().values())
            for i, (piece, _) in enumerate(pieces):
                if not len(piece) or (i and piece[0] not in controls):
                    return None
                if i + 1 < len(pieces) and piece[-1] not in controls:
                    return None
            if found is not None and not _same(found, (pieces, flags)):
                return None
            found = (pieces, flags)
        assert found is not None
        self._flags[key] = found[1]
        return found[0]


def _shape(messages: list[dict[str, Any]]) -> tuple[Any, list[str] | None]:
    """What the template sees of a conversation beside its texts, and the texts; None: not so simple."""
    shape, texts = [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            shape.append((message["role"], -1))
            texts.append(content)
            continue
        kinds = [part.get("type") for part in content]
        if kinds.count("text") != 1 or kinds[-1] != "text" or set(message) != {"role", "content"}:
            return None, None
        shape.append((message["role"], len(kinds) - 1))
        texts.append(content[-1]["text"])
    return tuple(shape), texts


def _with_texts(messages: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    changed = []
    for message, text in zip(messages, texts, strict=True):
        content = message["content"]
        if not isinstance(content, str):
            content = [*content[:-1], {"type": "text", "text": text}]
        else:
            content = text
        changed.append({**message, "content": content})
    return changed


def _find(ids: np.ndarray, tokens: np.ndarray, start: int) -> int | None:
    for i in range(start, len(ids) - len(tokens) + 1):
        if np.array_equal(ids[i : i + len(tokens)], tokens):
            return i
    return None


def _same(a: tuple[list, list[bool]], b: tuple[list, list[bool]]) -> bool:
    return a[1] == b[1] and all(
        np.array_equal(x, y)
        for one, two in zip(a[0], b[0], strict=True)
        for x, y in zip(one, two, strict=True)
    )
