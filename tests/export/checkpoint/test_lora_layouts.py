"""LoRA files as people share them: each changes the weights as diffusers' own merge does, or as its paper says.

diffusers is no oracle for LoHa, LoKr and a convolution with a middle (it has none), for kohya's `dora_scale` (it drops
it), for SD3's original names (no converter), and for Wan's norm differences (it drops them). The formulas stand here.
"""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from diffusers.loaders.lora_pipeline import (
    Flux2LoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
    WanLoraLoaderMixin,
)
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import headers
from segue.export.checkpoint.lora.layouts import original_pieces
from segue.export.checkpoint.lora.merge import PATCH, Lora, merge
from segue.export.graphs.adapters import original_names
from support.single_files import flux2

WEIGHTS = "weights.safetensors"


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 3


def bundle(folder, states):
    """Write state dicts by folder, and return their tables as `merge` takes them."""
    parts = {}
    for name, state in states.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name / WEIGHTS)
        parts[name] = headers.read(folder / name / WEIGHTS, f"{name}/{WEIGHTS}")
    return parts


def merged(folder, states, *loras):
    """Return the state dicts with files merged, and the names of the changed tensors by folder."""
    parts = bundle(folder, states)
    written = merge(loras, parts, dict.fromkeys(parts, "fp32"), folder)
    patches = {name: load_file(folder / name / PATCH) for name in written}
    return {name: state | patches.get(name, {}) for name, state in states.items()}, patches


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=2e-5), name


def halves(weight, seed, rank=3):
    """Return A and B for a weight, of a linear layer or a convolution."""
    kernel = weight.shape[2:]
    down = random(rank, *weight.shape[1:], seed=seed)
    return down, random(weight.shape[0], rank, *[1] * len(kernel), seed=seed + 1)


def matrices(state, convolutions):
    """Return the modules of a state dict whose weight is a matrix or, if wanted, a kernel."""
    found = {name.removesuffix(".weight"): value for name, value in state.items() if name.endswith(".weight")}
    return {n: v for n, v in found.items() if v.ndim == 2 or (convolutions and v.ndim > 2)}


def file_of(path, named, *, alpha=None, style="kohya", metadata=None):
    """Write a LoRA: `named` is each module's name in the file, with its weight."""
    down, up = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}[style]
    tensors = {}
    for seed, (name, weight) in enumerate(named.items()):
        tensors[f"{name}.{down}.weight"], tensors[f"{name}.{up}.weight"] = halves(weight, 2 * seed)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path, metadata)
    return path


def loaded(root):
    pipeline = StableDiffusionXLPipeline.from_pretrained(root)
    folders = ("unet", "text_encoder", "text_encoder_2")
    return pipeline, {f: {k: v.clone() for k, v in getattr(pipeline, f).state_dict().items()} for f in folders}


def fused(pipeline, file, scale=1.0):
    """Return the state dicts of a pipeline after diffusers merged the file."""
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    return {f: getattr(pipeline, f).state_dict() for f in ("unet", "text_encoder", "text_encoder_2")}


def floats(states):
    """Leave out the counters of CLIP, which no LoRA changes."""
    return {f: {k: v for k, v in state.items() if v.is_floating_point()} for f, state in states.items()}


def kohya(prefix, module):
    return f"{prefix}_{module.replace('.', '_')}"


def clip(module):
    return module if module.startswith("text_model.") else f"text_model.{module}"


def test_diffusers_own_layout_with_text_encoders_and_alpha_in_its_metadata(sdxl_checkpoint, tmp_path):
    pipeline, states = loaded(sdxl_checkpoint)
    named = {f"unet.{m}": w for m, w in matrices(states["unet"], convolutions=True).items()}
    for folder in ("text_encoder", "text_encoder_2"):
        layers = {m: w for m, w in matrices(states[folder], False).items() if ".layers." in m}
        named |= {f"{folder}.{m}": w for m, w in layers.items()}
    said = {f"{folder}.{k}": v for folder in states for k, v in (("r", 3), ("lora_alpha", 6))}
    said |= {"unet.target_modules": sorted(n.removeprefix("unet.") for n in named if n.startswith("unet."))}
    for folder in ("text_encoder", "text_encoder_2"):
        said[f"{folder}.target_modules"] = sorted(
            n.removeprefix(f"{folder}.") for n in named if n.startswith(f"{folder}.")
        )
    file = file_of(
        tmp_path / "l.safetensors", named, style="peft", metadata={"lora_adapter_metadata": json.dumps(said)}
    )
    found, patches = merged(tmp_path / "b", floats(states), Lora(file, 0.5))
    assert {folder: len(patch) for folder, patch in patches.items()} == {
        folder: sum(name.startswith(f"{folder}.") for name in named) for folder in states
    }
    expected = floats(fused(pipeline, file, 0.5))
    for folder in states:
        close(found[folder], expected[folder])


