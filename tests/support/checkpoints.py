"""Tiny checkpoints with random weights, in the layout of the real ones: SD3, SwiftI2V, Wan, SDXL, LongCat-Image."""

from __future__ import annotations

import json
import string
from pathlib import Path

T5_TOKENS = 3
LENGTH = 24
VIDEO_LENGTH = 12  # text tokens
CODECS = {
    "vae": {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1},
    "detail_vae": {
        "base_dim": 8, "decoder_base_dim": 8, "z_dim": 6, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1,
        "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    },
}  # fmt: skip
WORDS = ["a red heart", "beating", "waving hand", "smiling face with sunglasses", "dog", "café"]


def build_sd3(root: Path, *, seed: int = 0, dtype: str = "float32", shard_bytes: int | None = None) -> Path:
    """Write a tiny Stable Diffusion 3 checkpoint of about 1.3 MB to the directory `root` and return it."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    parts = {
        "transformer": SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=48, caption_projection_dim=32, pooled_projection_dim=40, out_channels=8,
            pos_embed_max_size=16,
        ),
        "vae": AutoencoderKL(
            in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 16, 16), layers_per_block=1,
            latent_channels=8, norm_num_groups=4, scaling_factor=1.5305, shift_factor=0.0609, sample_size=128,
            use_quant_conv=False, use_post_quant_conv=False,
        ),
    }  # fmt: skip
    vocabulary = write_tokenizer(root / "tokenizer", pad="<|endoftext|>")
    write_tokenizer(root / "tokenizer_2", pad="!")
    for folder, width, projection in (("text_encoder", 16, 16), ("text_encoder_2", 24, 24)):
        parts[folder] = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=projection,
                bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=1,
                hidden_act="quick_gelu" if folder == "text_encoder" else "gelu",
            )
        )  # fmt: skip
    for folder, model in parts.items():
        for parameter in model.parameters():  # zero biases and unit scales would hide a tensor put in the wrong place
            parameter.data += 0.05 * torch.randn_like(parameter)
        options = {"max_shard_size": shard_bytes} if shard_bytes else {}
        model.to(getattr(torch, dtype)).save_pretrained(root / folder, **options)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (root / "model_index.json").write_text(json.dumps(index, indent=2))
    settings = {
        "t5_tokens": T5_TOKENS,
        "steps": 4,
        "guidance": 3.0,
        "source": "tests",
        "revision": "1",
        "licence": "Apache-2.0",
        "credits": ["nobody"],
    }
    (root / "segue.json").write_text(json.dumps(settings))
    return root


def write_tokenizer(folder: Path, pad: str) -> int:
    """Write a CLIP tokenizer of bytes, three merges and the two special tokens; return the size of its vocabulary."""
    folder.mkdir(parents=True)
    # GPT-2's table of printable stand-ins for bytes, in the order of CLIP's vocabulary.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = [("r", "e"), ("re", "d</w>"), ("h", "e"), ("a", "r")]
    words = [*units, *(u + "</w>" for u in units), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    assert set(string.ascii_letters) <= set(units)
    (folder / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def build_video(root: Path, *, seed: int = 0, experts: int = 1) -> Path:
    """Write a tiny SwiftI2V checkpoint with random weights to `root` and return it."""
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from segue.export.families.wan.segment import widened
    from segue.training.video.text import make_tokenizer
    from segue.training.video.write import DETAIL, INDEX

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(WORDS, 60, VIDEO_LENGTH)
    tokenizer.save_pretrained(root / "tokenizer")

    def transformer(taken: int, given: int) -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=taken, out_channels=given, text_dim=16,
            freq_dim=16, ffn_dim=40, num_layers=2, rope_max_seq_len=64,
        )  # fmt: skip

    parts = {
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
            )
        ),
        "transformer": transformer(12, 4),
        **({"transformer_2": transformer(12, 4)} if experts == 2 else {}),
        "detail_transformer": widened(transformer(6, 6), 6),
    }
    for folder, config in CODECS.items():
        channels = int(config["z_dim"])
        parts[folder] = AutoencoderKLWan(**config, **statistics(channels))
    for folder, model in parts.items():
        for parameter in model.parameters():  # zero biases and unit scales would hide a tensor put in the wrong place
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(root / folder)
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(root / "scheduler")
    index = INDEX | DETAIL
    if experts == 2:
        index |= {"boundary_ratio": 0.9, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (root / "model_index.json").write_text(json.dumps(index, indent=2))
    video = {
        "frames": 17, "fps": 12, "size": [128, 64], "scale": 2, "text_tokens": VIDEO_LENGTH, "motion_steps": 3,
        "motion_guidance": 2.0,
    }  # fmt: skip
    settings = {"steps": 2, "guidance": 1.0, "maximum_size": 256, "source": "tests", "video": video}
    (root / "segue.json").write_text(json.dumps(settings))
    return root


def statistics(channels: int) -> dict[str, list[float]]:
    """Return a mean and a deviation for each channel of latents; equal configs share their traces."""
    places = [place / channels for place in range(channels)]
    return {"latents_mean": [0.2 * x - 0.1 for x in places], "latents_std": [0.5 + x for x in places]}


def build_wan(root: Path, *, first: bool = False, experts: int = 1, scheduler: str = "euler", **settings) -> Path:
    """Write a tiny Wan checkpoint of one stage to `root` and return it: TI2V with `first`, else image to video.

    `settings` are further keys of segue.json.
    """
    import torch
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
        WanTransformer3DModel,
    )  # fmt: skip
    from transformers import UMT5Config, UMT5EncoderModel

    from segue.training.video.text import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS, 60, VIDEO_LENGTH)
    tokenizer.save_pretrained(root / "tokenizer")
    codec = CODECS["detail_vae" if first else "vae"]
    channels = int(codec["z_dim"])
    parts = {
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
            )
        ),
        **{
            name: WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=24, in_channels=channels if first else 2 * channels + 4,
                out_channels=channels, text_dim=16, freq_dim=16, ffn_dim=40, num_layers=2, rope_max_seq_len=64,
            )
            for name in ("transformer", "transformer_2")[:experts]
        },
        "vae": AutoencoderKLWan(**codec, **statistics(channels)),
    }  # fmt: skip
    if scheduler == "euler":
        made = FlowMatchEulerDiscreteScheduler(shift=5.0)
    else:
        made = UniPCMultistepScheduler(flow_shift=5.0, prediction_type="flow_prediction", use_flow_sigmas=True)
    made.save_pretrained(root / "scheduler")
    index = {
        "_class_name": "WanPipeline" if first else "WanImageToVideoPipeline", "expand_timesteps": first,
        "boundary_ratio": 0.875 if experts == 2 else None, "scheduler": ["diffusers", type(made).__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if experts == 2 else [None, None],
    }  # fmt: skip
    video = {"frames": 9, "fps": 12, "size": [96, 64], "text_tokens": VIDEO_LENGTH}
    own = {"steps": 4, "guidance": 2.0, "maximum_size": 256, "video": video}
    return save_parts(root, parts, index, own | settings)


def save_parts(root: Path, parts: dict, index: dict, settings: dict, shard_bytes: int = 10**9) -> Path:
    """Write models, whose parameters are moved off zero and one, with model_index.json and segue.json."""
    import torch

    for folder, model in parts.items():
        for parameter in model.parameters():  # zero biases and unit scales would hide a tensor put in the wrong place
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(root / folder, max_shard_size=shard_bytes)
    (root / "model_index.json").write_text(json.dumps(index | {"_diffusers_version": "0.42.1"}, indent=2))
    (root / "segue.json").write_text(json.dumps(settings | {"source": "tests"}))
    return root


def tiny_autoencoder(channels: int, **changed):
    """Return an AutoencoderKL of four levels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        sample_size=128, **changed,
    )  # fmt: skip


