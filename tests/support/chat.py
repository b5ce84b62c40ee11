"""A tiny Qwen tokenizer of bytes, with a chat template as Qwen3 has one."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)


def write_chat_tokenizer(folder: Path, **changed) -> int:
    """Write the tokenizer to `folder`, and return the size of its vocabulary; `changed` are options of its class."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    merges = [("Ċ", "Ċ"), ("r", "e"), ("re", "d")]  # the first one joins line breaks, also across a template's border
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    options = {"chat_template": TEMPLATE, "model_max_length": 4096} | changed
    tokenizer = Qwen2Tokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=merges, pad_token="<|endoftext|>",
        eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"], **options,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
