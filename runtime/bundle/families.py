"""The table of families: the content of a bundle of each family, and the role of each component.

Only this module knows families and components by name. A new family of pictures needs a row of `FAMILIES` here, a row
in `runtime/pictures/families.py` (how its prompts are encoded), and a folder in `export/families/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ...engines.targets import Target
from ...errors import BundleError
from .limits import BETAS, FLOW
from .manifest import STEP, Manifest

T5 = "text_encoder_3"
DENOISER, UNET, SECOND_EXPERT = "transformer", "unet", "transformer_2"
DETAIL = "detail_transformer"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
VAE_ENCODER, VAE_DECODER = "vae_encoder", "vae_decoder"
MOTION_VAE, DETAIL_VAE = "vae", "detail_vae"  # a video's autoencoders, of Stage I and Stage II
PREVIEW = "preview_decoder"  # a small decoder for previews, which no final picture needs
TINY = "vae_tiny"  # its folder
LOGVAR = "logvar"  # output of an encoder whose latents are drawn
TIMES = {"mask": "timestep", "first": "timesteps"}  # time input of a video's denoiser, by `Video.given`
GUIDANCE = "guidance"  # input of a denoiser that was distilled with guidance
CLIP = {TEXT_ENCODER: TOKENIZER, "text_encoder_2": "tokenizer_2"}


class Kind(StrEnum):
    """What a component computes."""

    TEXT = "text"
    DENOISER = "denoiser"
    ENCODER = "encoder"
    DECODER = "decoder"
    PREVIEW = "preview"
    OTHER = "other"


class Stage(StrEnum):
    """Which stage of a video a component belongs to. The components of a picture have none."""

    NONE = ""
    MOTION = "motion"
    DETAIL = "detail"


@dataclass(frozen=True)
class Role:
    """The role of one component.

    `expert` numbers the denoisers that share one loop. `half` is "first" or "next" for the two graphs of a streaming
    autoencoder. `step` marks the graph of guidance and Euler step that follows a denoiser. `leaves`: a video's loop
    frees the component as soon as its work is done.
    """

    kind: Kind
    stage: Stage = Stage.NONE
    expert: int = 0
    half: str = ""
    convolutional: bool = False
    step: bool = False
    leaves: bool = False

    @property
    def guided(self) -> bool:
        """Whether guidance doubles the batch of the component (Stage II runs without guidance)."""
        return self.kind is Kind.DENOISER and self.stage is not Stage.DETAIL


_ROLES = {
    TEXT_ENCODER: Role(Kind.TEXT, leaves=True),
    "text_encoder_2": Role(Kind.TEXT),
    T5: Role(Kind.TEXT),
    DENOISER: Role(Kind.DENOISER, Stage.MOTION, leaves=True),
    SECOND_EXPERT: Role(Kind.DENOISER, Stage.MOTION, expert=1, leaves=True),
    UNET: Role(Kind.DENOISER, convolutional=True),
    DETAIL: Role(Kind.DENOISER, Stage.DETAIL),
    VAE_ENCODER: Role(Kind.ENCODER, convolutional=True),
    VAE_DECODER: Role(Kind.DECODER, convolutional=True),
    PREVIEW: Role(Kind.PREVIEW, convolutional=True),
    **{
        f"{vae}_{kind}_{half}": Role(kind, stage, 0, half, True, leaves=leaves and kind is Kind.ENCODER)
        for vae, stage, leaves in ((MOTION_VAE, Stage.MOTION, True), (DETAIL_VAE, Stage.DETAIL, False))
        for kind in (Kind.ENCODER, Kind.DECODER)
        for half in ("first", "next")
    },
}


def role_of(component: str) -> Role:
    """Return the role of the component of that name; `Kind.OTHER` if no family has such a component."""
    role = _ROLES.get(component.removesuffix(STEP), Role(Kind.OTHER))
    return replace(role, step=True) if component.endswith(STEP) else role


@dataclass(frozen=True)
class Family:
    """One family of models.

    A bundle holds all `components`, in the order in which a request uses them; `optional` ones may be absent.
    `tokenizers` names the tokenizer of each text encoder. The `denoiser` gives `output`, what the sampler takes.
    `samplers` are the possible kinds of the manifest's `Sampler`. `grid` gives the levels of flow matching for a
    request without its own: "diffusers" (shifted twice) or "linear" (1 to 1 / steps). `steps` and `guidance` are the
    defaults of a checkpoint that states none. `zero_tokens`: zeros replace an absent T5. `references` is the number of
    reference pictures that a request may give.
    """

    name: str
    components: tuple[str, ...]
    tokenizers: Mapping[str, str]
    denoiser: str = DENOISER
    output: str = "velocity"
    optional: tuple[str, ...] = ()
    samplers: tuple[str, ...] = FLOW
    grid: str = "diffusers"
    steps: int = 28
    guidance: float = 7.0
    moving: bool = False
    zero_tokens: bool = False
    references: int = 0
    drops: tuple[str, ...] = field(default=())  # optional parts of diffusers' pipeline that a bundle may lack

    def present(self, content: Manifest) -> tuple[str, ...]:
        """Return the components that a bundle of this family uses, in order."""
        return tuple(name for name in self.components if name not in self.optional or name in content.components)

    def tokenizers_of(self, content: Manifest) -> tuple[str, ...]:
        """Return the tokenizers of the text encoders that the bundle has."""
        return tuple(self.tokenizers[name] for name in self.present(content) if name in self.tokenizers)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "sd3", (*CLIP, T5, DENOISER, VAE_DECODER), CLIP | {T5: "tokenizer_3"}, optional=(T5,), zero_tokens=True,
            drops=(T5, "tokenizer_3"),
        ),
        Family(
            "longcat-image", (TEXT_ENCODER, DENOISER, VAE_DECODER), {TEXT_ENCODER: TOKENIZER}, grid="linear",
            steps=50, guidance=4.5, drops=("text_processor",),
        ),
        Family(
            "flux2-klein", (TEXT_ENCODER, DENOISER, VAE_DECODER), {TEXT_ENCODER: TOKENIZER}, grid="linear", steps=4,
            guidance=1.0, references=4,
        ),
        Family(
            "z-image", (TEXT_ENCODER, DENOISER, VAE_DECODER), {TEXT_ENCODER: TOKENIZER}, grid="linear", steps=8,
            guidance=0.0,
        ),
        Family(
            "sdxl", (*CLIP, UNET, VAE_DECODER), CLIP, UNET, "noise", samplers=BETAS, steps=30, guidance=5.0,
        ),
        Family("pixel-unet", (UNET,), {}, UNET, "prediction", samplers=BETAS, steps=1, guidance=1.0),
        Family(
            "swifti2v",
            (
                TEXT_ENCODER, f"{MOTION_VAE}_encoder_first", f"{MOTION_VAE}_encoder_next", DENOISER, SECOND_EXPERT,
                f"{MOTION_VAE}_decoder_first", f"{MOTION_VAE}_decoder_next", f"{DETAIL_VAE}_encoder_first",
                f"{DETAIL_VAE}_encoder_next", DETAIL, f"{DETAIL_VAE}_decoder_first", f"{DETAIL_VAE}_decoder_next",
            ),
            {TEXT_ENCODER: TOKENIZER}, optional=(SECOND_EXPERT,), moving=True, guidance=1.0,
        ),
        Family(  # the defaults of both are those of Wan 2.2's repository
            "wan-i2v",
            (
                TEXT_ENCODER, f"{MOTION_VAE}_encoder_first", f"{MOTION_VAE}_encoder_next", DENOISER, SECOND_EXPERT,
                f"{MOTION_VAE}_decoder_first", f"{MOTION_VAE}_decoder_next",
            ),
            {TEXT_ENCODER: TOKENIZER}, optional=(SECOND_EXPERT,), moving=True, steps=40, guidance=3.5,
        ),
        Family(
            "wan-ti2v",
            (
                TEXT_ENCODER, f"{MOTION_VAE}_encoder_first", DENOISER, f"{MOTION_VAE}_decoder_first",
                f"{MOTION_VAE}_decoder_next",
            ),
            {TEXT_ENCODER: TOKENIZER}, moving=True, steps=50, guidance=5.0,
        ),
    )
}  # fmt: skip
UNIGRAM = {
    ("sd3", "tokenizer_3"),
    *((name, TOKENIZER) for name in ("swifti2v", "wan-i2v", "wan-ti2v")),
}  # T5's and UMT5's, whose tables are larger than BPE's


def family_of(content: Manifest) -> Family:
    """Return the family of a bundle that `check` has accepted."""
    return FAMILIES[content.family]


def embeds_guidance(content: Manifest) -> bool:
    """Return whether the denoiser takes guidance as an input, so that no negative prompt is needed."""
    inputs = content.components[family_of(content).denoiser].inputs
    return any(spec.name == GUIDANCE for spec in inputs)


def takes_picture(content: Manifest) -> bool:
    """Return whether requests may begin with a picture: the bundle has its encoder, or its latents are pixels."""
    return VAE_ENCODER in content.components or VAE_DECODER not in family_of(content).components


def draws_posterior(content: Manifest) -> bool:
    """Return whether the encoder gives a variance, so that a picture's latents are drawn."""
    encoder = content.components.get(VAE_ENCODER)
    return encoder is not None and any(spec.name == LOGVAR for spec in encoder.outputs)


