"""Load Maya's chat templates from chat_templates/. Not Hub code: a saved processor has its own copy."""

from pathlib import Path

CHAT_TEMPLATES = ("maya", "aya", "plain")


def load_chat_template(name: str, original_prompt: bool = False) -> str:
    """Return the text of one of Maya's chat templates.

    Args:
        name: `maya`, `aya` or `plain`.
        original_prompt: give `plain` the original's generation prompt, "<image>\\n". Otherwise the
            prompt is the image alone, as in training. The other templates have only one prompt.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in CHAT_TEMPLATES:
        raise ValueError(
            f"Unknown chat template {name!r}, expected one of {', '.join(CHAT_TEMPLATES)}."
        )
    path = Path(__file__).parent / "chat_templates" / f"{name}.jinja"
    template = path.read_text(encoding="utf-8")
    if original_prompt and name == "plain":
        template = (
            "{%- set original_prompt = true if original_prompt is undefined else original_prompt -%}\n"
            + template
        )
    return template
