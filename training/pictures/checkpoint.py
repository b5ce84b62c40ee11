"""Write the trained teacher as a Stable Diffusion 3 checkpoint in diffusers format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ...runtime.storage.directory import NewDirectory
from ..data import emoji
from ..data.prompts import write_names
from ..loop.networks import pretrained, save_half
from .spec import TeacherSpec


def write_checkpoint(transformer: Any, spec: TeacherSpec, out: Path) -> None:
    """Write an fp16 checkpoint of StableDiffusion3Pipeline without T5, as a whole or not at all."""
    with NewDirectory(out, replace=True) as new:
        _write_parts(transformer, spec, new.path)
        new.commit()


def _write_parts(transformer: Any, spec: TeacherSpec, folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.models import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    copy = SD3Transformer2DModel.from_config(transformer.config)
    copy.load_state_dict(transformer.state_dict())
    save_half(copy, folder / "transformer")
    save_half(pretrained(AutoencoderKL, Path(spec.autoencoder) / "vae"), folder / "vae")
    for suffix in ("", "_2"):
        encoder = pretrained(CLIPTextModelWithProjection, Path(spec.text) / f"text_encoder{suffix}")
        encoder.half().save_pretrained(folder / f"text_encoder{suffix}")
        # `text` may be a bundle with export's tokenizer.json. Export makes that file again.
        made = shutil.ignore_patterns("tokenizer.json")
        shutil.copytree(Path(spec.text) / f"tokenizer{suffix}", folder / f"tokenizer{suffix}", ignore=made)
    FlowMatchEulerDiscreteScheduler(shift=spec.shift).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    settings = {
        "t5_tokens": 0,
        "steps": 28,
        "guidance": spec.guidance,
        "source": "segue: training/recipes/emoji-teacher.toml",
        "revision": spec.revision,
        "licence": "Apache-2.0 (weights); pictures: MIT, Apache-2.0, CC-BY-4.0",
        "credits": emoji.credits(Path(spec.data)),
        "maximum_size": 256,
        "trained": [[emoji.SIZE, emoji.SIZE]],
    }
    write_names(emoji.load_rows(Path(spec.data)), folder)
    (folder / "segue.json").write_text(json.dumps(settings, indent=2) + "\n")
