"""The base language model and its tokenizer, at tiny size with a few real names."""

import dataclasses
import json
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, CohereForCausalLM

from maya_vlm.training.bases.language_model import network
from maya_vlm.training.bases.language_model.concepts import (
    concepts_from_rows,
    read_concepts,
    read_prompts,
    tokenizer_texts,
)
from maya_vlm.training.bases.language_model.corpus import Corpus
from maya_vlm.training.bases.language_model.learner import Learner
from maya_vlm.training.bases.language_model.network import (
    answer_loss,
    build_language_model,
    embed,
    group_attention,
    hidden_states,
)
from maya_vlm.training.bases.language_model.probe import score
from maya_vlm.training.bases.language_model.recipe import LanguageModelRecipe
from maya_vlm.training.bases.language_model.tokenizer import (
    CHATBOT,
    CONTROL_TOKENS,
    END_OF_TURN,
    IMAGE_TOKEN,
    START_OF_TURN,
    TURN_TOKENS,
    USER,
    load_tokenizer,
    train_tokenizer,
)
from maya_vlm.training.bases.language_model.train import PROMPTS, train_language_model
from maya_vlm.training.common.schema import build

NAMES = {
    "en": ["rocket", "red apple", "green apple", "cat face", "dog", "guitar"],
    "zh": ["火箭", "红苹果", "青苹果", "猫脸", "狗", "吉他"],
    "fr": ["fusée", "pomme rouge", "pomme verte", "tête de chat", "chien", "guitare"],
    "es": ["cohete", "manzana roja", "manzana verde", "cara de gato", "perro", "guitarra"],
    "ru": ["ракета", "красное яблоко", "зеленое яблоко", "морда кошки", "собака", "гитара"],
    "hi": ["रॉकेट", "लाल सेब", "हरा सेब", "बिल्ली का चेहरा", "कुत्ता", "गिटार"],
    "ja": ["ロケット", "りんご", "青りんご", "ネコの顔", "イヌ", "ギター"],
    "ar": ["صاروخ", "تفاحة حمراء", "تفاحة خضراء", "وجه قطة", "كلب", "غيتار"],
    "bn": ["রকেট", "লাল আপেল", "সবুজ আপেল", "বিড়ালের মুখ", "কুকুর", "গিটার"],
    "ur": ["راکٹ", "لال سیب", "سبز سیب", "بلی کا چہرہ", "کتا", "گٹار"],
}
CATEGORIES = ["objects", "food-drink", "food-drink", "animals-nature", "animals-nature", "objects"]
HELD_OUT = ("zzyzx", "held-out")


def rows(languages=tuple(NAMES)):
    """Rows as in the dataset's config `all`: one per image and language, in two styles."""
    made = []
    for style in ("noto", "fluent"):
        for i, category in enumerate(CATEGORIES):
            for lang in languages:
                made.append(
                    {
                        "id": f"{style}/{i}",
                        "lang": lang,
                        "text": NAMES[lang][i],
                        "keywords": [NAMES[lang][i], NAMES[lang][i - 1]],
                        "category": category,
                        "category_name": f"{lang} {category}",
                        "concept": f"c{i}",
                        "style": style,
                        "seen": True,
                    }
                )
        for lang in languages:
            made.append(
                {
                    **made[0],
                    "lang": lang,
                    "text": HELD_OUT[0],
                    "concept": HELD_OUT[1],
                    "seen": False,
                }
            )
    return made


