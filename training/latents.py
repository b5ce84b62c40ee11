"""What is computed once from the pictures and kept: latents and features, both beside the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ..runtime.files import write_whole
from .pictures import Pictures
from .pretrained import pretrained

Progress = Callable[[str, int, int], None]
"""Takes what is being done, how many pictures are done, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Take the progress of long work and show nothing."""


def parts(count: int, what: str, progress: Progress, size: int = 64) -> Iterator[torch.Tensor]:
    """Yield the indices below `count`, `size` at a time, and tell how far the caller is."""
    for part in torch.arange(count).split(size):
        yield part
        progress(what, int(part[-1]) + 1, count)


def remembered(path: Path, sources: list[Path], make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors at `path`, made anew where they were not made from the present bytes of `sources`."""
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    key = digest.hexdigest()
    if path.is_file():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("sources") == key:
                return load_file(path)
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    write_whole(path, save(tensors, {"sources": key}))
    return tensors


@torch.no_grad()
def cached_latents(pictures: Pictures, folder: Path, progress: Progress = silent) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the posterior mean and standard deviation (N, 16, 16, 16) of every picture by `folder/vae`.

    Both lie on the training device; they are kept beside the data, for `folder` may be one that ships with Segue.
    """
    from diffusers import AutoencoderKL

    def encode() -> dict[str, torch.Tensor]:
        vae = pretrained(AutoencoderKL, folder / "vae").eval().to(pictures.device)
        indices = parts(len(pictures.rows), "encoding pictures", progress)
        found = [vae.encode(pictures.on_white(part)).latent_dist for part in indices]
        return {"mean": torch.cat([p.mean for p in found]), "std": torch.cat([p.std for p in found])}

    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = remembered(
        pictures.table.with_name(f"latents-{folder.name}.safetensors"), [weights, pictures.table], encode
    )
    return tensors["mean"].to(pictures.device), tensors["std"].to(pictures.device)
