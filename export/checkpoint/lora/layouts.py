"""Where the weights of a denoiser lie in its original layout, the one that its makers published.

diffusers' own converter decides: it converts row numbers in place of weights, so each row of a diffusers weight tells
its row in the original one. Only names are written here, and a name that the converter does not confirm is dropped.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A tensor of the checkpoint, and the rows that it takes of a change; None: all rows, in order."""

    tensor: str
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """One original layout: a tensor that only its denoiser has, name rules (diffusers to original), and a converter."""

    sign: str
    rules: tuple[tuple[str, str], ...]
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def original_pieces(tensors: Mapping[str, Shape]) -> dict[str, tuple[Piece, ...]]:
    """Return the checkpoint's pieces of each tensor of the original layout.

    `tensors` are the shapes of a denoiser's tensors by diffusers' name. Empty if the layout is not known.
    """
    if any(SDXL_SIGN.fullmatch(name) for name in tensors):
        return {_sdxl_name(name, tensors): (Piece(name),) for name in tensors}
    layout = next((layout for layout in LAYOUTS if layout.sign in tensors), None)
    return {} if layout is None else _probed(layout, tensors)


def _probed(layout: Layout, tensors: Mapping[str, Shape]) -> dict[str, tuple[Piece, ...]]:
    import torch

    from ..single.probe import MOST_ROWS

    rows: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for name, shape in tensors.items():
        original = name
        for pattern, replacement in layout.rules:
            original = re.sub(pattern, replacement, original)
        rows[original] = rows.get(original, 0) + shape[0]
        ranks[original] = len(shape)
    names, starts = list(rows), [0]
    for name in names:
        starts.append(starts[-1] + rows[name])
    if starts[-1] > MOST_ROWS:  # of a damaged checkpoint: its numbers would fill the memory
        return {}
    numbered = {
        name: torch.arange(start, start + rows[name]).reshape(-1, *[1] * (ranks[name] - 1))
        for name, start in zip(names, starts, strict=False)
    }
    found: dict[str, list[Piece]] = {}
    try:
        converted = layout.convert(numbered)
    except Exception:  # a checkpoint that the converter does not expect has diffusers' names alone
        return {}
    for name, numbers in converted.items():
        if name not in tensors or not numbers.numel() == tensors[name][0] > 0:
            continue
        places = numbers.reshape(-1).numpy()
        source = bisect_right(starts, int(places[0])) - 1
        within = places - starts[source]
        if within.min() >= 0 and within.max() < rows[names[source]]:
            found.setdefault(names[source], []).append(Piece(name, within))
    return {name: tuple(pieces) for name, pieces in found.items() if _whole(pieces, rows[name])}


def _whole(pieces: Sequence[Piece], rows: int) -> bool:
    """Return whether the pieces take each row exactly once. Otherwise a change would be lost or doubled."""
    taken = np.concatenate([piece.rows for piece in pieces if piece.rows is not None])
    return np.array_equal(np.sort(taken), np.arange(rows))


def _convert_sd3(numbered: dict[str, Any]) -> dict[str, Any]:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as convert

    result: dict[str, Any] = convert(numbered)
    return result


def _convert_wan(numbered: dict[str, Any]) -> dict[str, Any]:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert

    result: dict[str, Any] = convert(numbered)
    return result


def _convert_zimage(numbered: dict[str, Any]) -> dict[str, Any]:
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers as convert

    result: dict[str, Any] = convert(numbered)
    return result


def _convert_flux2(numbered: dict[str, Any]) -> dict[str, Any]:
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers as convert

    result: dict[str, Any] = convert(numbered)
    return result


