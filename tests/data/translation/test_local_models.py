"""Test translation in this process, with tiny transformers models that learn a few captions here."""

import asyncio
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    NllbTokenizer,
)

from maya_vlm.training.common.schema import build
from maya_vlm.training.data.translation.local_models import LocalModel
from maya_vlm.training.data.translation.plan import LocalPlan, TranslatorPlan
from maya_vlm.training.data.translation.prompts import read_prompt
from maya_vlm.training.data.translation.worker import TranslateWorker
from tests.helpers.tiny_processing import tiny_tokenizer

TRUTHS = {
    "fr": {
        "a black cat sits on a wooden chair": "un chat noir est assis sur une chaise en bois",
        "two children play football in the park": "deux enfants jouent au football dans le parc",
        "an old bridge at night": "un vieux pont la nuit",
    },
    "ru": {
        "a black cat sits on a wooden chair": "чёрная кошка сидит на деревянном стуле",
        "two children play football in the park": "двое детей играют в футбол в парке",
        "an old bridge at night": "старый мост ночью",
    },
}
CODES = {"en": "eng_Latn", "fr": "fra_Latn", "ru": "rus_Cyrl"}
GREEDY = {"temperature": 0.0, "max_tokens": 64, "seed": 0}
PAIR = ("〘", "〙")


def row(text: str) -> dict:
    empty = dict.fromkeys(("image", "image_sha256", "turns"))
    return {**empty, "id": text, "lang": "en", "task": "caption", "text": text}


