"""Tiny decoders in the style of Llama 3, Qwen3, Gemma and Mistral, with their tokenizers and templates.

Each is a base folder like a downloaded one: a random model, a generated tokenizer with the family's control
tokens, and the family's chat template, shortened to chats without tools.
"""

from dataclasses import dataclass, field
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
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from .tiny import enlarge
from .tiny_processing import TEXTS

LLAMA_3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

QWEN_3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last_query_index = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

# The system text is before the last question, so a prompt is not a prefix of a longer conversation.
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user and assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}"""


@dataclass(frozen=True)
class Family:
    """A family of decoders. end: the token that ends an answer. image_token: needed if no embedding row is spare."""

    config: type[PreTrainedConfig]
    template: str
    controls: tuple[str, ...]
    end: str
    tokens: dict[str, str]
    image_token: str | None = None
    spare_rows: int = 0
    bytes: bool = True
    fields: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama3": Family(
        LlamaConfig,
        LLAMA_3,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        end="<|eot_id|>",
        tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        image_token="<|reserved_special_token_0|>",
    ),
    "qwen3": Family(
        Qwen3Config,
        QWEN_3,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<think>", "</think>"),
        end="<|im_end|>",
        tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        spare_rows=4,
    ),
    "gemma": Family(
        GemmaConfig,
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<start_of_turn>", "<end_of_turn>"),
        end="<end_of_turn>",
        tokens={
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        image_token="<unused0>",
        bytes=False,
    ),
    "mistral": Family(
        MistralConfig,
        MISTRAL,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        end="</s>",
        tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        spare_rows=3,
        bytes=False,
        fields={"sliding_window": None},
    ),
}


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the family's kind: byte-level, or with bytes for unknown characters."""
    family = FAMILIES[name]
    trainer: dict[str, Any] = {"show_progress": False, "special_tokens": list(family.controls)}
    if family.bytes:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        trainer["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
    texts = [*TEXTS.values(), "user assistant model system"] * 2
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, **trainer))
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in family.controls]
    )
    bos = family.tokens.get("bos_token")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **family.tokens)
    made.chat_template = family.template
    return made


def save_decoder(folder: Path, name: str, **changes: Any) -> Path:
    """Write a base folder of the family; `changes` are fields of its config."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    fields = {
        "vocab_size": len(tokenizer) + family.spare_rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **family.fields,
        **changes,
    }
    model = AutoModelForCausalLM.from_config(family.config(**fields))
    enlarge(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
