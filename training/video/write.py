"""What the training of SwiftI2V's stages writes: checkpoints of Wan's pipelines in diffusers' format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.directory import NewDirectory
from ..checkpoint import save_half
from ..pretrained import pretrained

if TYPE_CHECKING:
    from .detail import DetailSpec
    from .motion import MotionSpec

INDEX = {
    "_class_name": "WanImageToVideoPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "detail_transformer": ["diffusers", "WanTransformer3DModel"],
    "detail_vae": ["diffusers", "AutoencoderKLWan"],
    "image_encoder": [None, None],
    "image_processor": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write_motion(transformer: Any, spec: MotionSpec, out: Path) -> None:
    """Write Stage I as a checkpoint of WanImageToVideoPipeline, weights in fp16, whole or not at all.

    An adapter is merged into the weights.
    """
    if spec.rank:
        transformer.fuse_lora()
        transformer.unload_lora()
    settings = {"steps": 20, "guidance": spec.guidance}
    _write(transformer, spec, settings, out)


def write_detail(transformer: Any, spec: DetailSpec, out: Path) -> None:
    """Write Stage II in the same format; its transformer takes the reference as a second half of the channels."""
    settings = {"targets": spec.targets, "before": spec.before, "after": spec.after, "scale": spec.scale}
    _write(transformer, spec, {"steps": 4, "guidance": 1.0, **settings}, out)


def _write(transformer: Any, spec: MotionSpec | DetailSpec, settings: dict[str, Any], out: Path) -> None:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    copy = WanTransformer3DModel.from_config(transformer.config)
    copy.load_state_dict(transformer.state_dict())
    with NewDirectory(out, replace=True) as new:
        save_half(copy, new.path / "transformer")
        save_half(pretrained(AutoencoderKLWan, Path(spec.codec) / "vae"), new.path / "vae")
        encoder = pretrained(UMT5EncoderModel, Path(spec.text) / "text_encoder")
        encoder.half().save_pretrained(new.path / "text_encoder")
        shutil.copytree(Path(spec.text) / "tokenizer", new.path / "tokenizer")
        FlowMatchEulerDiscreteScheduler(shift=spec.shift).save_pretrained(new.path / "scheduler")
        (new.path / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
        table = {"frames": spec.frames, "text_tokens": spec.length, "revision": spec.revision, **settings}
        (new.path / "segue.json").write_text(json.dumps(table, indent=2) + "\n")
        new.commit()
