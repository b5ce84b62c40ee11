"""Single files with the original names, made of checkpoints in diffusers' layout: the inverse of diffusers' renames.

The names are those of the files of Stability AI, Black Forest Labs and Tongyi. The tensors may be of any device, so
meta tensors give published sizes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

State = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
SD3_BLOCK = (
    ("norm1.linear", "x_block.adaLN_modulation.1"), ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("ff.net.0.proj", "x_block.mlp.fc1"), ("ff.net.2", "x_block.mlp.fc2"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"), ("ff_context.net.2", "context_block.mlp.fc2"),
    ("attn.to_out.0", "x_block.attn.proj"), ("attn.to_add_out", "context_block.attn.proj"),
    ("attn2.to_out.0", "x_block.attn2.proj"), ("attn.norm_q", "x_block.attn.ln_q"),
    ("attn.norm_k", "x_block.attn.ln_k"), ("attn.norm_added_q", "context_block.attn.ln_q"),
    ("attn.norm_added_k", "context_block.attn.ln_k"), ("attn2.norm_q", "x_block.attn2.ln_q"),
    ("attn2.norm_k", "x_block.attn2.ln_k"),
)  # fmt: skip
SD3_FUSED = {
    "attn.to_{}": "x_block.attn.qkv", "attn.add_{}_proj": "context_block.attn.qkv", "attn2.to_{}": "x_block.attn2.qkv",
}  # fmt: skip

FLUX2_ENDS = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}  # fmt: skip
FLUX2_BLOCK = {
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj", "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2", "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip
FLUX2_SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2", "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}  # fmt: skip

# The published files have no projection of the first text encoder, which stands for an identity
LACKING = {("clip_l", "text_projection.weight"), ("t5xxl", "encoder.embed_tokens.weight")}


def read_weights(folder: Path) -> State:
    """Return all tensors of a folder of a checkpoint."""
    from safetensors.torch import load_file

    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def write_single(checkpoint: Path, file: Path) -> Path:
    """Write a whole tiny SDXL or SD3 checkpoint as one file, and return it."""
    folders = sorted(path.name for path in checkpoint.iterdir() if list(path.glob("*.safetensors")))
    family = "sdxl" if "unet" in folders else "sd3"
    return save(file, published(family, {folder: read_weights(checkpoint / folder) for folder in folders}, 1))


def write_variant(checkpoint: Path, root: Path, variant: str = "fp16") -> Path:
    """Write a checkpoint again with its weights in half precision, as a variant alone, and return it."""
    shutil.copytree(checkpoint, root)
    for file in root.glob("*/*.safetensors"):
        state = {name: tensor.half() for name, tensor in read_weights(file.parent).items()}
        save(file.with_suffix(f".{variant}.safetensors"), state)
        file.unlink()
    return root


def published(family: str, parts: Mapping[str, Mapping[str, torch.Tensor]], layers: int) -> State:
    """Return all tensors of a model by folder as one file has them; a UNet has `layers` residual blocks a level."""
    made = {f"first_stage_model.{name}": t for name, t in autoencoder(parts["vae"]).items()}
    if family == "sdxl":
        texts = (clip(parts["text_encoder"]), open_clip(clip(parts["text_encoder_2"])))
        made |= {UNET + name: t for name, t in unet(parts["unet"], layers).items()}
        made |= {f"conditioner.embedders.0.transformer.{name}": t for name, t in texts[0].items()}
        return made | {f"conditioner.embedders.1.model.{name}": t for name, t in texts[1].items()}
    made |= {UNET + name: t for name, t in transformer(parts["transformer"]).items()}
    for name, folder in {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}.items():
        tensors = dict(parts.get(folder, {}))
        tensors = tensors if name == "t5xxl" else clip(tensors)
        made |= {f"text_encoders.{name}.transformer.{n}": t for n, t in tensors.items() if (name, n) not in LACKING}
    return made


def with_identity(checkpoint: Path) -> Path:
    """Make the first text encoder's projection of an SD3 checkpoint an identity, as every single file means it."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "text_encoder/model.safetensors"
    state = load_file(path)
    weight = state["text_projection.weight"]
    save_file(state | {"text_projection.weight": torch.eye(*weight.shape, dtype=weight.dtype)}, path, {"format": "pt"})
    return checkpoint


def unet(state: Mapping[str, torch.Tensor], layers: int) -> State:
    """Return an SDXL UNet, which has `layers` residual blocks a level, under its original names without a prefix."""
    made = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        match = re.fullmatch(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
        )
        if stem in UNET_ENDS:
            made[f"{UNET_ENDS[stem]}.{kind}"] = tensor
        elif match is None:
            _, part, number, rest = name.split(".", 3)
            place = 1 if part == "attentions" else 2 * int(number)
            made[f"middle_block.{place}.{_resnet(rest) if part == 'resnets' else rest}"] = tensor
        else:
            way, block, part, number, rest = match.groups()
            down, block = way == "down", int(block)
            first = 1 + block * (layers + 1) if down else block * (layers + 1)
            prefix = f"{'input' if down else 'output'}_blocks"
            if part == "resnets":
                made[f"{prefix}.{first + int(number)}.0.{_resnet(rest)}"] = tensor
            elif part == "attentions":
                made[f"{prefix}.{first + int(number)}.1.{rest}"] = tensor
            elif part == "downsamplers":
                made[f"{prefix}.{first + layers}.0.op.{kind}"] = tensor
            else:
                attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in state)
                made[f"{prefix}.{first + layers}.{2 if attends else 1}.conv.{kind}"] = tensor
    return made


