"""`bundle.json` as frozen dataclasses: the whole contract between export and runtime.

A bundle is a diffusers checkpoint directory, file for file under its own names, plus one ONNX graph for each component
beside the weights that it points into, `tokenizer.json` files and `bundle.json`. Because the checkpoint's files keep
their names, a bundle is itself loadable by diffusers, and unpacking is copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engines.base import TensorSpec
from .polynomial import CostModel, Footprint, Polynomial

SCHEMA = 1
FILE_NAME = "bundle.json"
MAX_BYTES = 16 * 2**20  # bundle.json itself
STEP = "_step"  # what the name of the graph of guidance and Euler step has behind its denoiser's


@dataclass(frozen=True)
class File:
    """One file of the bundle. `origin` says whether it belongs to the checkpoint (and so to `segue unpack`)."""

    sha256: str
    bytes: int
    origin: bool


@dataclass(frozen=True)
class Part:
    """A piece of a component's graph: the file, and the names of what it takes, inputs or what earlier parts made.

    `bytes` are those of its weights; `loading` and `loaded` are as in `Footprint`, 0 where they were not measured, and
    so is `working`, what later parts want of earlier ones included, None where it was not.
    """

    graph: str
    inputs: tuple[str, ...]
    bytes: int
    loading: int
    loaded: int
    working: Polynomial | None = None


@dataclass(frozen=True)
class Component:
    """One graph: its file, the weight files that its initialisers point into, its precision and its signature."""

    graph: str
    weights: tuple[str, ...]
    precision: str  # "fp32", "fp16", "bf16", or of the large matrices "int8", "w8a8" or "fp8"
    parameters: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: CostModel | None = None  # bundles of before it was counted have none
    footprint: Footprint | None = None  # where it was measured
    parts: tuple[Part, ...] = ()  # the same graph in pieces, to be run one after another

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return the files of the graph, whole and in pieces."""
        return (self.graph, *(part.graph for part in self.parts))


@dataclass(frozen=True)
class Template:
    """Texts that a prompt is encoded between; what stands in quotation marks goes in character by character.

    `tokens` is how many the two texts have together.
    """

    before: str
    after: str
    tokens: int = 0


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizers file, the length in tokens that prompts are padded or cut to, and the token id of the padding.

    With a `template` the length is that of the prompt alone, which has no begin and end token of its own.
    """

    file: str
    length: int
    pad_id: int
    template: Template | None = None


@dataclass(frozen=True)
class TokenShift:
    """A shift exp(mu) that grows with the picture: mu is `mu[0]` at `tokens[0]` tokens, `mu[1]` at `tokens[1]`."""

    tokens: tuple[int, int]
    mu: tuple[float, float]


@dataclass(frozen=True)
class NoisePrediction:
    """How a network that predicts noise was trained and is sampled, see `sampler.exploding_schedule`."""

    betas: tuple[float, float]
    spacing: str  # "trailing", "leading" or "linspace"
    offset: int


@dataclass(frozen=True)
class Sampler:
    """Euler steps: the static shift of the noise levels, and the defaults of a request.

    `token_shift` stands in place of the shift; `noise` is there for the kind "euler" alone.
    """

    kind: str  # "flow-match-euler", or "euler" of a network that predicts noise
    shift: float
    train_timesteps: int  # the network's time input is sigma times this
    steps: int
    guidance: float
    sigmas: tuple[float, ...] = ()  # levels of a few-step student, before the shift; empty: diffusers' default grid
    token_shift: TokenShift | None = None
    noise: NoisePrediction | None = None


@dataclass(frozen=True)
class Latents:
    """Latent geometry: channels, pixels for each latent, transformer patch, and x = z / scaling + shift for the VAE."""

    channels: int
    factor: int
    patch: int
    scaling: float
    shift: float


@dataclass(frozen=True)
class Sizes:
    """Picture sizes in pixels: default (height, width) and the range of either side."""

    default: tuple[int, int]
    minimum: int
    maximum: int
    multiple: int


@dataclass(frozen=True)
class Motion:
    """Stage I of a video: its latents, normalised as (x - mean) / std a channel, and how it is sampled."""

    channels: int
    factor: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampler: Sampler


@dataclass(frozen=True)
class Video:
    """What makes a bundle draw videos (SwiftI2V); the manifest's own sampler and latents are then Stage II's.

    `frames` video frames are a window, the length that Stage I is made for; its sides are those of the video divided by
    `scale`. `targets`, `before` and `after` are a segment's, see `segments.SegmentSpec`. `mean` and `std` normalise the
    latents of Stage II.
    """

    frames: int
    fps: float
    scale: int
    targets: int
    before: int
    after: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    motion: Motion


@dataclass(frozen=True)
class Parity:
    """One comparison of a component in ONNX Runtime with PyTorch, on fresh random inputs of the shapes named.

    What was quantized is compared with the same weights in fp32, in ONNX Runtime; the note says on which inputs.
    """

    component: str
    shapes: dict[str, tuple[int, ...]]
    relative_l2: float | None
    maximum: float | None
    gate: float | None
    note: str = ""  # "not checked: memory", "checked through its fp32 twin", "against its weights in fp32", or empty


@dataclass(frozen=True)
class Fidelity:
    """What a bundle draws beside the same computed in fp32, from the same noise, on the processor.

    `against` is "the checkpoint in fp32" for what export wrote, and for a quantized bundle the sha256 of the one that
    it was made from, followed by " in fp32": that one's weights, as they are, computed in fp32. `psnr` in dB over all
    pixels of `pictures` pictures or clips; a bundle below `gate` is not made. `source` is what the bundle that a
    quantized one was made from says of itself.
    """

    against: str
    pictures: int
    psnr: float
    gate: float
    source: Fidelity | None = None


@dataclass(frozen=True)
class Merged:
    """A LoRA file that was merged at export: its name, its sha256, and the factor."""

    file: str
    sha256: str
    factor: float


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from, under which licence, what exported them, and what was merged into them."""

    source: str
    revision: str
    licence: str
    credits: tuple[str, ...]
    exporter: dict[str, str]  # package name -> version
    merged: tuple[Merged, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json."""

    schema: int
    name: str
    family: str  # "sd3", "longcat-image", "sdxl" or "swifti2v"
    components: dict[str, Component]
    tokenizers: dict[str, Tokenizer]
    sampler: Sampler
    latents: Latents
    sizes: Sizes
    t5_tokens: int  # zero tokens that stand for the absent T5 (SD3 without T5: 256; the emoji miniature: 0)
    provenance: Provenance
    files: dict[str, File]
    parity: tuple[Parity, ...] = field(default=())
    video: Video | None = None
    zero_negative: bool = False  # an empty negative text is zeros in place of the encoders' states (SDXL)
    fidelity: Fidelity | None = None
    islands: dict[str, str] = field(default_factory=dict)  # folder kept in fp32 in a bundle of fp16 -> why
    engines: dict[str, str] = field(default_factory=dict)  # directory below engines/ -> sha256 of its engine.json


def step_of(denoiser: str) -> str:
    """Return the name of the component that does the Euler step after a call of `denoiser`."""
    return f"{denoiser}{STEP}"
