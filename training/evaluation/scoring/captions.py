"""Captions: CIDEr, BLEU and ROUGE-L by pycocoevalcap, BLEU and chrF by sacrebleu.

CIDEr weighs words by the number of scored images that have them, so scores on different images cannot be
compared. A score therefore stores the number of its images and the hash of their names.

Sources: CIDEr (1411.5726) and pycocoevalcap 1.2; sacrebleu (1804.08771).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TypedDict

from ...common.reading import check_text
from .packages import need
from .parsed import told
from .tokens import default_tokenizer, tokenize, tokenizer_id

METRIC = "captions@1"


class CocoScore(TypedDict):
    """pycocoevalcap's scores; `cider_per_image` is in the order of the references."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    cider: float | None
    cider_per_image: list[float] | None
    rouge_l: float


class SacreScore(TypedDict):
    """A score of sacrebleu from 0 to 100, with sacrebleu's signature of its settings."""

    score: float
    signature: str
    per_caption: list[float]


class CaptionScore(CocoScore):
    """Scores of one language, with the settings and images they depend on."""

    metric: str
    language: str
    tokenizer: str
    n: int
    images_sha256: str
    empty: int
    counted_by: str
    sacrebleu: dict[str, SacreScore]


def images_hash(images: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted names of images, one a line."""
    return hashlib.sha256("\n".join(sorted(images)).encode("utf-8", "surrogatepass")).hexdigest()


def caption_score(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    language: str,
    tokenizer: str | None = None,
) -> CaptionScore:
    """Score one caption for each image.

    Args:
        captions: image -> the model's caption.
        references: image -> human captions, for the same images.
        language: BCP-47.
        tokenizer: for CIDEr, BLEU-n and ROUGE-L; None: the language's default.

    Raises:
        ValueError: there are no images, captions and references differ in their images, an image has no
            reference, or the tokenizer does not fit the language.
        ModuleNotFoundError: a package of the extra "eval" is not installed.
    """
    _check(captions, references)
    name = tokenizer or default_tokenizer(language)
    cut = {
        image: [tokenize(text, name, language) for text in texts]
        for image, texts in references.items()
    }
    coco = coco_score(
        {image: tokenize(captions[image], name, language) for image in references}, cut
    )
    return {
        "metric": METRIC,
        "language": language,
        "tokenizer": tokenizer_id(name),
        "n": len(references),
        "images_sha256": images_hash(references),
        "empty": sum(not text.strip() for text in captions.values()),
        "counted_by": f"pycocoevalcap {metadata.version('pycocoevalcap')}",
        **coco,
        "sacrebleu": sacrebleu_scores(
            [captions[image] for image in references], list(references.values()), language
        ),
    }


def _check(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not references:
        raise ValueError(f"{METRIC}: expected at least one image, found none")
    for image in (*references, *captions):
        if image not in captions or image not in references:
            side = "captions" if image not in captions else "references"
            raise ValueError(
                f"{METRIC}: image {image!r}: expected in captions and references, found none in {side}"
            )
        if isinstance(references[image], str) or not references[image]:
            raise ValueError(
                f"{METRIC}: image {image!r}: expected a list of at least one reference, found {told(references[image])}"
            )
        for text in (captions[image], *references[image]):
            check_text(text, f"{METRIC}: image {image!r}")


def coco_score(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CocoScore:
    """Apply pycocoevalcap's classes to texts of tokens separated by spaces.

    CIDEr is None for a single image, since no word can then tell images apart.
    """
    purpose = "scores of captions"
    bleu = need("pycocoevalcap.bleu.bleu", "pycocoevalcap", purpose).Bleu(4)
    cider = need("pycocoevalcap.cider.cider", "pycocoevalcap", purpose).Cider()
    rouge = need("pycocoevalcap.rouge.rouge", "pycocoevalcap", purpose).Rouge()
    gold = {image: list(texts) for image, texts in references.items()}
    own = {image: [captions[image]] for image in references}
    bleu_scores, _ = bleu.compute_score(gold, own, verbose=0)
    several = len(references) > 1
    mean, by_image = cider.compute_score(gold, own) if several else (None, None)
    return {
        "bleu_1": float(bleu_scores[0]),
        "bleu_2": float(bleu_scores[1]),
        "bleu_3": float(bleu_scores[2]),
        "bleu_4": float(bleu_scores[3]),
        "cider": None if mean is None else float(mean),
        "cider_per_image": None if by_image is None else [float(score) for score in by_image],
        "rouge_l": float(rouge.compute_score(gold, own)[0]),
    }


# sacrebleu's tokenizers for languages that its default, 13a, cannot segment.
_BLEU_TOKENIZERS = {
    "zh": "zh",
    "yue": "zh",
    "ja": "ja-mecab",
    "th": "char",
    "lo": "char",
    "km": "char",
    "my": "char",
}


def sacrebleu_scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    bleu_tokenizer: str | None = None,
) -> dict[str, SacreScore]:
    """Return BLEU, chrF and chrF++ of raw captions. chrF needs no tokenizer; BLEU of short captions is noise.

    Args:
        captions: one for each image.
        references: human captions of each image; their number may differ.
        language: BCP-47; selects BLEU's tokenizer.
        bleu_tokenizer: another tokenizer of sacrebleu, instead of the language's.
    """
    sacrebleu = need("sacrebleu.metrics", "sacrebleu", "BLEU and chrF")
    primary = language.lower().replace("_", "-").split("-")[0]
    name = bleu_tokenizer or _BLEU_TOKENIZERS.get(primary, "13a")
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    metrics = {
        f"BLEU:{name}": (
            sacrebleu.BLEU(tokenize=name),
            sacrebleu.BLEU(tokenize=name, effective_order=True),
        ),
        "chrF": (sacrebleu.CHRF(), sacrebleu.CHRF()),
        "chrF++": (sacrebleu.CHRF(word_order=2), sacrebleu.CHRF(word_order=2)),
    }
    found: dict[str, SacreScore] = {}
    for key, (corpus, sentence) in metrics.items():
        score = corpus.corpus_score(list(captions), streams).score
        found[key] = {
            "score": float(score),
            "signature": str(corpus.get_signature()),
            "per_caption": [
                float(sentence.sentence_score(caption, list(texts)).score)
                for caption, texts in zip(captions, references, strict=True)
            ],
        }
    return found
