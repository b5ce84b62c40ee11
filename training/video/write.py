"""Write SwiftI2V's trained stages: a checkpoint of Wan's pipeline, with Stage II's parts beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ...errors import TrainingError
from ...runtime.storage.directory import NewDirectory
from ..data import clips
from ..data.prompts import write_names
from ..loop.networks import pretrained, save_half
from .spec import DetailSpec, MotionSpec

INDEX = {
    "_class_name": "WanImageToVideoPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "image_encoder": [None, None],
    "image_processor": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
DETAIL = {
    "detail_transformer": ["diffusers", "WanTransformer3DModel"],
    "detail_vae": ["diffusers", "AutoencoderKLWan"],
}


def write_motion(transformer: Any, spec: MotionSpec, out: Path) -> None:
    """Write Stage I as an fp16 checkpoint of WanImageToVideoPipeline, as a whole or not at all.

    Merges an adapter into the weights.
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5EncoderModel

    if spec.rank:
        transformer.fuse_lora()
        transformer.unload_lora()
    with NewDirectory(out, replace=True) as new:
        _save_transformer(transformer, new.path / "transformer")
        save_half(pretrained(AutoencoderKLWan, Path(spec.codec) / "vae"), new.path / "vae")
        encoder = pretrained(UMT5EncoderModel, Path(spec.text) / "text_encoder")
        encoder.half().save_pretrained(new.path / "text_encoder")
        shutil.copytree(Path(spec.text) / "tokenizer", new.path / "tokenizer")
        FlowMatchEulerDiscreteScheduler(shift=spec.shift).save_pretrained(new.path / "scheduler")
        video = {
            "frames": spec.frames, "scale": spec.scale, "text_tokens": spec.length, "motion_steps": 20,
            "motion_guidance": spec.guidance,
        }  # fmt: skip
        _write_json(new.path / "model_index.json", INDEX)
        origin = {
            "source": "segue: training/recipes/emoji-motion.toml", "revision": spec.revision,
            "licence": "Apache-2.0 (weights); clips: MIT", "credits": clips.credits(Path(spec.data)),
        }  # fmt: skip
        write_names(clips.load(Path(spec.data)), new.path)
        _write_json(new.path / "segue.json", origin | {"video": video})
        new.commit()


def write_detail(transformer: Any, spec: DetailSpec, size: tuple[int, int], fps: float, out: Path) -> None:
    """Write both stages as a checkpoint for `segue export`: Stage I's, with Stage II's two parts beside it.

    Stage II's transformer takes the reference as a second half of the channels. `size` is the default (height, width).
    """
    motion = Path(spec.motion)
    index, settings = (json.loads((motion / name).read_text()) for name in ("model_index.json", "segue.json"))
    settings["video"] |= {
        "size": list(size), "fps": fps, "scale": spec.scale, "targets": spec.targets, "before": spec.before,
        "after": spec.after,
    }  # fmt: skip
    with NewDirectory(out, replace=True) as new:
        shutil.copytree(motion, new.path, dirs_exist_ok=True)
        _save_transformer(transformer, new.path / "detail_transformer")
        save_half(_detail_vae(spec), new.path / "detail_vae")
        _write_json(new.path / "model_index.json", index | DETAIL)
        sampled = {"steps": 4, "guidance": 1.0, "revision": spec.revision, "trained": [list(size)]}
        _write_json(new.path / "segue.json", settings | sampled)
        new.commit()


def _detail_vae(spec: DetailSpec) -> Any:
    from diffusers import AutoencoderKLWan

    trained = pretrained(AutoencoderKLWan, Path(spec.codec) / "vae")
    if not spec.decoder:
        return trained
    other = pretrained(AutoencoderKLWan, Path(spec.decoder) / "vae")
    mine, its = (
        {name: w for name, w in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
        for vae in (trained, other)
    )
    if mine.keys() != its.keys() or not all(torch.equal(mine[name], its[name]) for name in mine):
        raise TrainingError(
            f"the encoder of {spec.decoder} differs from the encoder of {spec.codec}, which Stage II learned on. "
            "Name a decoder trained with a frozen encoder (noise above 0 in [codec])."
        )
    return other


def _save_transformer(transformer: Any, folder: Path) -> None:
    from diffusers import WanTransformer3DModel

    copy = WanTransformer3DModel.from_config(transformer.config)
    copy.load_state_dict(transformer.state_dict())
    save_half(copy, folder)


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n")