def test_kohyas_names_of_sdxl_in_diffusers_layout_with_both_text_encoders(sdxl_checkpoint, tmp_path):
    pipeline, states = loaded(sdxl_checkpoint)
    blocks = {m: w for m, w in matrices(states["unet"], False).items() if ".attentions." in m}
    named = {kohya("lora_unet", m): w for m, w in blocks.items()}
    for prefix, folder in (("lora_te1", "text_encoder"), ("lora_te2", "text_encoder_2")):
        layers = {m: w for m, w in matrices(states[folder], False).items() if ".layers." in m}
        named |= {kohya(prefix, clip(m)): w for m, w in layers.items()}
    file = file_of(tmp_path / "l.safetensors", named, alpha=2)
    found, patches = merged(tmp_path / "b", floats(states), Lora(file))
    assert sum(map(len, patches.values())) == len(named)
    expected = floats(fused(pipeline, file))
    for folder in states:
        close(found[folder], expected[folder])


@pytest.mark.parametrize("convolutions", [False, True])  # with them it is LoCon, or LCM-LoRA's form
def test_kohyas_names_of_sdxl_in_stabilitys_layout(sdxl_checkpoint, tmp_path, convolutions):
    unet = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    originals = {of[0].tensor: name for name, of in original_pieces({k: v.shape for k, v in state.items()}).items()}
    assert len(set(originals.values())) == len(state)
    inside = {m: w for m, w in matrices(state, convolutions).items() if "_block" in m}
    if not convolutions:
        inside = {m: w for m, w in inside.items() if ".attentions." in m}
    names = {m: kohya("lora_unet", originals[f"{m}.weight"].removesuffix(".weight")) for m in inside}
    file = file_of(tmp_path / "l.safetensors", {names[m]: w for m, w in inside.items()}, alpha=1.5)
    found, patches = merged(tmp_path / "b", {"unet": state}, Lora(file, 0.8))
    assert len(patches["unet"]) == len(inside)
    converted, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(str(file), unet_config=unet.config)
    unet.load_lora_adapter(converted, prefix="unet", network_alphas=alphas)
    unet.fuse_lora(lora_scale=0.8)
    unet.unload_lora()
    close(found["unet"], unet.state_dict())


def test_the_names_of_stabilitys_layout_are_those_that_diffusers_converts(sdxl_checkpoint):
    unet = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    state = unet.state_dict()
    pieces = original_pieces({k: v.shape for k, v in state.items()})
    original = {f"model.diffusion_model.{name}": state[of[0].tensor] for name, of in pieces.items()}
    again = convert_ldm_unet_checkpoint(original, dict(unet.config))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def one(sdxl_checkpoint, module="down_blocks.0.resnets.0.conv1"):
    state = load_file(sdxl_checkpoint / "unet/diffusion_pytorch_model.safetensors")
    return state, state[f"{module}.weight"], kohya("lora_unet", module), f"{module}.weight"