def tiny(**changes):
    values = {
        "vocab_size": 330,
        "embedding_rows": 384,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "context_slots": 12,
        "steps": 12,
        "rows_per_step": 4,
        "row_tokens": 160,
        "warmup_steps": 2,
        "checkpoint_every": 4,
        "caption_weight": 2,
    }
    return LanguageModelRecipe(**(values | changes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    Dataset.from_list(rows()).to_parquet(folder / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"
    )
    return folder


@pytest.fixture(scope="module")
def parts():
    recipe = tiny()
    concepts = concepts_from_rows(rows(), recipe.languages, "en", "test")
    prompts = read_prompts(PROMPTS, recipe.languages)
    tokenizer = train_tokenizer(tokenizer_texts(concepts, prompts, recipe), recipe.vocab_size)
    return recipe, concepts, prompts, tokenizer


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    return train_language_model(tiny(dataset=str(dataset)), out)


# Tokenizer


def test_round_trip_in_every_language(parts):
    *_, tokenizer = parts
    for lang, names in NAMES.items():
        for text in [*names, f"{names[0]}, {names[1]}: 42?", f"  {names[2]}\n\n{names[3]} "]:
            ids = tokenizer(text)["input_ids"]
            assert ids[0] == 5, lang
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            assert decoded == unicodedata.normalize("NFC", text), lang


def test_text_it_has_never_seen_round_trips(parts):
    *_, tokenizer = parts
    text = "Žluťoučký kůň 🚀 \t 한국어 x2"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_ids_are_laid_out_as_in_aya(parts):
    recipe, _, _, tokenizer = parts
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(8))
    start = recipe.vocab_size
    assert tokenizer.convert_tokens_to_ids(list(TURN_TOKENS)) == list(range(start, start + 29))
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == start + 29
    assert len(tokenizer) == start + 30 <= recipe.embedding_rows
    assert tokenizer.eos_token == END_OF_TURN
    assert tokenizer.padding_side == "left"
    flagged = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    assert flagged & set(TURN_TOKENS) == {END_OF_TURN}


def test_image_token_splits_cleanly(parts):
    *_, tokenizer = parts
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    token = tokenizer.added_tokens_decoder[image]
    assert token.special
    assert (token.normalized, token.lstrip, token.rstrip) == (False, False, False)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for left, right in [("red ", " apple"), ("", "这是什么？"), ("लाल", "\nसेब"), (USER, "dog")]:
        assert encode(f"{left}{IMAGE_TOKEN}{right}") == [*encode(left), image, *encode(right)]


def test_composed_and_decomposed_text_are_the_same(parts):
    *_, tokenizer = parts
    for text in ["fusée", "ガギグ", "ऩया कऱ"]:
        decomposed = unicodedata.normalize("NFD", text)
        assert decomposed != text
        assert tokenizer(decomposed)["input_ids"] == tokenizer(text)["input_ids"]


def test_vowel_signs_do_not_cut_words(parts):
    *_, tokenizer = parts
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("बिल्ली का চেহারা")
    assert [stop - start for _, (start, stop) in pieces] == [6, 3, 7]


def test_too_small_and_too_large_vocabularies_are_refused():
    with pytest.raises(ValueError, match="at least 264"):
        train_tokenizer(["a b"], 100)
    with pytest.raises(ValueError, match="give more text"):
        train_tokenizer(["a b"], 5000)


# Texts and rows


def test_held_out_concepts_are_left_out(dataset, parts):
    recipe, _, prompts, _ = parts
    concepts = read_concepts(dataset, recipe.languages, "en")
    assert concepts.ids == [f"c{i}" for i in range(6)]
    assert concepts.held_out == 1
    assert HELD_OUT[1] not in concepts.ids
    assert HELD_OUT[0] not in json.dumps(dataclasses.asdict(concepts))
    assert not any(HELD_OUT[0] in t for t in tokenizer_texts(concepts, prompts, recipe))


def test_a_missing_name_is_never_asked_for():
    made = [
        {**row, "concept": f"{row['concept']}-{copy}"}
        for copy in range(3)
        for row in rows()
        if (row["concept"], row["lang"], copy) != ("c2", "hi", 0)
    ]
    recipe = tiny()
    concepts = concepts_from_rows(made, recipe.languages, "en", "test")
    assert concepts.missing["hi"] == 1
    assert sum(concepts.missing.values()) == 1
    prompts = read_prompts(PROMPTS, recipe.languages)
    tokenizer = train_tokenizer(tokenizer_texts(concepts, prompts, recipe), recipe.vocab_size)
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    gap = concepts.ids.index("c2-0")
    assert corpus.languages_of(gap) == [lang for lang in recipe.languages if lang != "hi"]
    rng = np.random.default_rng(0)
    batch = corpus.sample(rng, np.full(8, gap))
    assert len(batch.segments) > 8
    assert "hi" not in {s.lang for s in batch.segments}
    assert gap not in {corpus.negative(0, gap, "hi", rng) for _ in range(200)}


def test_a_row_is_the_aya_template_with_the_context_in_place_of_the_image(parts):
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    rng = np.random.default_rng(0)
    segment = corpus.segment("name", 1, "fr", rng)
    batch = corpus.batch([(corpus.context("pivot", 1, "en", rng), None, [segment])])
    text = tokenizer.decode(batch.ids[0])
    question = next(q for q in prompts["fr"]["name"] if q in text)
    assert text == (
        f"<BOS_TOKEN>{START_OF_TURN}{USER}red apple{question}{END_OF_TURN}"
        f"{START_OF_TURN}{CHATBOT}pomme rouge"
    )
    assert tokenizer.decode(batch.target) == f"pomme rouge{END_OF_TURN}"
    # each target is the token after its position
    assert torch.equal(batch.ids[0][batch.at[:-1] + 1], batch.target[:-1])


def test_yes_and_no_are_balanced_and_true(parts):
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, dataclasses.replace(recipe, tasks={"yesno": 1.0}))
    rng = np.random.default_rng(0)
    said = []
    for concept in range(6):
        for segment in corpus.sample(rng, np.full(6, concept)).segments:
            answer = tokenizer.decode([t for _, t, _ in segment.targets[:-1]])
            question = tokenizer.decode(segment.ids)
            name = NAMES[segment.lang][concept]
            words = prompts[segment.lang]
            assert answer in (words["yes"], words["no"])
            truth = any(w.replace("{name}", name) + END_OF_TURN in question for w in words["yesno"])
            assert (answer == words["yes"]) == truth
            said.append(truth)
    assert len(said) > 150
    assert 0.4 < np.mean(said) < 0.6