SD3 = Layout(
    "time_text_embed.timestep_embedder.linear_1.weight",
    (
        (r"^pos_embed\.proj\.", "x_embedder.proj."),
        (r"^pos_embed\.pos_embed$", "pos_embed"),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
        (r"^transformer_blocks\.(\d+)\.", r"joint_blocks.\1."),
        (r"\.(attn2?)\.to_[qkv]\.", r".x_block.\1.qkv."),
        (r"\.attn\.add_[qkv]_proj\.", ".context_block.attn.qkv."),
        (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
        (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
        (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
        (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
        (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
        (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
        (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
        (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
        (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
        (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
        (r"^proj_out\.", "final_layer.linear."),
    ),
    _convert_sd3,
)
WAN = Layout(
    "condition_embedder.time_proj.weight",
    (
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
        (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"\.scale_shift_table$", ".modulation"),
        (r"^proj_out\.", "head.head."),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.add_([kv])_proj\.", r".\1_img."),
        (r"\.norm_added_k\.", ".norm_k_img."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
        (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    ),
    _convert_wan,
)
ZIMAGE = Layout(
    "all_x_embedder.2-1.weight",
    (
        (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
        (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    ),
    _convert_zimage,
)
FLUX2 = Layout(
    "double_stream_modulation_img.linear.weight",
    (
        (r"^x_embedder\.", "img_in."),
        (r"^context_embedder\.", "txt_in."),
        (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
        (
            r"^(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)\.linear\.",
            r"\1.lin.",
        ),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight$", r"single_blocks.\1.norm.query_norm.scale"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight$", r"single_blocks.\1.norm.key_norm.scale"),
        (r"^transformer_blocks\.(\d+)\.", r"double_blocks.\1."),
        (r"\.attn\.to_[qkv]\.", ".img_attn.qkv."),
        (r"\.attn\.add_[qkv]_proj\.", ".txt_attn.qkv."),
        (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
        (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
        (r"\.attn\.norm_q\.weight$", ".img_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight$", ".img_attn.norm.key_norm.scale"),
        (r"\.attn\.norm_added_q\.weight$", ".txt_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_added_k\.weight$", ".txt_attn.norm.key_norm.scale"),
        (r"\.ff\.linear_in\.", ".img_mlp.0."),
        (r"\.ff\.linear_out\.", ".img_mlp.2."),
        (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
        (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
    ),
    _convert_flux2,
)
LAYOUTS = (SD3, WAN, ZIMAGE, FLUX2)

SDXL_SIGN = re.compile(r"mid_block\.resnets\.0\.time_emb_proj\.weight")
SDXL_NAMES = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
RESNET = {
    ".norm1.": ".in_layers.0.", ".conv1.": ".in_layers.2.", ".time_emb_proj.": ".emb_layers.1.",
    ".norm2.": ".out_layers.0.", ".conv2.": ".out_layers.3.", ".conv_shortcut.": ".skip_connection.",
}  # fmt: skip
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")


def _sdxl_name(name: str, tensors: Mapping[str, Shape]) -> str:
    """Return the name of a UNet's tensor in Stability's layout, which only names differently."""
    if match := BLOCK.fullmatch(name):
        way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        layers = len({n.split(".")[3] for n in tensors if n.startswith(f"{way}_blocks.0.resnets.")})
        if way == "down":
            # conv_in is block 0, and each level ends with a block for its downsampler.
            place = f"input_blocks.{1 + block * (layers + 1) + layer + (layers if kind == 'downsamplers' else 0)}"
            part = 1 if kind == "attentions" else 0
            rest = rest.replace("conv.", "op.", 1) if kind == "downsamplers" else rest
        else:
            place = f"output_blocks.{block * layers + layer + (layers - 1 if kind == 'upsamplers' else 0)}"
            attends = any(n.startswith(f"up_blocks.{block}.attentions.") for n in tensors)
            part = 1 + attends if kind == "upsamplers" else 1 if kind == "attentions" else 0
        return f"{place}.{part}." + (_resnet(rest) if kind == "resnets" else rest)
    for own, original in SDXL_NAMES.items():
        if name.startswith(own + "."):
            rest = name.removeprefix(own + ".")
            return f"{original}." + (_resnet(rest) if ".resnets." in own else rest)
    return name


def _resnet(rest: str) -> str:
    own = f".{rest.partition('.')[0]}."
    return RESNET.get(own, own)[1:] + rest.partition(".")[2]