def learn(model, batches, steps: int, rate: float) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for _ in range(steps):
        loss = sum(model(**batch).loss for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # The texts do not determine the first language, so the loss does not reach 0.
        if loss.item() < 0.12 * len(batches):
            break
    model.eval()


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    """Save an NLLB of three languages that has learned the captions."""
    torch.manual_seed(0)
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [t for pairs in TRUTHS.values() for pair in pairs.items() for t in pair]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    tokenizer = NllbTokenizer(
        vocab=state["vocab"],
        merges=[tuple(m) for m in state["merges"]],
        additional_special_tokens=list(CODES.values()),
        src_lang="eng_Latn",
    )
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        decoder_start_token_id=2,
    )
    model = M2M100ForConditionalGeneration(config)
    batches = []
    for lang, pairs in TRUTHS.items():
        tokenizer.tgt_lang = CODES[lang]
        batch = tokenizer(
            list(pairs), text_target=list(pairs.values()), padding=True, return_tensors="pt"
        )
        batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
        batches.append(batch)
    learn(model, batches, steps=300, rate=5e-3)
    folder = tmp_path_factory.mktemp("nllb")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """Save a chat model that has learned the captions in French, in brackets."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.pad_token, tokenizer.eos_token = "<PAD>", "<EOS_TOKEN>"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    prompt = read_prompt("bare", "en", "fr", PAIR)
    batches = []
    for text, truth in TRUTHS["fr"].items():
        asked = tokenizer.apply_chat_template(
            prompt.messages(text), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        answer = tokenizer(f"〘{truth}〙", add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        labels = [-100] * len(asked) + answer
        batches.append(
            {"input_ids": torch.tensor([asked + answer]), "labels": torch.tensor([labels])}
        )
    learn(model, batches, steps=150, rate=5e-3)
    folder = tmp_path_factory.mktemp("chat")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(model: LocalModel, texts, prompt=None, **parameters):
    async def run():
        async with model:
            return await model.answers(texts, prompt, {**GREEDY, **parameters})

    return asyncio.run(run())


def translate(plan: TranslatorPlan, lang: str, rows: list[dict], **options) -> list[dict]:
    worker = TranslateWorker(plan, lang, **options)

    async def run():
        async with worker:
            return await worker.process(rows)

    return asyncio.run(run())


# ------------------------------------------------------------------------------ seq2seq


@pytest.mark.parametrize("lang", ["fr", "ru"])
def test_language_codes_choose_the_language(nllb, lang):
    settings = build(
        TranslatorPlan,
        {
            "local": {"model": str(nllb), "revision": "main", "codes": CODES, "batch_size": 2},
            "prompt": "none",
            "parameters": {"max_tokens": 64},
        },
        "plan",
    )
    found = translate(settings, lang, [row(text) for text in TRUTHS[lang]])
    assert [r["text"] for r in found] == list(TRUTHS[lang].values())
    assert {r["status"] for r in found} == {"ok"}
    assert {r["finish_reason"] for r in found} == {"stop"}
    assert {(r["model"], r["model_revision"], r["prompt_id"]) for r in found} == {
        (str(nllb), "main", "")
    }
    assert [r["attempts"] for r in found] == [1, 1, 1]


def test_batched_is_single(nllb, chat_model):
    texts = [*TRUTHS["fr"], "a bridge", "two black cats in the old park play on a chair"]
    for folder, prompt in ((nllb, None), (chat_model, read_prompt("bare", "en", "fr", PAIR))):
        codes = CODES if prompt is None else {}

        def ask(size, folder=folder, prompt=prompt, codes=codes):
            plan = LocalPlan(model=str(folder), batch_size=size, codes=codes)
            return answers(LocalModel(plan, "en", "fr"), texts, prompt, max_tokens=32)

        assert ask(5) == ask(1)


def test_a_cut_answer_says_so(nllb):
    plan = LocalPlan(model=str(nllb), codes=CODES)
    found = answers(LocalModel(plan, "en", "fr"), list(TRUTHS["fr"]), max_tokens=4)
    assert {a.finish_reason for a in found} == {"length"}


def test_what_a_model_cannot_do_is_refused(nllb, chat_model, tmp_path):
    def ask(plan: LocalPlan, prompt=None, source="en", target="fr"):
        return answers(LocalModel(plan, source, target), ["a cat"], prompt)

    with pytest.raises(
        ValueError, match="codes: expected a code for 'hi', found codes for en, fr, ru"
    ):
        ask(LocalPlan(model=str(nllb), codes=CODES), target="hi")
    with pytest.raises(
        ValueError,
        match="expected the token 'hin_Deva' in the vocabulary, found none: correct codes",
    ):
        ask(LocalPlan(model=str(nllb), codes={**CODES, "hi": "hin_Deva"}), target="hi")
    with pytest.raises(ValueError, match="found causal: the model has an encoder"):
        ask(LocalPlan(model=str(nllb), kind="causal"))
    with pytest.raises(ValueError, match='prompt: expected "none" for such a model'):
        ask(LocalPlan(model=str(nllb), codes=CODES), read_prompt("bare", "en", "fr", None))
    with pytest.raises(ValueError, match='prompt: expected "preamble" for such a model'):
        ask(LocalPlan(model=str(chat_model)))
    bare = tiny_tokenizer()
    bare.chat_template = None
    folder = tmp_path / "bare"
    LlamaForCausalLM.from_pretrained(chat_model).save_pretrained(folder)
    bare.save_pretrained(folder)
    with pytest.raises(ValueError, match="expected a chat template"):
        ask(LocalPlan(model=str(folder)), read_prompt("bare", "en", "fr", None))


def test_m2m100_marks_languages_by_its_own_tokens(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = tmp_path / "texts.txt"
    lines = [t for pairs in TRUTHS.values() for pair in pairs.items() for t in pair]
    texts.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts), model_prefix=str(tmp_path / "spm"), vocab_size=80, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    vocab = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab += [p for n in range(len(pieces)) if (p := pieces.id_to_piece(n)) not in vocab]
    (tmp_path / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(vocab)}))
    tokenizer = M2M100Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "spm.model"))
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(vocab) + 110,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
    )
    folder = tmp_path / "m2m"
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = TranslatorPlan(
        preset="m2m100-418m", local=LocalPlan(model=str(folder)), parameters={"max_tokens": 3}
    )
    assert settings.local.language_token == "__{code}__"
    worker = TranslateWorker(settings, "ur")
    (found,) = answers(worker.translator, ["an old bridge"], max_tokens=3)
    assert found.attempts == 1

    async def forced():
        async with worker.translator as model:
            return model._forced["forced_bos_token_id"], model.tokenizer.src_lang

    assert asyncio.run(forced()) == (tokenizer.get_lang_id("ur"), "en")


# ------------------------------------------------------------------------------ chat models


def test_a_chat_model_answers_in_brackets(chat_model):
    settings = build(
        TranslatorPlan,
        {
            "local": {"model": str(chat_model), "batch_size": 3},
            "preamble": "bare",
            "parameters": {"max_tokens": 64},
        },
        "plan",
    )
    found = translate(settings, "fr", [row(text) for text in TRUTHS["fr"]])
    assert [r["text"] for r in found] == list(TRUTHS["fr"].values())
    assert {r["status"] for r in found} == {"ok"}


def test_sampling_follows_the_seed(chat_model):
    prompt = read_prompt("bare", "en", "fr", PAIR)
    plan = LocalPlan(model=str(chat_model))

    def sample(seed):
        model = LocalModel(plan, "en", "fr")
        return answers(model, ["green dogs"], prompt, temperature=3.0, seed=seed, max_tokens=20)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_code_of_a_model_runs_only_where_allowed(chat_model, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for file in chat_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n"
        "    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = TranslatorPlan(
        local=LocalPlan(model=str(folder)), preamble="bare", parameters={"max_tokens": 64}
    )
    text = next(iter(TRUTHS["fr"]))
    with pytest.raises(ValueError, match="trust_remote_code"):
        translate(settings, "fr", [row(text)])
    (found,) = translate(settings, "fr", [row(text)], trust_remote_code=True)
    assert found["text"] == TRUTHS["fr"][text]