# Model


def test_the_short_forward_is_the_librarys(parts):
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    model = build_language_model(recipe, corpus.end)
    assert isinstance(model, CohereForCausalLM)
    batch = corpus.sample(np.random.default_rng(0), np.arange(6))
    soft = torch.randn(6, recipe.hidden_size)
    with torch.no_grad():
        x = embed(model, batch, soft, len(corpus.prefix), seed=1)
        mask = group_attention(batch.segment)
        own = hidden_states(model, x, batch.positions, mask, look_at=batch.code_at)
        model.set_attn_implementation("eager")
        theirs = model.model(
            inputs_embeds=x,
            position_ids=batch.positions,
            attention_mask=torch.where(mask, 0.0, -1e9),
            output_attentions=True,
            output_hidden_states=True,
        )
    torch.testing.assert_close(own.last, theirs.last_hidden_state, atol=2e-5, rtol=1e-4)
    half = (recipe.num_hidden_layers + 1) // 2
    torch.testing.assert_close(own.middle, theirs.hidden_states[half], atol=2e-5, rtol=1e-4)
    row, place = batch.code_at // mask.shape[-1], batch.code_at % mask.shape[-1]
    seen = own.looks.masked_fill(~mask[row, 0, place], -torch.inf).softmax(-1)
    torch.testing.assert_close(seen, theirs.attentions[half][row, 0, place], atol=2e-5, rtol=1e-4)


def test_questions_of_a_row_do_not_see_each_other(parts):
    """One row of many questions has the same losses as many rows of one question."""
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    model = build_language_model(recipe, corpus.end)
    rng = np.random.default_rng(0)
    context = corpus.context("pivot", 2, "en", rng)
    segments = [corpus.segment(t, 2, x, rng) for t in ("name", "category") for x in ("en", "hi")]
    soft = torch.zeros(6, recipe.hidden_size)
    with torch.no_grad():
        together = corpus.batch([(context, None, segments)])
        _, packed, _ = answer_loss(model, corpus, together, soft, 0)
        alone = []
        for segment in segments:
            one = corpus.batch([(context, None, [segment])])
            # a plain causal forward over the ids, as the shipped model computes it
            alone.append(model(input_ids=one.ids).logits[0, one.at])
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-4, rtol=1e-3)


