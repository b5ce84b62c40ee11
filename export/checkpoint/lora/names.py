"""The tensors of a checkpoint that the names in LoRA files mean, in diffusers' layout and in the original one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ....runtime.bundle.families import DENOISER, UNET
from ....runtime.lora.names import readings
from ..headers import Tensor
from .layouts import Piece, original_pieces

WEIGHT, BIAS = "weight", "bias"


class Index:
    """The modules of a checkpoint under every name that LoRA files give them.

    `parts` are its tensors by folder. `target` is the folder that names of the denoiser mean.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor]], target: str) -> None:
        self._parts, self._target = parts, target
        self._own = {folder: _index(_diffusers(tensors)) for folder, tensors in parts.items()}

    @cached_property
    def _original(self) -> dict[str, Module]:
        shapes = {name: tensor.shape for name, tensor in self._parts.get(self._target, {}).items() if tensor.shape}
        return _index(original_pieces(shapes))

    def find(self, stem: str) -> tuple[str, Module] | None:
        """Return the folder of the module that a file calls `stem`, and its tensors; None if there is none."""
        for folder, name in readings(stem, self._parts, self._target):
            if (module := self._own.get(folder, {}).get(name)) is not None:
                return folder, module
        for folder, name in readings(stem, self._parts, self._target):
            if folder == self._target and (module := self._original.get(name)) is not None:
                return folder, module
        return None


Module = dict[str, tuple[Piece, ...]]  # its weight, its bias, as pieces of the checkpoint's tensors


def denoiser_of(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the folder that a file means if it names none."""
    return next((folder for folder in (UNET, DENOISER) if folder in parts), DENOISER)


def _diffusers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Piece, ...]]:
    """Return each tensor under its names. transformers 4 writes a prefix in CLIP's text model, transformers 5 does not.

    Older files say `to_out` for `to_out.0`.
    """
    found: dict[str, tuple[Piece, ...]] = {}
    for name in tensors:
        bare = name.removeprefix("text_model.")
        for alias in (bare, f"text_model.{bare}", name, name.replace(".to_out.0.", ".to_out.")):
            found[alias] = (Piece(name),)
    return found


def _index(pieces: Mapping[str, tuple[Piece, ...]]) -> dict[str, Module]:
    """Return the modules by their name with underscores. If two share a name, neither is kept."""
    found: dict[str, Module] = {}
    origins: dict[str, str] = {}
    for name, of in pieces.items():
        stem, _, kind = name.rpartition(".")
        if kind not in (WEIGHT, BIAS):
            stem, kind = name, WEIGHT  # a parameter that is no module's
        key = stem.replace(".", "_")
        if origins.setdefault(key, stem) != stem:
            found[key] = {}
        elif found.get(key, {"": ()}):
            found.setdefault(key, {})[kind] = of
    return {key: module for key, module in found.items() if module}
