"""A tiny trained tokenizer in Cohere's file format, and a processor with it, made within a second."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from processing_maya import MayaImageProcessor, MayaProcessor, add_image_token, load_chat_template

TEXTS = {
    "en": "A small red boat on a blue lake. What is shown in the picture? The cat sits on the wooden chair.",
    "zh": "蓝色的湖上有一只小红船。图片里有什么？猫坐在木椅上。",
    "fr": "Un petit bateau rouge sur un lac bleu. Que voit-on sur l'image ? Le chat est assis sur la chaise.",
    "es": "Un pequeño barco rojo en un lago azul. ¿Qué se ve en la imagen? El gato está en la silla.",
    "ru": "Маленькая красная лодка на синем озере. Что изображено на картинке? Кошка сидит на стуле.",
    "hi": "नीली झील पर एक छोटी लाल नाव। चित्र में क्या दिखाया गया है? बिल्ली लकड़ी की कुर्सी पर बैठी है।",
    "ja": "青い湖に小さな赤い船があります。写真には何が写っていますか？猫は木の椅子に座っています。",
    "ar": "قارب أحمر صغير على بحيرة زرقاء. ماذا يظهر في الصورة؟ القطة تجلس على الكرسي الخشبي.",
    "bn": "নীল হ্রদে একটি ছোট লাল নৌকা। ছবিতে কী দেখা যাচ্ছে? বিড়ালটি কাঠের চেয়ারে বসে আছে।",
    "ur": "نیلی جھیل پر ایک چھوٹی سرخ کشتی۔ تصویر میں کیا دکھایا گیا ہے؟ بلی لکڑی کی کرسی پر بیٹھی ہے۔",
}

CONTROL_TOKENS = (
    "<PAD>",
    "<UNK>",
    "<CLS>",
    "<SEP>",
    "<MASK_TOKEN>",
    "<BOS_TOKEN>",
    "<EOS_TOKEN>",
    "<EOP_TOKEN>",
)
TURN_TOKENS = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|YES_TOKEN|>",
    "<|NO_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|EXTRA_0_TOKEN|>",
)


@functools.lru_cache
def _tokenizer_files(vocab_size: int) -> tuple[str, str]:
    """Train byte-level BPE in Cohere's format, and return tokenizer.json and its config."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [*TEXTS.values(), " USER: ASSISTANT: curious assistant helpful detailed polite answers"]
        * 2,
        trainer,
    )
    # As in Cohere's files, the end of turn is the only turn token marked as special.
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=token == "<|END_OF_TURN_TOKEN|>")
            for token in TURN_TOKENS
        ]
    )
    bos = tokenizer.token_to_id("<BOS_TOKEN>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<BOS_TOKEN> $A",
        pair="<BOS_TOKEN> $A <BOS_TOKEN>:1 $B:1",
        special_tokens=[("<BOS_TOKEN>", bos)],
    )
    config = {
        "tokenizer_class": "CohereTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "unk_token": "<UNK>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    return tokenizer.to_str(), json.dumps(config)


def tiny_tokenizer(vocab_size: int = 400) -> Any:
    """Return a CohereTokenizer of `vocab_size` ordinary and control tokens, followed by eight turn tokens."""
    tokenizer_json, config = _tokenizer_files(vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


def tiny_processor(
    image_size: int = 16,
    image_seq_length: int = 4,
    chat_template: str = "aya",
    tokenizer: Any = None,
    **image_kwargs: Any,
) -> MayaProcessor:
    """Return a processor for pictures of `image_size` pixels.

    `image_kwargs` are passed to the image processor. `chat_template` is the name of one of Maya's templates.
    """
    tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
    add_image_token(tokenizer)
    image_processor = MayaImageProcessor(
        size={"height": image_size, "width": image_size}, **image_kwargs
    )
    return MayaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=image_seq_length,
        chat_template=load_chat_template(chat_template),
    )