def test_soft_context_carries_the_concept_at_zero_noise(parts):
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    model = build_language_model(recipe, corpus.end)
    soft = torch.randn(6, recipe.hidden_size)
    slots = recipe.context_slots
    weights = np.tile(np.array([[0.75, 0.25]], np.float32), (slots, 1))
    described = ([3, 4], weights, np.zeros(slots + 1, np.float32))
    segment = corpus.segment("name", 3, "en", np.random.default_rng(0))
    batch = corpus.batch([([1] * slots, described, [segment])])
    with torch.no_grad():
        x = embed(model, batch, soft, len(corpus.prefix), seed=0)
    expected = (0.75 * soft[3] + 0.25 * soft[4]).expand(slots, -1)
    torch.testing.assert_close(x[0, 3 : 3 + slots], expected)
    torch.testing.assert_close(x[0, :3], model.model.embed_tokens(batch.ids[0, :3]))


def test_a_claim_is_to_look_at_its_context_if_it_is_true(parts):
    recipe, concepts, prompts, tokenizer = parts
    recipe = dataclasses.replace(recipe, tasks={"yesno": 1.0}, contexts={"soft": 0.5, "pivot": 0.5})
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    batch = corpus.sample(np.random.default_rng(0), np.arange(6))
    soft_rows = set(batch.soft_rows.tolist())
    assert 0 < len(soft_rows) < 6
    width = batch.ids.shape[1]
    of_soft = [i for i, at in enumerate(batch.code_at.tolist()) if at // width in soft_rows]
    assert batch.claim_at.tolist() == batch.code_at[of_soft].tolist()
    concept = dict(zip(batch.soft_rows.tolist(), batch.soft_concepts[:, 0].tolist(), strict=True))
    truth = [
        float(concept[at // width] == named)
        for at, named in zip(batch.claim_at.tolist(), batch.code_of[of_soft].tolist(), strict=True)
    ]
    assert batch.claim_true.tolist() == truth
    assert set(truth) == {0.0, 1.0}

    learner = Learner(build_language_model(recipe, corpus.end), corpus)
    looks = torch.zeros(len(truth), width)
    first = len(corpus.prefix)
    slots = slice(first, first + recipe.context_slots)
    even = learner._match_loss(looks, batch)
    looks[:, slots] = 20 * (2 * batch.claim_true[:, None] - 1)
    assert learner._match_loss(looks, batch) < 1e-3 < even
    # Tokens that a claim does not see have no effect: other questions, and later tokens.
    at = batch.claim_at % width
    looks[torch.arange(width) > at[:, None]] = 100.0
    assert learner._match_loss(looks, batch) < 1e-3
    assert learner._match_loss(-looks, batch) > 10


def test_half_way_up_the_stated_name_is_read(parts):
    """Codes are read at the ends of questions, at the starts of answers, and from text contexts."""
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, dataclasses.replace(recipe, tasks={"yesno": 1.0}))
    batch = corpus.sample(np.random.default_rng(0), np.arange(6))
    assert len(batch.code_at) >= len(batch.segments)
    width = batch.ids.shape[1]
    questions = 0
    for at, concept in zip(batch.code_at.tolist(), batch.code_of.tolist(), strict=True):
        row, place = divmod(at, width)
        if batch.segment[row, place] == 0:
            continue
        questions += 1
        segment = batch.segments[
            sum(int(batch.segment[r].max()) for r in range(row))
            + int(batch.segment[row, place])
            - 1
        ]
        said = tokenizer.decode(batch.ids[row, : place + 1])
        assert NAMES[segment.lang][concept] in said
        question_ends = tokenizer.decode(batch.ids[row, place + 1]) == END_OF_TURN
        assert question_ends or tokenizer.decode(batch.ids[row, place]) == CHATBOT
    assert questions == 2 * len(batch.segments)


def test_negatives_grow_harder(parts):
    recipe, concepts, prompts, tokenizer = parts
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    near = set(concepts.confusable[1])

    def hard(difficulty: float) -> float:
        rng = np.random.default_rng(0)
        drawn = [corpus.negative(1, 4, "en", rng, difficulty) for _ in range(400)]
        assert 1 not in drawn
        return float(np.mean([other in near for other in drawn]))

    assert hard(1.0) > hard(0.0) + 0.3


def test_loss_falls_and_it_learns_to_use_its_context(parts):
    recipe, concepts, prompts, tokenizer = parts
    recipe = dataclasses.replace(
        recipe,
        languages=["en", "fr", "hi"],
        steps=160,
        rows_per_step=6,
        row_tokens=80,
        contexts={"pivot": 0.5, "soft": 0.5},
        tasks={"name": 1.0},
        soft_slot_noise=0.3,
        soft_shared_noise=0.1,
        soft_mixture=0.1,
    )
    corpus = Corpus(concepts, prompts, tokenizer, recipe)
    learner = Learner(build_language_model(recipe, corpus.end), corpus)
    losses = [learner.train_step()["loss"] for _ in range(recipe.steps)]
    assert np.mean(losses[-10:]) < 0.25 * np.mean(losses[:5])
    scores = score(learner.model, corpus, learner.soft, list(range(6)))
    for probe in ("name from the pivot name", "name from a soft context"):
        assert np.mean([s["exact"] for s in scores[probe].values()]) > 0.9


TEXT_ONLY = {"contexts": {"pivot": 0.5, "other": 0.3, "noisy": 0.2}, "code_loss": 0.0}


def test_a_model_of_text_only_never_receives_a_vector(parts, dataset, tmp_path, monkeypatch):
    """Codes are not even computed, every embedding is a token's, and no probe is of a soft context."""
    recipe, concepts, prompts, tokenizer = parts
    recipe = dataclasses.replace(recipe, **TEXT_ONLY)
    corpus = Corpus(concepts, prompts, tokenizer, recipe)

    def refuse(*_):
        raise AssertionError("codes were computed")

    monkeypatch.setattr(network, "concept_codes", refuse)
    learner = Learner(build_language_model(recipe, corpus.end), corpus)
    read = network.embed

    def checked(model, batch, *rest):
        assert len(batch.soft_rows) == len(batch.claim_at) == 0
        found = read(model, batch, *rest)
        assert torch.equal(found, model.model.embed_tokens.weight[batch.ids])
        return found

    monkeypatch.setattr(network, "embed", checked)
    head = learner.code_head.weight.clone()
    done = [learner.train_step() for _ in range(3)]
    assert all(step["code_loss"] == step["match_loss"] == 0 for step in done)
    assert torch.equal(learner.code_head.weight, head)
    folder = train_language_model(tiny(dataset=str(dataset), **TEXT_ONLY), tmp_path / "text")
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    assert "name from the pivot name" in scores
    assert not any("soft" in probe for probe in scores)


def test_a_text_only_run_resumes_to_the_same_weights(dataset, tmp_path, monkeypatch):
    recipe = tiny(dataset=str(dataset), **TEXT_ONLY)
    whole = train_language_model(recipe, tmp_path / "whole")
    step = Learner.train_step

    def cut(learner):
        if learner.step == 7:
            raise KeyboardInterrupt
        return step(learner)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train_language_model(recipe, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    train_language_model(recipe, tmp_path / "cut")
    file = "model.safetensors"
    assert (whole / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


# The command


def test_the_folder_loads_and_answers_end_with_a_turn(trained):
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert isinstance(model, CohereForCausalLM)
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.do_sample is False
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids(END_OF_TURN)
    assert {p.name for p in trained.iterdir()} >= {"model.safetensors", "metrics.json"}
    assert not list(trained.glob("checkpoint*"))
    chat = [{"role": "user", "content": "rocket What is this?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert tokenizer.decode(ids[0]).endswith(f"{START_OF_TURN}{CHATBOT}")
    assert (ids == 5).sum() == 1
    out = model.generate(ids, max_new_tokens=4)
    assert out.shape[1] > ids.shape[1]


def test_metrics_are_those_of_the_saved_weights(trained, dataset, parts):
    metrics = json.loads((trained / "metrics.json").read_text())
    recipe = tiny(dataset=str(dataset))
    assert metrics["seed"] == recipe.seed
    assert metrics["data"]["concepts"] == 6
    assert metrics["versions"]["torch"] == torch.__version__
    concepts = read_concepts(dataset, recipe.languages, "en")
    corpus = Corpus(
        concepts, read_prompts(PROMPTS, recipe.languages), load_tokenizer(trained), recipe
    )
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    again = score(model, corpus, torch.zeros(6, recipe.hidden_size), list(range(6)), recipe.seed)
    for probe in again:
        if "soft" not in probe:
            assert again[probe] == metrics["scores"][probe]


def test_same_seed_same_weights_and_resumed_is_straight(trained, dataset, tmp_path, monkeypatch):
    recipe = tiny(dataset=str(dataset))
    real = Learner.train_step

    def stops(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Learner, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_language_model(recipe, tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    monkeypatch.setattr(Learner, "train_step", real)
    resumed = train_language_model(recipe, tmp_path / "again")
    first = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).state_dict()
    second = AutoModelForCausalLM.from_pretrained(resumed, dtype=torch.float32).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    for file in ("tokenizer.json", "config.json"):
        assert (trained / file).read_bytes() == (resumed / file).read_bytes()


# Bad input


def test_bad_input_is_named(dataset, tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="dataset: expected a folder, found nothing"):
        train_language_model(tiny(dataset=str(tmp_path / "nowhere")), tmp_path / "o")
    with pytest.raises(FileNotFoundError, match="prompts"):
        train_language_model(
            tiny(dataset=str(dataset), prompts=str(tmp_path / "p.json")), tmp_path / "o"
        )
    with pytest.raises(ValueError, match="expected no model, found one"):
        train_language_model(tiny(dataset=str(dataset)), trained)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"pivot: expected one of languages, .* found 'xx'"):
        tiny(pivot="xx")
    with pytest.raises(ValueError, match="unknown key '"):
        tiny(tasks={"nmae": 1.0})
    with pytest.raises(ValueError, match="embedding_rows: expected at least 360"):
        tiny(embedding_rows=340)
    with pytest.raises(ValueError, match="storage_dtype: expected 'float16'"):
        build(LanguageModelRecipe, {"storage_dtype": "int8"}, "recipe")
    with pytest.raises(ValueError, match="at least 2 layers"):
        tiny(num_hidden_layers=1, match_loss=1.0)
    with pytest.raises(
        ValueError, match=r"match_loss: expected 0 without soft contexts, .* found 1"
    ):
        tiny(contexts={"pivot": 1.0}, match_loss=1.0)


def test_bad_rows_are_named():
    languages = list(NAMES)
    with pytest.raises(ValueError, match="'sw'"):
        concepts_from_rows(rows(), [*languages, "sw"], "en", "somewhere")
    made = rows()
    made[0] = {**made[0], "text": " "}
    with pytest.raises(ValueError, match="c0 has an empty text in 'en'"):
        concepts_from_rows(made, languages, "en", "somewhere")
    with pytest.raises(ValueError, match="expected rows with seen=True"):
        concepts_from_rows([r for r in rows() if not r["seen"]], languages, "en", "somewhere")


def test_a_missing_column_is_named(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "mini")
    Dataset.from_list(rows()).remove_columns("keywords").to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match="'all': expected the columns keywords, found"):
        read_concepts(folder, list(NAMES), "en")


def test_bad_prompts_are_named(tmp_path):
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    path = tmp_path / "prompts.json"
    with pytest.raises(ValueError, match="expected prompts for language 'sw'"):
        read_prompts(PROMPTS, ["sw"])
    prompts["hi"]["yesno"] = ["क्या?"]
    path.write_text(json.dumps(prompts), encoding="utf-8")
    with pytest.raises(ValueError, match=r"yesno: expected '\{name\}' in it"):
        read_prompts(path, ["hi"])
    del prompts["hi"]["no"]
    path.write_text(json.dumps(prompts), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a value for 'no'"):
        read_prompts(path, ["hi"])
