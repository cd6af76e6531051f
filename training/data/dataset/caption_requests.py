"""What a human asks for a caption, where a row has no question of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ...common.schema import read_mapping

# LLaVA's eleven requests for a brief description (arXiv 2304.08485, table 11).
REQUESTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
# Language -> requests. Those beside English are ours: short ones of the same meaning.
KNOWN: dict[str, tuple[str, ...]] = {
    "en": REQUESTS,
    "zh": ("请简要描述这张图片。", "请用几句话概括图片的内容。", "请给出这张图片的简短说明。"),
    "fr": (
        "Décris brièvement l’image.",
        "Résume en peu de mots ce que montre l’image.",
        "Donne une courte description de cette image.",
    ),
    "es": (
        "Describe brevemente la imagen.",
        "Resume en pocas palabras lo que muestra la imagen.",
        "Da una descripción breve de esta imagen.",
    ),
    "ru": (
        "Кратко опиши изображение.",
        "Расскажи в нескольких словах, что на картинке.",
        "Дай краткое описание этой картинки.",
    ),
    "hi": (
        "चित्र का संक्षेप में वर्णन करो।",
        "थोड़े शब्दों में बताओ कि चित्र में क्या है।",
        "इस चित्र का छोटा वर्णन दो।",
    ),
    "ja": (
        "画像を簡潔に説明してください。",
        "画像に何が写っているか、短く述べてください。",
        "この画像の短い説明を書いてください。",
    ),
    "ar": (
        "صف الصورة بإيجاز.",
        "لخص بكلمات قليلة ما تظهره الصورة.",
        "اكتب وصفا قصيرا لهذه الصورة.",
    ),
    "bn": ("ছবিটি সংক্ষেপে বর্ণনা করো।", "অল্প কথায় বলো ছবিতে কী আছে।", "এই ছবির একটি ছোট বর্ণনা দাও।"),
    "ur": (
        "تصویر کو مختصراً بیان کرو۔",
        "تھوڑے لفظوں میں بتاؤ کہ تصویر میں کیا ہے۔",
        "اس تصویر کی مختصر وضاحت لکھو۔",
    ),
}


def known_requests(lang: str) -> Sequence[str]:
    """Requests in a language, or in English where none are known; `pt-BR` may use those of `pt`."""
    return KNOWN.get(lang) or KNOWN.get(lang.partition("-")[0]) or REQUESTS


def number_of(row_id: str) -> int:
    """A large number that depends on the row's id alone, to draw by."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")


def request_for(row_id: str, requests: Sequence[str]) -> str:
    """One of the requests, drawn by the row's id."""
    return requests[number_of(row_id) % len(requests)]


def read_requests(path: Path) -> dict[str, list[str]]:
    """Language -> requests, from a YAML file. Raises ValueError for a file of another form."""
    found = read_mapping(path)
    for lang, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: {lang}: expected a list of texts, found {texts!r:.60}")
    return found
