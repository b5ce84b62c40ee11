"""What a bundle must hold to be rendered."""

from __future__ import annotations

from ..engines.targets import Target
from ..errors import BundleError
from .manifest import Manifest
from .pictures import FAMILIES, T5, joint_width

SECOND_EXPERT = "transformer_2"
_HALVES = ("encoder_first", "encoder_next", "decoder_first", "decoder_next")
_VIDEO = (
    "text_encoder", "transformer", "detail_transformer",
    *(f"{vae}_{half}" for vae in ("vae", "detail_vae") for half in _HALVES),
)  # fmt: skip
_VIDEO_FAMILY = "swifti2v"


def check(content: Manifest, target: Target) -> None:
    """Raise BundleError unless the bundle of this manifest is one that the pipelines render with `target`."""
    samplers = [content.sampler, *([content.video.motion.sampler] if content.video else [])]
    kind = "euler" if content.family == "sdxl" else "flow-match-euler"
    other = [
        sampler.kind for sampler in samplers if sampler.kind != kind or (sampler.noise is None) == (kind == "euler")
    ]
    known = (*FAMILIES, _VIDEO_FAMILY)
    if content.family not in known or other:
        raise BundleError(
            f"the bundle {content.name!r} is of family {content.family!r} with sampler "
            f"{(other or [content.sampler.kind])[0]!r}; this Segue renders {', '.join(known)}, sdxl with euler and the "
            "others with flow-match-euler. Use a newer Segue."
        )
    moving = content.family == _VIDEO_FAMILY
    if content.video is not None and not moving:
        raise BundleError(f"the bundle {content.name!r} of family {content.family} has a table video. Export it again.")
    components: tuple[str, ...] = _VIDEO if moving else FAMILIES[content.family].components
    components += tuple(name for name in (SECOND_EXPERT,) if moving and name in content.components)
    tokenizers = ("tokenizer",) if moving else FAMILIES[content.family].tokenizers.values()
    if content.family == "sd3" and T5 in content.components:
        components, tokenizers = (*components, T5), (*tokenizers, "tokenizer_3")
    missing = [name for name in components if name not in content.components]
    missing += [name for name in tokenizers if name not in content.tokenizers]
    if moving and content.video is None:
        missing.append("video")
    if missing:
        raise BundleError(f"the bundle {content.name!r} lacks {', '.join(missing)}. Export it again.")
    for name in components:
        if content.components[name].precision == "bf16" and target.device == "cpu":
            raise BundleError(
                f"{name} of the bundle {content.name!r} is in bf16, which ONNX Runtime's CPU cannot run. "
                "Export it again with --precision fp16 or fp32."
            )
    if not moving:
        joint_width(content)
