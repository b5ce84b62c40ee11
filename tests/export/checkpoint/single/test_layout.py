"""What is in a single file, by its header, and what is refused."""

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint.headers import Tensor
from segue.export.checkpoint.single.layout import DENOISER, KLEIN, SD3, SDXL, ZIMAGE, held, pipeline_of, unused

XL = (f"{DENOISER}label_emb.0.0.weight", f"{DENOISER}input_blocks.0.0.weight")
FLUX2 = ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight")
IMAGE = ("cap_pad_token", "x_embedder.weight", "layers.0.adaLN_modulation.0.weight")
THREE = (f"{DENOISER}joint_blocks.0.x_block.attn.qkv.weight", "first_stage_model.decoder.conv_in.weight")


def table(*names, dtype="F16"):
    return {name: Tensor(name, "f.safetensors", 8, 2, dtype, (1,)) for name in names}


@pytest.mark.parametrize(
    ("names", "pipeline", "folders"),
    [
        (XL, SDXL, {"unet"}),
        ([name.removeprefix(DENOISER) for name in XL], SDXL, {"unet"}),
        (
            ("add_embedding.linear_1.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
            SDXL,
            {"unet"},
        ),
        ((*XL, "conditioner.embedders.1.model.ln_final.weight", "vae.x"), SDXL, {"unet", "text_encoder_2", "vae"}),
        (THREE, SD3, {"transformer", "vae"}),
        (
            (*THREE, "text_encoders.t5xxl.transformer.shared.weight", "text_encoders.clip_l.transformer.x"),
            SD3,
            {"transformer", "vae", "text_encoder_3", "text_encoder"},
        ),
        (FLUX2, KLEIN, {"transformer"}),
        (
            (*(DENOISER + name for name in FLUX2), "text_encoders.qwen3_8b.transformer.model.norm.weight"),
            KLEIN,
            {"transformer", "text_encoder"},
        ),
        (IMAGE, ZIMAGE, {"transformer"}),
        (
            (*(DENOISER + name for name in IMAGE), "text_encoders.qwen3_4b.transformer.model.norm.weight", "vae.x"),
            ZIMAGE,
            {"transformer", "text_encoder", "vae"},
        ),
    ],
)
def test_components_are_known_by_the_names_of_their_tensors(names, pipeline, folders):
    found = table(*names)
    assert pipeline_of(found, "f") == pipeline
    assert set(held(found, pipeline)) == folders
    assert unused(found, pipeline) == []


def test_tensors_of_no_component_are_named():
    assert unused(table(*XL, "denoiser.sigmas", "model_ema.decay"), SDXL) == ["denoiser.sigmas", "model_ema.decay"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (table(*XL, dtype="F8_E4M3"), "in F8_E4M3: it is an fp8 or scaled file"),
        (table(*THREE, "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.scale_weight"), "fc1.scale_weight"),
        (table(*THREE, "scaled_fp8"), "'scaled_fp8'"),
        (table(*XL, "edm_mean"), "EDM's noise levels"),
        (table("lora_unet_down_blocks_0.lora_down.weight"), "is a LoRA and no model.*--lora f.safetensors"),
        (table("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"), "takes it for 'flux-"),
        # FLUX in diffusers' names is near to SD3
        (table("transformer_blocks.0.attn.add_q_proj.weight", "x_embedder.weight"), "not a single file that Segue"),
        (table("cond_stage_model.transformer.text_model.x"), "takes it for 'v1'"),
        # FLUX.2-dev, Z-Image for editing, and Lumina 2 differ from klein and Z-Image in a few tensors
        (table(*FLUX2, "guidance_in.in_layer.weight", "single_stream_modulation.lin.weight"), "for 'flux-2-dev'"),
        (table(*IMAGE, "siglip_embedder.0.weight"), "not a single file that Segue exports: .* Z-Image"),
        (table("cap_embedder.0.weight", "x_embedder.weight"), "for 'lumina2'"),
        ({"x": Tensor("x", "f.safetensors", 8, 0, "F16", (2**70, 0))}, "takes it for 'an unknown model'"),
    ],
)
def test_other_files_are_refused_by_what_they_are(found, message):
    with pytest.raises(CheckpointError, match=message):
        pipeline_of(found, "f.safetensors")