def one_by_one(content: Manifest) -> bool:
    """Return whether prompts have lengths of their own, so that each prompt of a guided request takes its own call."""
    return any(t.template is not None and t.template.padding == "none" for t in content.tokenizers.values())


def tokenizer_of(component: str) -> str:
    """Return the name of a text encoder's tokenizer."""
    return component.replace(TEXT_ENCODER, TOKENIZER)


def check(content: Manifest, target: Target) -> None:
    """Raise BundleError unless the pipelines can render the bundle of this manifest with `target`."""
    family = FAMILIES.get(content.family)
    samplers = [content.sampler, *([content.video.motion.sampler] if content.video else [])]
    other = [s.kind for s in samplers if family is None or s.kind not in family.samplers]
    other += [s.kind for s in samplers if (s.noise is None) == (s.kind in BETAS)]
    if family is None or other:
        raise BundleError(
            f"the bundle {content.name!r} is of family {content.family!r} with sampler "
            f"{(other or [content.sampler.kind])[0]!r}; this Segue renders {_known()}.",
            "Use a newer Segue.",
        )
    if content.video is not None and not family.moving:
        raise BundleError(
            f"the bundle {content.name!r} of the picture family {content.family} has a table for videos.",
            "Export it again.",
        )
    components = family.present(content)
    missing = [name for name in components if name not in content.components]
    missing += [name for name in family.tokenizers_of(content) if name not in content.tokenizers]
    if family.moving and content.video is None:
        missing.append("video")
    elif content.video is not None and content.video.detail is None and DETAIL in components:
        missing.append("the segments of Stage II in video")
    if missing:
        raise BundleError(f"the bundle {content.name!r} lacks {', '.join(missing)}.", "Export it again.")
    if content.video is not None:
        _check_given(content)
    if target.device == "cpu" and (narrow := in_bf16(content)):
        raise BundleError(
            f"{narrow[0]} of the bundle {content.name!r} is in bf16, which ONNX Runtime cannot run on a processor.",
            "Export it again with --precision fp16 or fp32.",
        )
    if not family.tokenizers and (content.latents.channels, content.latents.factor) != (3, 1):
        raise BundleError(f"the bundle {content.name!r} has no decoder, so its latents must be pixels of 3 channels.")
    if not family.moving and family.tokenizers:
        joint_width(content)


