"""Tiny checkpoints whose text encoder is Qwen3, with a tokenizer of bytes and a chat template as Qwen3 has one."""

from __future__ import annotations

from pathlib import Path

from .checkpoints import save_parts

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


def build_klein(root: Path) -> Path:
    """Write a tiny FLUX.2-klein checkpoint to `root` and return it."""
    import torch
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    vocabulary = write_chat_tokenizer(root / "tokenizer")
    text = Qwen3Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    parts = {
        "text_encoder": Qwen3ForCausalLM(text),
        "transformer": Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        "vae": AutoencoderKLFlux2(
            block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
            sample_size=128,
        ),
    }  # fmt: skip
    parts["vae"].bn.running_mean += 0.3 * torch.randn(16)
    parts["vae"].bn.running_var *= 0.5 + torch.rand(16)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "Flux2KleinPipeline", "is_distilled": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"], "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"], "vae": ["diffusers", "AutoencoderKLFlux2"],
    }  # fmt: skip
    return save_parts(root, parts, index, {"maximum_size": 256})
