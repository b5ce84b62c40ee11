"""What a bundle must hold to be rendered: the families sd3 and swifti2v with the sampler flow-match-euler."""

from __future__ import annotations

from ..engines.targets import Target
from ..errors import BundleError
from .manifest import Manifest

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # component -> its tokenizer
SECOND_EXPERT = "transformer_2"
_PICTURE = (*TEXT_ENCODERS, "transformer", "vae_decoder")
_HALVES = ("encoder_first", "encoder_next", "decoder_first", "decoder_next")
_VIDEO = (
    "text_encoder", "transformer", "detail_transformer",
    *(f"{vae}_{half}" for vae in ("vae", "detail_vae") for half in _HALVES),
)  # fmt: skip


def check(content: Manifest, target: Target) -> None:
    """Raise BundleError unless the bundle of this manifest is one that the pipelines render with `target`."""
    samplers = [content.sampler, *([content.video.motion.sampler] if content.video else [])]
    other = [sampler.kind for sampler in samplers if sampler.kind != "flow-match-euler"]
    if content.family not in ("sd3", "swifti2v") or other:
        raise BundleError(
            f"the bundle {content.name!r} is of family {content.family!r} with sampler "
            f"{(other or [content.sampler.kind])[0]!r}; this Segue renders sd3 and swifti2v with flow-match-euler. "
            "Use a newer Segue."
        )
    moving = content.family == "swifti2v"
    if content.video is not None and not moving:
        raise BundleError(f"the bundle {content.name!r} of family sd3 has a table video. Export it again.")
    components: tuple[str, ...] = _VIDEO if moving else _PICTURE
    components += tuple(name for name in (SECOND_EXPERT,) if moving and name in content.components)
    missing = [name for name in components if name not in content.components]
    missing += [
        name for name in (("tokenizer",) if moving else TEXT_ENCODERS.values()) if name not in content.tokenizers
    ]
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


def joint_width(content: Manifest) -> int:
    """Return the width of the transformer's text input; raises BundleError where it has none."""
    for spec in content.components["transformer"].inputs:
        if spec.name == "encoder_hidden_states" and len(spec.shape) == 3 and isinstance(spec.shape[2], int):
            return spec.shape[2]
    raise BundleError(
        f"the transformer of the bundle {content.name!r} has no input encoder_hidden_states "
        "[batch, text, width] of fixed width. Export it again."
    )