def _check_given(content: Manifest) -> None:
    """Raise BundleError if the denoiser of a video does not take the picture as the manifest says."""
    assert content.video is not None
    inputs = {spec.name for spec in content.components[family_of(content).denoiser].inputs}
    needed = TIMES[content.video.given]
    stages = content.video.detail is not None and DETAIL not in family_of(content).components
    if needed not in inputs or stages:
        raise BundleError(
            f"the bundle {content.name!r} of family {content.family} "
            f"{'has segments of a Stage II' if stages else f'has a denoiser without the input {needed}'}.",
            "Export it again.",
        )


def in_bf16(content: Manifest) -> list[str]:
    """Return the components that a bundle uses in bf16, which ONNX Runtime cannot run on a processor."""
    used = FAMILIES[content.family].present(content)
    return [name for name, part in content.components.items() if part.precision == "bf16" and name in used]


def joint_width(content: Manifest) -> int:
    """Return the width of the denoiser's text input; raises BundleError if it has none."""
    name = family_of(content).denoiser
    for spec in content.components[name].inputs:
        if spec.name == "encoder_hidden_states" and len(spec.shape) == 3 and isinstance(spec.shape[2], int):
            return spec.shape[2]
    raise BundleError(
        f"the {name} of the bundle {content.name!r} has no input encoder_hidden_states [batch, text, width] of fixed "
        "width.",
        "Export it again.",
    )


def _known() -> str:
    return ", ".join(f"{family.name} with {' or '.join(family.samplers)}" for family in FAMILIES.values())


def picked(names: Iterable[str], kind: Kind) -> list[str]:
    """Return the names whose components are of that kind."""
    return [name for name in names if role_of(name).kind is kind]
