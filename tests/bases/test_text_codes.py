"""Codes of concepts: fixed, far apart, and similar if the words are."""

import pytest
import torch
import torch.nn.functional as F

from maya_vlm.training.bases.text_codes import concept_codes, ngram_buckets

NAMES = [
    [f"{thing} {state}", f"{thing[::-1]} {state[::-1]}"]
    for thing in ("boat", "house", "flower", "engine", "violin", "ladder", "magnet", "pepper")
    for state in ("red", "broken", "small", "ancient", "frozen")
]
CATEGORY = [("wood", "metal")[number // 20] for number in range(len(NAMES))]


def test_shape_size_and_sameness():
    codes = concept_codes(NAMES, CATEGORY, 16)
    assert codes.shape == (len(NAMES), 16)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes.pow(2).mean(1), torch.ones(len(NAMES)))
    state = torch.get_rng_state()
    assert torch.equal(codes, concept_codes(NAMES, CATEGORY, 16))
    assert torch.equal(state, torch.get_rng_state())


def test_noise_as_large_as_the_code_is_survived():
    codes = concept_codes(NAMES, CATEGORY, 32)
    noisy = codes + 0.7 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(0))
    nearest = (F.normalize(noisy, dim=1) @ F.normalize(codes, dim=1).T).argmax(1)
    assert (nearest == torch.arange(len(codes))).float().mean() > 0.9


def test_shared_words_and_categories_are_nearer():
    codes = F.normalize(concept_codes(NAMES, CATEGORY, 32, category_share=0.0), dim=1)
    near = codes @ codes.T
    things = torch.arange(len(NAMES)) // 5
    same = (things[:, None] == things) & ~torch.eye(len(NAMES), dtype=torch.bool)
    assert near[same].mean() > near[things[:, None] != things].mean() + 0.05
    codes = F.normalize(concept_codes(NAMES, CATEGORY, 32, category_share=0.5), dim=1)
    near = codes @ codes.T
    kind = torch.tensor([name == "wood" for name in CATEGORY])
    other = kind[:, None] != kind
    assert near[~other & ~same].mean() > near[other].mean() + 0.3


def test_a_name_may_be_missing_but_not_all():
    holed = [list(spoken) for spoken in NAMES]
    holed[3][1] = None
    assert concept_codes(holed, CATEGORY, 16).isfinite().all()
    holed[3][0] = ""
    with pytest.raises(ValueError, match="concept number 3: expected a name"):
        concept_codes(holed, CATEGORY, 16)


def test_ngrams_of_texts_that_share_words_overlap():
    cat, face, rocket = (set(ngram_buckets(text)) for text in ("cat", "Cat face", "rocket"))
    assert cat & face
    assert len(cat & face) > len(cat & rocket)
