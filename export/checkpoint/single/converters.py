"""diffusers' converters of the components in a single file, each as a function of the file's tensors.

Source: diffusers.loaders.single_file_utils. The converters remove tensors from the dict that they get. SD3's first text
encoder needs a projection that its file lacks: an identity, as in diffusers' own loader. Qwen3 has transformers' names
behind a prefix.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .layout import DENOISER, KLEIN, SD3, SDXL, ZIMAGE, Place

State = dict[str, torch.Tensor]


def converter(pipeline: str, place: Place, config: Mapping[str, Any]) -> Callable[[State], Mapping[str, Any]]:
    """Return the converter of one component to diffusers' names; `config` is its config.json."""
    return functools.partial(CONVERTERS[pipeline, place.folder], config=config, place=place)


def _unet(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if place.own in state:
        return dict(state)
    named = {name if name.startswith(DENOISER) else DENOISER + name: tensor for name, tensor in state.items()}
    converted: Mapping[str, Any] = convert_ldm_unet_checkpoint(named, {"layers_per_block": 2, **config})
    return converted


def _transformer(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    if place.own in state:
        return dict(state)
    converted: Mapping[str, Any] = convert_sd3_transformer_checkpoint_to_diffusers(dict(state))
    return converted


def _original(model: str, state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders import single_file_utils

    state = _without(state, DENOISER)
    if place.own in state:
        return state
    convert = getattr(single_file_utils, f"convert_{model}_transformer_checkpoint_to_diffusers")
    converted: Mapping[str, Any] = convert(state)
    return converted


def _qwen3(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    return _without(state, *place.prefixes)


def _without(state: State, *prefixes: str) -> State:
    for prefix in prefixes:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _vae(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted: Mapping[str, Any] = convert_ldm_vae_checkpoint(dict(state), config)
    return converted


def _clip(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    # The converter knows SDXL's prefix, and would apply it twice
    known = place.prefixes[0] if place.prefixes[0].startswith("text_encoders.") else None
    converted: Mapping[str, Any] = convert_ldm_clip_checkpoint(dict(state), known)
    return converted


def _clip_without_projection(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    converted = dict(_clip(state, config, place))
    converted["text_projection.weight"] = torch.eye(config["projection_dim"], config["hidden_size"])
    return converted


def _open_clip(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    model = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=config["hidden_size"]))
    converted: Mapping[str, Any] = convert_open_clip_checkpoint(model, dict(state), prefix=place.prefixes[0])
    return converted


def _t5(state: State, config: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    from diffusers.loaders.single_file_utils import convert_sd3_t5_checkpoint_to_diffusers

    converted: Mapping[str, Any] = convert_sd3_t5_checkpoint_to_diffusers(dict(state))
    return converted


CONVERTERS: dict[tuple[str, str], Callable[..., Mapping[str, Any]]] = {
    (SDXL, "unet"): _unet,
    (SDXL, "text_encoder"): _clip,
    (SDXL, "text_encoder_2"): _open_clip,
    (SDXL, "vae"): _vae,
    (SD3, "transformer"): _transformer,
    (SD3, "text_encoder"): _clip_without_projection,
    (SD3, "text_encoder_2"): _clip,
    (SD3, "text_encoder_3"): _t5,
    (SD3, "vae"): _vae,
    (KLEIN, "transformer"): functools.partial(_original, "flux2"),
    (KLEIN, "text_encoder"): _qwen3,
    (ZIMAGE, "transformer"): functools.partial(_original, "z_image"),
    (ZIMAGE, "text_encoder"): _qwen3,
    (ZIMAGE, "vae"): _vae,
}
