"""What a bundle must hold to be rendered: the family sd3 with the sampler flow-match-euler."""

from __future__ import annotations

from ..errors import BundleError
from .manifest import Manifest

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # component -> its tokenizer
_COMPONENTS = (*TEXT_ENCODERS, "transformer", "vae_decoder")


def check(content: Manifest) -> None:
    """Raise BundleError unless the bundle of this manifest is one that the pipeline renders."""
    if content.family != "sd3" or content.sampler.kind != "flow-match-euler":
        raise BundleError(
            f"the bundle {content.name!r} is of family {content.family!r} with sampler {content.sampler.kind!r}; this "
            "Segue renders sd3 with flow-match-euler. Use a newer Segue."
        )
    missing = [name for name in _COMPONENTS if name not in content.components]
    missing += [name for name in TEXT_ENCODERS.values() if name not in content.tokenizers]
    if missing:
        raise BundleError(f"the bundle {content.name!r} lacks {', '.join(missing)}. Export it again.")
    for name in _COMPONENTS:
        if content.components[name].precision == "bf16":
            raise BundleError(
                f"{name} of the bundle {content.name!r} is in bf16, which ONNX Runtime's CPU cannot run. "
                "Export it again with --precision fp16 or fp32."
            )
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
