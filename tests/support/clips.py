"""A directory of little clips: a square that moves right, in three colours; the last one is held out."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from segue.training.data.clips import Clip

COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 60, 220)}


def square(colour: tuple[int, int, int], frames: int) -> np.ndarray:
    """Return a clip (F, 128, 128, 3) uint8 on white."""
    clip = np.full((frames, 128, 128, 3), 255, np.uint8)
    for i in range(frames):
        clip[i, 40:88, 8 * i : 8 * i + 48] = colour
    return clip


def write_clips(folder: Path) -> Path:
    """Write the clips to the directory `folder` and return it."""
    rows = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        frames = 7 + i
        save_file({"frames": square(colour, frames)}, folder / f"{i}.safetensors")
        split = "held-out name" if name == "blue" else "train"
        rows.append(asdict(Clip(str(i), f"{name} square", f"{name} square", split, frames)))
    (folder / "clips.json").write_text(json.dumps({"clips": rows, "credits": []}))
    return folder


def write_parts(folder: Path) -> Path:
    """Write random parts of a tiny video model to `folder`: `vae/`, `text_encoder/`, `tokenizer/`; return it."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    from segue.training.video.codec import CodecSpec, config_of
    from segue.training.video.text import make_tokenizer

    torch.manual_seed(0)
    spec = CodecSpec("", base=4, decoder_base=4, widths=(1, 1, 1, 1), latents=4, crop=32)
    AutoencoderKLWan(**config_of(spec)).save_pretrained(folder / "vae")
    tokenizer = make_tokenizer([f"{colour} square" for colour in COLOURS] * 9, 40, 8)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def write_detail_parts(folder: Path, parts: Path) -> Path:
    """Write `parts` with Stage II's autoencoder in place of Stage I's to the new directory `folder`; return it."""
    from diffusers import AutoencoderKLWan

    from segue.training.video.codec import CodecSpec, config_of

    torch.manual_seed(1)
    shutil.copytree(parts, folder, ignore=shutil.ignore_patterns("vae"))
    spec = CodecSpec("", kind="2.2", base=4, decoder_base=4, widths=(1, 1, 1, 1), latents=6, crop=32)
    AutoencoderKLWan(**config_of(spec)).save_pretrained(folder / "vae")
    return folder


def train_motion(out: Path, clips: Path, parts: Path) -> Path:
    """Write a random Stage I to `out` and return its checkpoint."""
    from segue.training.video.motion import Motion
    from segue.training.video.spec import MotionSpec

    sizes = {"layers": 1, "heads": 2, "head": 12, "feed_forward": 24}
    training = Motion(MotionSpec(str(clips), str(parts), str(parts), frames=17, length=8, **sizes), 0)
    with torch.no_grad():
        for p in training.transformer.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    training.finish(out)
    return out / "checkpoint"


def train_both(folder: Path, clips: Path, parts: Path, detail_parts: Path) -> Path:
    """Write both stages, random, of 25 frames to `folder`: seven latent ones, so two whole segments."""
    from segue.training.video.detail import Detail
    from segue.training.video.motion import Motion
    from segue.training.video.spec import DetailSpec, MotionSpec

    sizes = {"layers": 1, "heads": 2, "head": 12, "feed_forward": 24}
    motion = Motion(MotionSpec(str(clips), str(parts), str(parts), frames=25, length=8, **sizes), 0)
    _disturb(motion.transformer)
    motion.finish(folder / "motion")
    places = (str(clips), str(detail_parts), str(detail_parts), str(folder / "motion/checkpoint"))
    detail = Detail(DetailSpec(*places, frames=25, length=8, **sizes), 0)
    _disturb(detail.transformer)
    detail.finish(folder)
    return folder / "checkpoint"


@torch.no_grad()
def _disturb(network: torch.nn.Module) -> None:
    for p in network.parameters():
        p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
