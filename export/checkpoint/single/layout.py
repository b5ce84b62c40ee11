"""What a single file holds: its components by folder of a diffusers checkpoint, and what Segue refuses of it.

The names are those of the original code bases (Stability AI's generative-models and sd3-ref), which ComfyUI uses too,
or diffusers' own names if the file holds one denoiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ....errors import CheckpointError
from ..headers import Tensor

SUFFIX = ".safetensors"
DENOISER = "model.diffusion_model."
QWEN3 = ("text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer.")
SDXL, SD3 = "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
KLEIN, ZIMAGE = "Flux2KleinPipeline", "ZImagePipeline"
NAMES = {SDXL: "Stable Diffusion XL", SD3: "Stable Diffusion 3 or 3.5", KLEIN: "FLUX.2-klein", ZIMAGE: "Z-Image"}
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors by which a file says how it was trained
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")
SCALED = ("scale_weight", "scaled_fp8", "weight_scale", "scale_input", "comfy_quant")


@dataclass(frozen=True)
class Place:
    """How one folder's tensors are recognised: by prefixes in a whole file, or by a tensor of a bare denoiser.

    `bare` is a tensor of the original layout without a prefix, and `own` one of diffusers' layout.
    """

    folder: str
    prefixes: tuple[str, ...]
    bare: str = ""
    own: str = ""


PLACES = {
    SDXL: (
        Place("unet", (DENOISER,), "input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"),
        Place("text_encoder", ("conditioner.embedders.0.transformer.",)),
        Place("text_encoder_2", ("conditioner.embedders.1.model.",)),
        Place("vae", ("first_stage_model.", "vae.")),
    ),
    SD3: (
        Place(
            "transformer", (DENOISER,), "joint_blocks.0.x_block.attn.qkv.weight",
            "transformer_blocks.0.attn.to_q.weight",
        ),
        Place("text_encoder", ("text_encoders.clip_l.transformer.",)),
        Place("text_encoder_2", ("text_encoders.clip_g.transformer.",)),
        Place("text_encoder_3", ("text_encoders.t5xxl.transformer.",)),
        Place("vae", ("first_stage_model.", "vae.")),
    ),
    # diffusers has no converter for the autoencoder of FLUX.2
    KLEIN: (
        Place(
            "transformer", (DENOISER,), "double_blocks.0.img_attn.qkv.weight", "transformer_blocks.0.attn.to_q.weight"
        ),
        Place("text_encoder", QWEN3),
    ),
    ZIMAGE: (
        Place("transformer", (DENOISER,), "x_embedder.weight", "all_x_embedder.2-1.weight"),
        Place("text_encoder", QWEN3),
        Place("vae", ("first_stage_model.", "vae.")),
    ),
}  # fmt: skip
# Sets of tensors that only a denoiser of the family has: in original and in diffusers' names, without the prefix
SIGNS = {
    SDXL: (("label_emb.0.0.weight", "input_blocks.0.0.weight"), ("add_embedding.linear_1.weight", "conv_in.weight")),
    SD3: (
        ("joint_blocks.0.x_block.attn.qkv.weight",),
        ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
    ),
    KLEIN: (
        ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"),
        ("double_stream_modulation_img.linear.weight", "transformer_blocks.0.attn.to_q.weight"),
    ),
    ZIMAGE: (("cap_pad_token", "x_embedder.weight"), ("cap_pad_token", "all_x_embedder.2-1.weight")),
}
# Starts of names that only a larger model of the same makers has: FLUX.2-dev, and Z-Image for editing
LARGER = {
    KLEIN: ("guidance_in.", "time_guidance_embed.guidance_embedder."),
    ZIMAGE: ("siglip_embedder.", "siglip_refiner."),
}


def is_single(path: Path) -> bool:
    """Return whether a path is that of a single file."""
    return path.suffix == SUFFIX and path.is_file()


def pipeline_of(table: Mapping[str, Tensor], file: str) -> str:
    """Return the pipeline of diffusers whose denoiser the file holds.

    Raises CheckpointError for a file of another model, a LoRA, and weights that are quantised.
    """
    check_plain(table, file)
    for pipeline, signs in SIGNS.items():
        larger = LARGER.get(pipeline, ())
        if any(name.removeprefix(DENOISER).startswith(larger) for name in table):
            continue
        if any(all(start + sign in table for sign in all_of) for all_of in signs for start in ("", DENOISER)):
            return pipeline
    if any(".lora_" in name or "lora_unet_" in name or name.endswith(".alpha") for name in table):
        raise CheckpointError(
            f"{file} is a LoRA and no model. Merge it: segue export CHECKPOINT --lora {file} -o BUNDLE"
        )
    raise CheckpointError(
        f"{file} is not a single file that Segue exports: diffusers takes it for {_inferred(table)!r}. "
        f"Segue exports single files of {', '.join(NAMES.values())}. Convert another model with diffusers "
        "(from_single_file, then save_pretrained), and export the directory."
    )


def check_plain(table: Mapping[str, Tensor], file: str) -> None:
    """Raise CheckpointError for a file whose weights are quantised, because their scales would be left out."""
    for name, tensor in table.items():
        if name.rpartition(".")[2] in SCALED or tensor.dtype.startswith("F8"):
            raise CheckpointError(
                f"{file} holds {name!r} in {tensor.dtype}: it is an fp8 or scaled file, so its weights are not plain "
                "numbers. Choose the file of the same model in fp16, bf16 or fp32."
            )
        if name.rpartition(".")[2] in EDM or name in EDM:
            raise CheckpointError(
                f"{file} holds {name!r}, so it was trained with EDM's noise levels, which Segue does not play. "
                "Choose another file."
            )


def held(table: Iterable[str], pipeline: str) -> dict[str, Place]:
    """Return the components that a file with these tensors holds, by folder, for a checkpoint of that pipeline."""
    names = set(table)
    found = {}
    for place in PLACES[pipeline]:
        inside = any(name.startswith(place.prefixes) for name in names)
        if inside or (place.bare and (place.bare in names or place.own in names)):
            found[place.folder] = place
    return found


def tensors_of(table: Mapping[str, Tensor], place: Place) -> dict[str, Tensor]:
    """Return the tensors of one component, with the names that they have in the file."""
    inside = {name: tensor for name, tensor in table.items() if name.startswith(place.prefixes)}
    return inside or dict(table)  # a bare denoiser is alone in its file


def unused(table: Mapping[str, Tensor], pipeline: str) -> list[str]:
    """Return the names of the tensors that belong to no component."""
    places = held(table, pipeline).values()
    prefixes = tuple(prefix for place in places for prefix in place.prefixes)
    if any(place.bare in table or place.own in table for place in places if place.bare):
        return []
    return [name for name in table if not name.startswith(prefixes)]


def _inferred(table: Mapping[str, Tensor]) -> str:
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    try:
        shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in table.items()}
        return str(infer_diffusers_model_type(shapes))
    except Exception:  # it looks up tensors that a stranger's file may lack
        return "an unknown model"