def build_sdxl(root: Path) -> Path:
    """Write a tiny Stable Diffusion XL checkpoint to `root` and return it."""
    import torch
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    vocabulary = write_tokenizer(root / "tokenizer", pad="<|endoftext|>")
    write_tokenizer(root / "tokenizer_2", pad="!")

    def text(width: int, kind, act: str):
        return kind(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
                num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=width, hidden_act=act,
                bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=1,
            )
        )  # fmt: skip

    parts = {
        "text_encoder": text(16, CLIPTextModel, "quick_gelu"),
        "text_encoder_2": text(24, CLIPTextModelWithProjection, "gelu"),
        "unet": UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, cross_attention_dim=40,
            attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=72,
        ),
        "vae": tiny_autoencoder(4, scaling_factor=0.13025),
    }  # fmt: skip
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    ).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    return save_parts(root, parts, index, {"steps": 4, "guidance": 1.0})


def build_longcat(root: Path) -> Path:
    """Write a tiny LongCat-Image checkpoint to `root` and return it."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
    from tokenizers import pre_tokenizers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={letter: n for n, letter in enumerate(letters)}, merges=[], pad_token="<|endoftext|>",
        eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"], model_max_length=4096,
    )  # fmt: skip
    tokenizer.save_pretrained(root / "tokenizer")
    text = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    parts = {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        "transformer": LongCatImageTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 6, 6],
        ),
        "vae": tiny_autoencoder(
            4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
    }  # fmt: skip
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15).save_pretrained(
        root / "scheduler"
    )
    index = {
        "_class_name": "LongCatImagePipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "LongCatImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    return save_parts(root, parts, index, {"steps": 4, "guidance": 4.5, "maximum_size": 256})
