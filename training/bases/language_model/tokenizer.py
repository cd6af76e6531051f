"""A small byte-level BPE tokenizer in the file format of Cohere's Aya-23.

It has Aya-23's layout: eight control tokens at ids 0 to 7, the byte-level vocabulary, then 29 turn tokens,
of which only ``<|END_OF_TURN_TOKEN|>`` (the end of sequence) is special; NFC, single digits, BOS added by
the post-processor, padding on the left. Two things differ. The split into words counts combining marks as
letters: the usual split (letters only) cuts Hindi and Bengali at every vowel sign and doubles their token
counts. And ``<image>`` already has its row, after the turn tokens, followed by spare embedding rows, so
nothing has to be resized later.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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
START_OF_TURN = "<|START_OF_TURN_TOKEN|>"
END_OF_TURN = "<|END_OF_TURN_TOKEN|>"
USER = "<|USER_TOKEN|>"
CHATBOT = "<|CHATBOT_TOKEN|>"
SYSTEM = "<|SYSTEM_TOKEN|>"
TURN_TOKENS = (
    START_OF_TURN,
    END_OF_TURN,
    "<|YES_TOKEN|>",
    "<|NO_TOKEN|>",
    "<|GOOD_TOKEN|>",
    "<|BAD_TOKEN|>",
    USER,
    CHATBOT,
    SYSTEM,
    *(f"<|USER_{i}_TOKEN|>" for i in range(10)),
    *(f"<|EXTRA_{i}_TOKEN|>" for i in range(10)),
)
IMAGE_TOKEN = "<image>"

# Letters with their marks (and the joiners inside Indic and Urdu words), one digit, a run of other
# characters, or white space; a single space belongs to the word after it.
WORD_PATTERN = (
    r" ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+|\s+(?!\S)|\s+"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary. The same texts in the same order give the same vocabulary.

    Args:
        texts: repeated texts have more weight.
        vocab_size: control tokens, the 256 bytes and merges; the 29 turn tokens and ``<image>`` are
            added to it.

    Raises:
        ValueError: if `vocab_size` cannot hold the bytes, or the texts are too few to fill it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(CONTROL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size: found {vocab_size}, expected at least {smallest} "
            f"({len(CONTROL_TOKENS)} control tokens and {len(alphabet)} bytes)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=list(CONTROL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"vocab_size: the texts fill only {tokenizer.get_vocab_size()} of {vocab_size} entries: "
            f"give more text or lower vocab_size"
        )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, special=t == END_OF_TURN) for t in TURN_TOKENS]
    )
    tokenizer.add_special_tokens([AddedToken(END_OF_TURN, normalized=False, special=True)])
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    bos = "<BOS_TOKEN>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, CONTROL_TOKENS.index(bos))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=END_OF_TURN,
        pad_token="<PAD>",
        unk_token="<UNK>",
        cls_token="<CLS>",
        sep_token="<SEP>",
        mask_token="<MASK_TOKEN>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    return fast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer saved by `train_tokenizer(...).save_pretrained(folder)`."""
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a tokenizer.json, found none: train the language model first"
        )
    return AutoTokenizer.from_pretrained(folder)