def autoencoder(state: Mapping[str, torch.Tensor]) -> State:
    """Return an autoencoder under its original names; its attention has convolutions in place of matrices."""
    top = max(int(match[1]) for name in state if (match := re.search(r"up_blocks\.(\d+)", name)))
    made = {}
    for name, tensor in state.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{top - int(m[1])}.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = re.sub(r"to_([qkv])\.", r"\1.", new).replace("to_out.0", "proj_out")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        made[new] = tensor
    return made


def open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """Return a CLIP text encoder under OpenCLIP's names: q, k and v in one matrix, the projection transposed."""
    made: State = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            new = name.removeprefix("text_model.").replace("embeddings.token", "token")
            new = new.replace("final_layer_norm", "ln_final").replace(
                "embeddings.position_embedding.weight", "positional_embedding"
            )
            projects = new == "text_projection.weight"
            made["text_projection" if projects else new] = tensor.T.contiguous() if projects else tensor
            continue
        layer, part, kind = match.groups()
        block = f"transformer.resblocks.{layer}"
        if part == "self_attn.q_proj":
            three = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            made[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
        elif not part.startswith(("self_attn.k", "self_attn.v")):
            for old, new in (("self_attn", "attn"), ("layer_norm", "ln_"), ("fc1", "c_fc"), ("fc2", "c_proj")):
                part = part.replace(old, new)
            made[f"{block}.{part}.{kind}"] = tensor
    return made


def transformer(state: Mapping[str, torch.Tensor]) -> State:
    """Return an SD3 transformer under its original names without a prefix."""
    made: State = {"pos_embed": state["pos_embed.pos_embed"]} if "pos_embed.pos_embed" in state else {}
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    swapped = {"norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        if stem in SD3_ENDS:
            made[f"{SD3_ENDS[stem]}.{kind}"] = tensor
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem):
            block, part = f"joint_blocks.{match[1]}", match[2]
            for ours, theirs in SD3_BLOCK:
                if part == ours:
                    made[f"{block}.{theirs}.{kind}"] = tensor
            for pattern, theirs in SD3_FUSED.items():
                if part == pattern.format("q"):
                    names = [f"transformer_blocks.{match[1]}.{pattern.format(which)}.{kind}" for which in "qkv"]
                    made[f"{block}.{theirs}.{kind}"] = torch.cat([state[each] for each in names])
    return made


def flux2(state: Mapping[str, torch.Tensor]) -> State:
    """Return a FLUX.2 transformer under its original names without a prefix."""
    made: State = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", stem)
        if match is None:
            made[f"{FLUX2_ENDS[stem]}.{kind}"] = torch.cat(tensor.chunk(2)[::-1]) if "norm_out" in stem else tensor
            continue
        single, number, part = match.groups()
        block = f"{'single' if single else 'double'}_blocks.{number}"
        if part in ("attn.to_q", "attn.add_q_proj"):
            three = [state[f"{stem.replace('_q', f'_{which}')}.{kind}"] for which in "qkv"]
            made[f"{block}.{'img' if part == 'attn.to_q' else 'txt'}_attn.qkv.{kind}"] = torch.cat(three)
        elif (new := (FLUX2_SINGLE if single else FLUX2_BLOCK).get(part)) is not None:
            made[f"{block}.{new}.{'scale' if '.norm_' in part else kind}"] = tensor
    return made


def zimage(state: Mapping[str, torch.Tensor]) -> State:
    """Return a Z-Image transformer under the names of ComfyUI's file, without a prefix."""
    made: State = {}
    for name, tensor in state.items():
        new = name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")
        new = new.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")
        if ".to_q." in new:
            made[new.replace("to_q", "qkv")] = torch.cat(
                [state[name.replace("to_q", f"to_{which}")] for which in "qkv"]
            )
        elif ".to_k." not in new and ".to_v." not in new:
            made[new] = tensor
    return made


def _resnet(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{dict(RESNET)[stem]}.{kind}"


def clip(state: Mapping[str, torch.Tensor]) -> State:
    """Return a CLIP text encoder under the names of transformers 4."""
    bare = ("embeddings.", "encoder.", "final_layer_norm.")
    named = {f"text_model.{name}" if name.startswith(bare) else name: tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}


def save(file: Path, state: State) -> Path:
    """Write tensors to a safetensors file and return it."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, file, {"format": "pt"})
    return file
