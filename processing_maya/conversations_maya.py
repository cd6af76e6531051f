"""Rules of conversations: roles, parts, answers, and the positions of images."""

from collections.abc import Callable
from functools import partial
from typing import Any

ROLES = ("system", "user", "assistant")

# Keys under which an image part may hold its image; a part has at most one of them.
IMAGE_KEYS = ("image", "url", "path", "base64")

IMAGE_MARK = "<image>"

# Speakers in LLaVA's `conversations` -> roles of messages.
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


class ConversationError(ValueError):
    """A fault of a conversation.

    Args:
        name: name of the conversation in the message.
        turn: number of the faulty turn, from 1; None if no single turn is at fault.
        reason: the message without the name.
    """

    def __init__(self, name: str, turn: int | None, reason: str):
        super().__init__(f"{name}: {reason}" if turn is None else f"{name}, turn {turn}: {reason}")
        self.turn, self.reason = turn, reason


def check_messages(
    messages: Any, name: str, allow_empty_last: bool = False, first_turn: int = 1
) -> None:
    """Raise ConversationError, naming the turn, unless `messages` can be rendered and trained on.

    Args:
        messages: the value to check; valid is a list of messages.
        name: name of the conversation in errors.
        allow_empty_last: the last answer may be empty, because it is still to be generated.
        first_turn: number of the first message in errors.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ConversationError(
            name, None, f"expected a list of messages with at least one turn, found {messages!r}."
        )
    for turn, message in enumerate(messages, first_turn):
        wrong = partial(ConversationError, name, turn)
        role = message.get("role") if isinstance(message, dict) else type(message).__name__
        if not isinstance(message, dict) or not isinstance(role, str) or role not in ROLES:
            raise wrong(f"expected a role of {', '.join(ROLES)}, found {role!r}.")
        empty = _is_empty(message.get("content"), role, wrong)
        last = turn == first_turn + len(messages) - 1
        if role == "assistant" and empty and not (allow_empty_last and last):
            raise wrong(
                "the assistant's answer is empty, there is nothing to learn or continue from."
            )


def _is_empty(content: Any, role: str, wrong: Callable[[str], ConversationError]) -> bool:
    """Return whether a message's content has no text; raise `wrong(reason)` for invalid content."""
    if isinstance(content, str):
        return not content
    if not isinstance(content, (list, tuple)):
        raise wrong(
            f"expected 'content' as text or a list of parts, found {type(content).__name__}."
        )
    empty = True
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            empty = empty and not part["text"]
        elif kind == "image":
            if role != "user":
                raise wrong(f"an image in the {role}'s turn; images belong to user turns.")
            keys = [key for key in IMAGE_KEYS if part.get(key) is not None]
            if len(keys) > 1:
                raise wrong(f"expected one picture in an image part, found {' and '.join(keys)}.")
        else:
            raise wrong(f"expected parts of type 'text' (with 'text') or 'image', found {kind!r}.")
    return empty


def count_images(messages: list[dict[str, Any]]) -> int:
    """Return the number of image parts in messages."""
    return sum(
        part.get("type") == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def with_images_first(messages: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
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


def place_marks(
    messages: list[dict[str, Any]],
    num_images: int,
    name: str,
    first_turn: int = 1,
    answers_are_text: bool = False,
) -> list[dict[str, Any]]:
    """Turn the `<image>` marks in the texts of messages into image parts.

    Marks are removed from a user turn, and its images are put at its start. Marks and image parts stand for
    the images in reading order. If there are fewer images than marks, all marks of one turn stand for one
    image.

    Args:
        messages: messages that `check_messages` accepts; they are not modified.
        num_images: number of images in the conversation.
        name, first_turn: as in `check_messages`.
        answers_are_text: `<image>` in an answer is ordinary text.

    Raises:
        ConversationError: for a mark outside of user turns, or marks that do not match `num_images`.
    """
    marks = [sum(text.count(IMAGE_MARK) for text in _texts(message)) for message in messages]
    for turn, (message, count) in enumerate(zip(messages, marks, strict=True), first_turn):
        role = message["role"]
        if role == "assistant" and answers_are_text:
            marks[turn - first_turn] = 0
        elif count and role != "user":
            article = "an" if role == "assistant" else "a"
            raise ConversationError(
                name,
                turn,
                f"an {IMAGE_MARK} marker in {article} {role} turn; images belong to the human turns.",
            )
    total, parts = sum(marks), count_images(messages)
    marked_turns = sum(count > 0 for count in marks)
    if not total and answers_are_text:
        return list(messages)
    one_a_turn = num_images != total + parts
    if one_a_turn and (parts or num_images != marked_turns):
        beside = f" and {parts} image parts" if parts else ""
        raise ConversationError(
            name,
            None,
            f"{num_images} images but {total} {IMAGE_MARK} markers in {marked_turns} turns{beside}; "
            "give each image one marker.",
        )
    return [
        _without_marks(message, 1 if one_a_turn else count) if count else message
        for message, count in zip(messages, marks, strict=True)
    ]


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _without_marks(message: dict[str, Any], images: int) -> dict[str, Any]:
    """Replace a message's marks by image parts, as many as marks or one for all of them."""
    content = message["content"]
    if isinstance(content, str):
        text = {"type": "text", "text": content.replace(IMAGE_MARK, "")}
        return {**message, "content": [{"type": "image"} for _ in range(images)] + [text]}
    left = images
    placed = []
    for part in content:
        count = part["text"].count(IMAGE_MARK) if part["type"] == "text" else 0
        placed += [{"type": "image"} for _ in range(min(count, left))]
        left -= min(count, left)
        placed.append({**part, "text": part["text"].replace(IMAGE_MARK, "")} if count else part)
    return {**message, "content": placed}


def messages_from_conversations(
    conversations: list[dict[str, str]], num_images: int, name: str = "the sample"
) -> list[dict[str, Any]]:
    """Turn a LLaVA `conversations` list into `messages` with `{"type": "image"}` parts.

    The rules are those of the original: `<image>` markers are removed from a human turn, and its images
    are put at its start; if there are fewer images than markers, two markers in one turn stand for one
    image; a leading gpt turn is dropped, so the result has one turn less.

    Raises:
        ValueError: naming `name`, for cases that the original silently failed to learn: an empty
            answer, a marker in an answer, markers that do not match `num_images`, unknown speakers.
    """
    messages: list[dict[str, Any]] = []
    for turn, said in enumerate(conversations, 1):
        fields = said if isinstance(said, dict) else {}
        speaker, value = fields.get("from"), fields.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS or not isinstance(value, str):
            raise ConversationError(
                name,
                turn,
                "expected 'from' (human, gpt or system) and a text 'value', "
                f"found from={speaker!r} and a value of type {type(value).__name__}.",
            )
        messages.append({"role": SPEAKERS[speaker], "content": value})
    first_turn = 1
    if messages and messages[0]["role"] == "assistant":
        messages, first_turn = messages[1:], 2
    messages = place_marks(messages, num_images, name, first_turn)
    check_messages(messages, name, first_turn=first_turn)
    return messages