def change(folder, state, tensors, target, factor=1.0):
    """Return the only weight that the file changes, less what it was."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "l.safetensors")
    _, patches = merged(folder / "b", {"unet": state}, Lora(folder / "l.safetensors", factor))
    assert patches["unet"].keys() == {target}
    return patches["unet"][target] - state[target]


def test_a_convolution_with_a_middle(sdxl_checkpoint, tmp_path):
    state, weight, name, target = one(sdxl_checkpoint)
    out, taken = weight.shape[:2]
    up, mid, down = random(out, 4, 1, 1, seed=1), random(4, 4, 3, 3, seed=2), random(4, taken, 1, 1, seed=3)
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid, f"{name}.lora_down.weight": down}
    tensors[f"{name}.alpha"] = torch.tensor(2.0)
    expected = 0.5 * torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    assert torch.allclose(change(tmp_path, state, tensors, target), expected, atol=1e-5)


@pytest.mark.parametrize("tucker", [False, True])
def test_loha(sdxl_checkpoint, tmp_path, tucker):
    state, weight, name, target = one(sdxl_checkpoint)
    out, taken = weight.shape[:2]
    products, tensors = [], {f"{name}.alpha": torch.tensor(2.0)}
    for n in (1, 2):
        if tucker:
            core, left, right = random(4, 4, 3, 3, seed=n), random(4, out, seed=n + 2), random(4, taken, seed=n + 4)
            tensors[f"{name}.hada_t{n}"] = core
            products.append(torch.einsum("rskl,ro,si->oikl", core, left, right))
        else:
            left, right = random(out, 4, seed=n), random(4, taken * 9, seed=n + 2)
            products.append((left @ right).reshape(weight.shape))
        tensors |= {f"{name}.hada_w{n}_a": left, f"{name}.hada_w{n}_b": right}
    expected = 2.0 / 4 * products[0] * products[1]
    assert torch.allclose(change(tmp_path, state, tensors, target), expected, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [("whole", "whole"), ("pair", "pair"), ("whole", "tucker")])
def test_lokr(sdxl_checkpoint, tmp_path, first, second):
    state, weight, name, target = one(sdxl_checkpoint)
    out, taken = weight.shape[:2]
    tensors = {f"{name}.alpha": torch.tensor(3.0)}
    if first == "whole":
        w1 = tensors[f"{name}.lokr_w1"] = random(4, 2, seed=1)
    else:
        tensors |= {f"{name}.lokr_w1_a": random(4, 5, seed=1), f"{name}.lokr_w1_b": random(5, 2, seed=2)}
        w1 = tensors[f"{name}.lokr_w1_a"] @ tensors[f"{name}.lokr_w1_b"]
    p, q = out // 4, taken // 2
    if second == "whole":
        w2 = tensors[f"{name}.lokr_w2"] = random(p, q, 3, 3, seed=3)
    elif second == "pair":
        tensors |= {f"{name}.lokr_w2_a": random(p, 5, seed=3), f"{name}.lokr_w2_b": random(5, q * 9, seed=4)}
        w2 = (tensors[f"{name}.lokr_w2_a"] @ tensors[f"{name}.lokr_w2_b"]).reshape(p, q, 3, 3)
    else:
        core, left, right = random(5, 5, 3, 3, seed=3), random(5, p, seed=4), random(5, q, seed=5)
        tensors |= {f"{name}.lokr_t2": core, f"{name}.lokr_w2_a": left, f"{name}.lokr_w2_b": right}
        w2 = torch.einsum("rskl,ro,si->oikl", core, left, right)
    scale = 1.0 if second == "whole" else 3.0 / 5  # alpha counts only where a factor is a product
    expected = scale * torch.kron(w1[:, :, None, None], w2.contiguous())
    assert torch.allclose(change(tmp_path, state, tensors, target), expected, atol=1e-5)


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("module", ["down_blocks.0.resnets.0.conv1", "time_embedding.linear_1"])
def test_kohyas_dora_which_diffusers_drops(sdxl_checkpoint, tmp_path, axis, module):
    state, weight, name, target = one(sdxl_checkpoint, module)
    down, up = halves(weight, 1)
    whole = weight + ((up.flatten(1) @ down.flatten(1)) * 2 / 3).reshape(weight.shape)
    over = [n for n in range(weight.ndim) if n != (0 if axis == "output" else 1)]
    magnitude = 1.3 * torch.linalg.vector_norm(weight, dim=over, keepdim=True)
    aimed = magnitude * whole / torch.linalg.vector_norm(whole, dim=over, keepdim=True)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude}
    tensors[f"{name}.alpha"] = torch.tensor(2.0)
    for factor in (1.0, 0.5):
        (folder := tmp_path / str(factor)).mkdir()
        found = change(folder, state, tensors, target, factor)
        assert torch.allclose(found, factor * (aimed - weight), atol=1e-5)


def test_pefts_dora(sdxl_checkpoint, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "conv1", "ff.net.2"], use_dora=True)
    unet.add_adapter(config)
    held = get_peft_model_state_dict(unet)
    held = {k: v + random(*v.shape, seed=n) for n, (k, v) in enumerate(sorted(held.items()))}
    said = {"unet.r": 3, "unet.lora_alpha": 6, "unet.use_dora": True}
    said["unet.target_modules"] = ["to_q", "conv1", "ff.net.2"]
    save_file({f"unet.{k}": v.contiguous() for k, v in held.items()}, tmp_path / "l.safetensors",
              {"lora_adapter_metadata": json.dumps(said)})  # fmt: skip
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint)
    expected = fused(pipeline, tmp_path / "l.safetensors", 0.7)["unet"]
    found, patches = merged(tmp_path / "b", {"unet": state}, Lora(tmp_path / "l.safetensors", 0.7))
    assert len(patches["unet"]) == len(held) // 3
    close(found["unet"], expected)


def sd3_original(checkpoint):
    """Return a random checkpoint in SD3's original layout, and what diffusers makes of it."""
    state = load_file(checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    pieces = original_pieces({k: v.shape for k, v in state.items()})
    assert sum(map(len, pieces.values())) == len(state)
    original = {}
    for seed, (name, of) in enumerate(pieces.items()):
        shape = state[of[0].tensor].shape
        original[name] = random(sum(state[p.tensor].shape[0] for p in of), *shape[1:], seed=seed)
    return original, convert_sd3_transformer_checkpoint_to_diffusers(dict(original))


@pytest.mark.parametrize(
    ("prefix", "dots", "style"),
    [("lora_unet_", "_", "kohya"), ("diffusion_model.", ".", "kohya"), ("diffusion_model.", ".", "peft")],
)
def test_sd3s_original_names_with_fused_matrices_and_swapped_halves(tiny_checkpoint, tmp_path, prefix, dots, style):
    original, base = sd3_original(tiny_checkpoint)
    modules = matrices(original, convolutions=True)
    assert {"joint_blocks.1.context_block.adaLN_modulation.1", "joint_blocks.0.x_block.attn.qkv"} <= modules.keys()
    named = {prefix + m.replace(".", dots): w for m, w in modules.items()}
    file = file_of(tmp_path / "l.safetensors", named, alpha=2, style=style)
    changed = dict(original)
    for seed, (module, weight) in enumerate(modules.items()):
        down, up = halves(weight, 2 * seed)
        changed[f"{module}.weight"] = weight + 0.6 * 2 / 3 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    expected = convert_sd3_transformer_checkpoint_to_diffusers(changed)
    found, _ = merged(tmp_path / "b", {"transformer": base}, Lora(file, 0.6))
    close(found["transformer"], expected)


@pytest.mark.parametrize("form", ["lokr", "loha", "dora by output", "dora by input", "differences"])
def test_other_forms_of_a_fused_matrix_of_sd3(tiny_checkpoint, tmp_path, form):
    original, base = sd3_original(tiny_checkpoint)
    module = "joint_blocks.0.x_block.attn.qkv"
    weight, name = original[f"{module}.weight"], kohya("lora_unet", module)
    changed, (out, taken) = dict(original), weight.shape
    if form == "lokr":  # blocks of 48 rows do not end where the three matrices do
        tensors = {f"{name}.lokr_w1": random(2, 4, seed=1), f"{name}.lokr_w2": random(out // 2, taken // 4, seed=2)}
        changed[f"{module}.weight"] = weight + torch.kron(*tensors.values())
    elif form == "loha":
        shapes = {"hada_w1_a": (out, 2), "hada_w1_b": (2, taken), "hada_w2_a": (out, 2), "hada_w2_b": (2, taken)}
        tensors = {f"{name}.{part}": random(*shape, seed=n) for n, (part, shape) in enumerate(shapes.items())}
        a, b, c, d = tensors.values()
        changed[f"{module}.weight"] = weight + (a @ b) * (c @ d)
    elif form == "differences":
        tensors = {f"{name}.diff": random(out, taken, seed=1), f"{name}.diff_b": random(out, seed=2)}
        changed[f"{module}.weight"] = weight + tensors[f"{name}.diff"]
        changed[f"{module}.bias"] = original[f"{module}.bias"] + tensors[f"{name}.diff_b"]
    else:
        down, up = halves(weight, 1)
        dim = 1 if form == "dora by output" else 0
        magnitude = 2 * weight.norm(dim=dim, keepdim=True)
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude}
        whole = weight + up @ down
        changed[f"{module}.weight"] = magnitude * whole / whole.norm(dim=dim, keepdim=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "l.safetensors")
    found, _ = merged(tmp_path / "b", {"transformer": base}, Lora(tmp_path / "l.safetensors"))
    close(found["transformer"], convert_sd3_transformer_checkpoint_to_diffusers(changed))


def test_pefts_own_folder_with_its_config_beside_the_file(tiny_checkpoint, tmp_path):
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig, get_peft_model

    model = SD3Transformer2DModel.from_pretrained(tiny_checkpoint / "transformer")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "proj_out", "add_k_proj"], use_rslora=True,
        alpha_pattern={"transformer_blocks.0.attn.to_q": 3}, rank_pattern={"proj_out": 2},
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    for n, (name, value) in enumerate(wrapped.named_parameters()):
        if "lora_" in name:
            value.data = random(*value.shape, seed=n)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    file = tmp_path / "adapter/adapter_model.safetensors"
    found, patches = merged(tmp_path / "b", {"transformer": state}, Lora(file))
    assert len(patches["transformer"]) == 5
    close(found["transformer"], expected)


def wan(checkpoint):
    model = WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    pieces = original_pieces({k: v.shape for k, v in state.items()})
    assert len(pieces) == len(state)
    original = {name: state[of[0].tensor] for name, of in pieces.items()}
    again = convert_wan_transformer_to_diffusers(dict(original))
    assert all(torch.equal(again[name], value) for name, value in state.items())
    return model, state, original


@pytest.mark.parametrize(
    ("prefix", "dots", "style", "alpha"),
    [
        ("diffusion_model.", ".", "peft", None),
        ("diffusion_model.", ".", "kohya", 2),
        ("lora_unet_", "_", "kohya", 2),
        ("", ".", "default", None),
    ],
)
def test_wans_original_names_of_comfyui_musubi_and_diffsynth(video_checkpoint, tmp_path, prefix, dots, style, alpha):
    model, state, original = wan(video_checkpoint)
    inside = {m: w for m, w in matrices(original, False).items() if m.startswith("blocks.")}
    named = {prefix + m.replace(".", dots): w for m, w in inside.items()}
    file = file_of(tmp_path / "l.safetensors", named, alpha=alpha, style="peft" if style == "default" else style)
    if style == "default":
        tensors = {k.replace(".weight", ".default.weight"): v for k, v in load_file(file).items()}
        save_file(tensors, file)
    found, patches = merged(tmp_path / "b", {"transformer": state}, Lora(file, 0.4))
    assert len(patches["transformer"]) == len(inside)
    source = {f"diffusion_model.{k.replace('.default', '')}": v for k, v in load_file(file).items()}
    converted = WanLoraLoaderMixin.lora_state_dict(load_file(file) if prefix else source)
    model.load_lora_adapter(converted, prefix="transformer")
    model.fuse_lora(lora_scale=0.4)
    model.unload_lora()
    close(found["transformer"], model.state_dict())


def test_wans_full_differences_with_norms_and_modulations(video_checkpoint, tmp_path):
    _, state, original = wan(video_checkpoint)
    tensors, changed = {}, dict(original)
    keys = {
        "blocks.0.self_attn.norm_q.weight": "blocks.0.self_attn.norm_q.diff",
        "blocks.1.ffn.0.weight": "blocks.1.ffn.0.diff", "blocks.1.ffn.0.bias": "blocks.1.ffn.0.diff_b",
        "blocks.1.norm3.weight": "blocks.1.norm3.diff", "blocks.1.norm3.bias": "blocks.1.norm3.diff_b",
        "blocks.0.modulation": "blocks.0.diff_m", "head.head.bias": "head.head.diff_b",
    }  # fmt: skip
    for seed, (name, key) in enumerate(keys.items()):
        tensors[f"diffusion_model.{key}"] = random(*original[name].shape, seed=seed)
        changed[name] = original[name] + 0.5 * tensors[f"diffusion_model.{key}"]
    save_file(tensors, tmp_path / "l.safetensors")
    found, patches = merged(tmp_path / "b", {"transformer": state}, Lora(tmp_path / "l.safetensors", 0.5))
    assert len(patches["transformer"]) == len(keys)
    close(found["transformer"], convert_wan_transformer_to_diffusers(changed))


def klein(checkpoint):
    """Return a FLUX.2-klein, its state dict, and that in the original layout."""
    model = Flux2Transformer2DModel.from_pretrained(checkpoint / "transformer")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    original = flux2(state)
    again = convert_flux2_transformer_checkpoint_to_diffusers(dict(original))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    return model, state, original


@pytest.mark.parametrize(
    ("prefix", "dots", "style"),
    [
        ("lora_unet_", "_", "kohya"), ("diffusion_model.", ".", "peft"), ("base_model.model.", ".", "peft"),
    ],
)  # fmt: skip
def test_kleins_original_names_with_fused_matrices_and_swapped_halves(klein_checkpoint, tmp_path, prefix, dots, style):
    """diffusers forgets to swap the halves of the last modulation of a LoRA, but not of a checkpoint."""
    _, state, original = klein(klein_checkpoint)
    modules = matrices(original, convolutions=False)
    assert {
        "double_blocks.0.txt_attn.qkv",
        "single_blocks.1.linear1",
        "final_layer.adaLN_modulation.1",
    } < modules.keys()
    named = {prefix + m.replace(".", dots): w for m, w in modules.items()}
    file = file_of(tmp_path / "l.safetensors", named, alpha=2, style=style)
    changed = dict(original)
    for seed, (module, weight) in enumerate(modules.items()):
        down, up = halves(weight, 2 * seed)
        changed[f"{module}.weight"] = weight + 0.6 * 2 / 3 * up @ down
    found, patches = merged(tmp_path / "b", {"transformer": state}, Lora(file, 0.6))
    assert len(patches["transformer"]) == sum(value.ndim == 2 for value in state.values())
    close(found["transformer"], convert_flux2_transformer_checkpoint_to_diffusers(changed))


@pytest.mark.parametrize(
    ("prefix", "dots", "style", "alpha"),
    [("lora_unet_", "_", "kohya", 2), ("diffusion_model.", ".", "peft", None)],
)
def test_kleins_original_names_change_the_blocks_as_in_diffusers(
    klein_checkpoint, tmp_path, prefix, dots, style, alpha
):
    model, state, original = klein(klein_checkpoint)
    inside = {m: w for m, w in matrices(original, False).items() if "_blocks." in m}
    named = {prefix + m.replace(".", dots): w for m, w in inside.items()}
    file = file_of(tmp_path / "l.safetensors", named, alpha=alpha, style=style)
    found, patches = merged(tmp_path / "b", {"transformer": state}, Lora(file, 0.4))
    assert len(patches["transformer"]) == len(inside) + 4  # each qkv of two streams is three matrices
    model.load_lora_adapter(Flux2LoraLoaderMixin.lora_state_dict(load_file(file)), prefix="transformer")
    model.fuse_lora(lora_scale=0.4)
    model.unload_lora()
    close(found["transformer"], model.state_dict())


def test_lokr_of_a_fused_matrix_and_a_norm_of_klein(klein_checkpoint, tmp_path):
    _, state, original = klein(klein_checkpoint)
    module, norm = "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.norm.key_norm.scale"
    weight, changed = original[f"{module}.weight"], dict(original)
    first, second = random(2, 4, seed=1), random(weight.shape[0] // 2, weight.shape[1] // 4, seed=2)
    moved = random(*original[norm].shape, seed=3)
    changed |= {f"{module}.weight": weight + torch.kron(first, second), norm: original[norm] + moved}
    tensors = {f"{module}.lokr_w1": first, f"{module}.lokr_w2": second, f"{norm}.diff": moved}
    save_file({f"diffusion_model.{k}": v for k, v in tensors.items()}, tmp_path / "l.safetensors")
    found, _ = merged(tmp_path / "b", {"transformer": state}, Lora(tmp_path / "l.safetensors"))
    close(found["transformer"], convert_flux2_transformer_checkpoint_to_diffusers(changed))


def test_the_inputs_for_loras_of_klein_have_their_original_names(klein_checkpoint):
    _, state, _ = klein(klein_checkpoint)
    modules = {name.removesuffix(".weight") for name, value in state.items() if value.ndim == 2}
    found = json.loads(original_names({k: tuple(v.shape) for k, v in state.items()}, modules))
    rows = state["transformer_blocks.0.attn.to_q.weight"].shape[0]
    assert found["double_blocks_0_img_attn_qkv"] == [
        [f"transformer_blocks.0.attn.to_{which}", [[n * rows, rows]]] for n, which in enumerate("qkv")
    ]
    half = state["norm_out.linear.weight"].shape[0] // 2
    assert found["final_layer_adaLN_modulation_1"] == [["norm_out.linear", [[half, half], [0, half]]]]


def test_a_file_may_be_meant_for_the_second_expert(video_checkpoint, tmp_path):
    _, state, original = wan(video_checkpoint)
    module = "blocks.0.self_attn.q"
    named = {kohya("lora_unet", module): original[f"{module}.weight"]}
    file = file_of(tmp_path / "l.safetensors", named)
    states = {"transformer": state, "transformer_2": state}
    _, patches = merged(tmp_path / "b", states, Lora(file, 1.0, "transformer_2"), Lora(file, 0.5))
    weight = state["blocks.0.attn1.to_q.weight"]
    both = [patches[folder]["blocks.0.attn1.to_q.weight"] - weight for folder in ("transformer", "transformer_2")]
    assert torch.allclose(2 * both[0], both[1], atol=1e-5)
    with pytest.raises(CheckpointError, match=r"for the folder 'vae', which the checkpoint lacks\. Choose one of"):
        merged(tmp_path / "c", states, Lora(file, 1.0, "vae"))


def test_several_files_add_up_and_a_later_dora_sees_the_earlier_ones(sdxl_checkpoint, tmp_path):
    state, weight, name, target = one(sdxl_checkpoint, "time_embedding.linear_1")
    down, up = halves(weight, 1)
    plain = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    magnitude = weight.norm(dim=1, keepdim=True)
    save_file(plain, tmp_path / "a.safetensors")
    save_file(plain | {f"{name}.dora_scale": magnitude}, tmp_path / "b.safetensors")
    files = [Lora(tmp_path / f"{n}.safetensors", f) for n, f in (("a", 0.5), ("a", 0.25), ("b", 1.0))]
    _, patches = merged(tmp_path / "out", {"unet": state}, *files)
    whole = weight + 1.75 * (up @ down)
    assert torch.allclose(patches["unet"][target], magnitude * whole / whole.norm(dim=1, keepdim=True), atol=1e-5)


def test_rank_0_changes_nothing(sdxl_checkpoint, tmp_path):
    state, weight, name, target = one(sdxl_checkpoint)
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(0, *weight.shape[1:]), f"{name}.alpha": torch.tensor(1.0),
        f"{name}.lora_up.weight": torch.zeros(weight.shape[0], 0, 1, 1),
    }  # fmt: skip
    assert not change(tmp_path, state, tensors, target).any()


def test_no_two_modules_share_a_name(
    sdxl_checkpoint, tiny_checkpoint, video_checkpoint, longcat_checkpoint, klein_checkpoint
):
    folders = ((sdxl_checkpoint, "unet"), (tiny_checkpoint, "transformer"), (video_checkpoint, "transformer"),
               (longcat_checkpoint, "transformer"), (klein_checkpoint, "transformer"))  # fmt: skip
    for root, folder in folders:
        state = load_file(root / folder / "diffusion_pytorch_model.safetensors")
        own = {name.removesuffix(".weight").removesuffix(".bias") for name in state}
        pieces = original_pieces({k: v.shape for k, v in state.items()})
        original = {name.removesuffix(".weight").removesuffix(".bias"): of for name, of in pieces.items()}
        assert len({name.replace(".", "_") for name in own}) == len(own)
        assert len({name.replace(".", "_") for name in original}) == len(original)
        for name in own & original.keys():  # one name in both layouts means one module
            assert [piece.tensor.rpartition(".")[0] for piece in original[name]] == [name]
            assert all(p.rows is None or np.array_equal(p.rows, np.arange(len(p.rows))) for p in original[name])


@pytest.mark.parametrize("rows", [0, 2**40])  # a header may claim any number of rows of no bytes
def test_a_damaged_checkpoint_has_no_original_layout(rows):
    sign = "time_text_embed.timestep_embedder.linear_1.weight"
    assert original_pieces({sign: (rows, 0)}) == {}
