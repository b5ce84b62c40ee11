"""The settings of diffusers' model classes that Segue knows.

The class itself takes each of them when a graph is built, and `facts` reads those that a pipeline uses. A setting that
is not here belongs to a newer diffusers. The graph would leave it out without a word, so export refuses it. A test
compares these lists with the signatures of the installed classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

KNOWN = {
    "AutoencoderKL": [
        "in_channels",
        "out_channels",
        "down_block_types",
        "up_block_types",
        "block_out_channels",
        "layers_per_block",
        "act_fn",
        "latent_channels",
        "norm_num_groups",
        "sample_size",
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "force_upcast",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add_attention",
    ],
    "AutoencoderKLWan": [
        "base_dim",
        "decoder_base_dim",
        "z_dim",
        "dim_mult",
        "num_res_blocks",
        "attn_scales",
        "temperal_downsample",
        "dropout",
        "latents_mean",
        "latents_std",
        "is_residual",
        "in_channels",
        "out_channels",
        "patch_size",
        "scale_factor_temporal",
        "scale_factor_spatial",
    ],
    "SD3Transformer2DModel": [
        "sample_size",
        "patch_size",
        "in_channels",
        "num_layers",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "caption_projection_dim",
        "pooled_projection_dim",
        "out_channels",
        "pos_embed_max_size",
        "dual_attention_layers",
        "qk_norm",
    ],
    "LongCatImageTransformer2DModel": [
        "patch_size",
        "in_channels",
        "num_layers",
        "num_single_layers",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "pooled_projection_dim",
        "axes_dims_rope",
    ],
    "AutoencoderKLFlux2": [
        "in_channels",
        "out_channels",
        "down_block_types",
        "up_block_types",
        "block_out_channels",
        "decoder_block_out_channels",
        "layers_per_block",
        "act_fn",
        "latent_channels",
        "norm_num_groups",
        "sample_size",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add_attention",
        "batch_norm_eps",
        "batch_norm_momentum",
        "patch_size",
    ],
    "Flux2Transformer2DModel": [
        "patch_size",
        "in_channels",
        "out_channels",
        "num_layers",
        "num_single_layers",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "timestep_guidance_channels",
        "mlp_ratio",
        "axes_dims_rope",
        "rope_theta",
        "eps",
        "guidance_embeds",
    ],
    "UNet2DConditionModel": [
        "sample_size",
        "in_channels",
        "out_channels",
        "center_input_sample",
        "flip_sin_to_cos",
        "freq_shift",
        "down_block_types",
        "mid_block_type",
        "up_block_types",
        "only_cross_attention",
        "block_out_channels",
        "layers_per_block",
        "downsample_padding",
        "mid_block_scale_factor",
        "dropout",
        "act_fn",
        "norm_num_groups",
        "norm_eps",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "attention_head_dim",
        "num_attention_heads",
        "dual_cross_attention",
        "use_linear_projection",
        "class_embed_type",
        "addition_embed_type",
        "addition_time_embed_dim",
        "num_class_embeds",
        "upcast_attention",
        "resnet_time_scale_shift",
        "resnet_skip_time_act",
        "resnet_out_scale_factor",
        "time_embedding_type",
        "time_embedding_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "time_cond_proj_dim",
        "conv_in_kernel",
        "conv_out_kernel",
        "projection_class_embeddings_input_dim",
        "attention_type",
        "class_embeddings_concat",
        "mid_block_only_cross_attention",
        "cross_attention_norm",
        "addition_embed_type_num_heads",
    ],
    "WanTransformer3DModel": [
        "patch_size",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "out_channels",
        "text_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
        "cross_attn_norm",
        "qk_norm",
        "eps",
        "image_dim",
        "added_kv_proj_dim",
        "rope_max_seq_len",
        "pos_embed_seq_len",
    ],
}

# In published files; the classes no longer take them
OLDER = {"AutoencoderKLWan": ("clip_output",), "AutoencoderKLFlux2": ("force_upcast",)}


def check_known(where: str, config: Mapping[str, Any], name: str | None) -> None:
    """Raise CheckpointError if `config`, the file `where`, sets something that the class `name` is not known to take.

    Other libraries' classes pass; transformers accepts any setting of any model.
    """
    for key in config if name in KNOWN else ():
        if not key.startswith("_") and key not in (*KNOWN[str(name)], *OLDER.get(str(name), ())):
            raise CheckpointError(
                f"{where} sets {key} to {str(config[key])[:40]!r}, a setting of {name} that this Segue does not know. "
                "Use a newer Segue, or remove the key if the model does not need it."
            )
