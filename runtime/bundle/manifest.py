"""`bundle.json` as frozen dataclasses: the whole contract between export and runtime.

A bundle is a diffusers checkpoint directory plus one ONNX graph for each component, `tokenizer.json` files and
`bundle.json`. A graph points into the weights beside it. The checkpoint's files keep their names, so diffusers can load
a bundle, and unpacking is copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engines.base import TensorSpec
from .polynomial import CostModel, Footprint, Polynomial
from .records import Fidelity as Fidelity
from .records import Merged as Merged
from .records import Parity as Parity
from .records import Provenance as Provenance

SCHEMA = 1
FILE_NAME = "bundle.json"
MAX_BYTES = 16 * 2**20  # bundle.json itself
STEP = "_step"  # suffix of the graph of guidance and Euler step, behind its denoiser's name


@dataclass(frozen=True)
class File:
    """One file of the bundle. `origin`: it belongs to the checkpoint, and `segue unpack` copies it."""

    sha256: str
    bytes: int
    origin: bool


@dataclass(frozen=True)
class Part:
    """A part of a component's graph: the file, and the names of its inputs, which may be outputs of earlier parts.

    `bytes` is the size of its weights. `loading`, `loaded` and `working` are as in `Footprint`; 0, 0 and None mean not
    measured. `working` includes the outputs of earlier parts that later parts need.
    """

    graph: str
    inputs: tuple[str, ...]
    bytes: int
    loading: int
    loaded: int
    working: Polynomial | None = None


@dataclass(frozen=True)
class Component:
    """One graph: its file, the weight files of its initialisers, its precision and its signature."""

    graph: str
    weights: tuple[str, ...]
    precision: str  # "fp32", "fp16", "bf16"; or "int8", "w8a8", "fp8" for the large matrices
    parameters: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: CostModel | None = None  # None in older bundles
    footprint: Footprint | None = None  # None if it was not measured
    parts: tuple[Part, ...] = ()  # the same graph in parts that run one after another
    weight_bytes: int = 0  # what the graph reads of its weight files; 0: all that they hold

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return the files of the whole graph and of its parts."""
        return (self.graph, *(part.graph for part in self.parts))


@dataclass(frozen=True)
class Template:
    """The texts before and after a prompt. With `quotations` quoted text is encoded character by character.

    `tokens` is the number of tokens of both texts together. `padding` says where it stands: behind the prompt
    ("prompt"), behind everything ("end"), or nowhere ("none"). With "prompt" the tokenizer's `length` bounds the prompt
    alone. Otherwise it bounds everything, and a long prompt also loses the text after.
    """

    before: str
    after: str
    tokens: int = 0
    padding: str = "prompt"
    quotations: bool = True


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizers file, the length in tokens of a padded or cut prompt, and the token id of the padding.

    With a `template` there is no begin or end token, and the template says what the length bounds.
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
class StepShift:
    """A shift exp(mu) that depends on the tokens and on the steps, as in FLUX.2.

    At `steps[i]` steps mu is `slopes[i]` * tokens + `offsets[i]`; other numbers of steps lie on the line through both.
    Above `most` tokens the second formula holds for any number of steps.
    """

    steps: tuple[int, int]
    slopes: tuple[float, float]
    offsets: tuple[float, float]
    most: int


@dataclass(frozen=True)
class NoisePrediction:
    """Training and sampling of a network that was trained on a table of betas, see `sampling/samplers.py`.

    `betas` are the ends of the scaled-linear table, and a is the cumulative product of 1 - beta. `timesteps` are those
    of a few-step student, as many as its steps. The last three fields belong to the samplers "lcm" and "tcd".
    """

    betas: tuple[float, float]
    spacing: str  # "trailing", "leading" (moved by `offset`) or "linspace"
    offset: int
    prediction: str = "epsilon"  # or "sample" or "v_prediction", see `recurrence.estimate`
    timesteps: tuple[int, ...] = ()
    last: str = "zero"  # the level of the last step: 0; or "first", that of the first training timestep
    original_steps: int = 50  # timesteps at which a consistency model was distilled
    timestep_scaling: float = 10.0
    eta: float = 0.0


@dataclass(frozen=True)
class Sampler:
    """The steps: the static shift of the noise levels, and the defaults of a request.

    `token_shift` or `step_shift` replaces the shift. The kinds of `sampling/samplers.py` have `noise`; those of flow
    matching do not. A network that is not `guidable` was distilled without guidance, and takes none.
    """

    kind: str  # "flow-match-euler", "flow-match-renoised", or a row of `sampling/samplers.py`
    shift: float
    train_timesteps: int  # the network's time input is sigma times this
    steps: int
    guidance: float
    sigmas: tuple[float, ...] = ()  # levels of a few-step student before the shift; empty: diffusers' default grid
    token_shift: TokenShift | None = None
    noise: NoisePrediction | None = None
    step_shift: StepShift | None = None
    guidable: bool = True
    grid: str = ""  # levels of a video without `sigmas` (`sampling/motion.py`); empty: evenly spaced


@dataclass(frozen=True)
class Latents:
    """Latent geometry: channels, pixels for each latent, transformer patch, and x = z / scaling + shift for the VAE."""

    channels: int
    factor: int
    patch: int
    scaling: float
    shift: float


@dataclass(frozen=True)
class LinearMap:
    """A preview without a decoder: each latent pixel gives one RGB pixel in [-1, 1].

    It is `bias` + the sum over channels of `factors[channel]` times the latent as the denoiser gives it. Export fits it
    to the bundle's decoder.
    """

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


@dataclass(frozen=True)
class Sizes:
    """Picture sizes in pixels: default (height, width) and the range of either side.

    `trained` holds each (height, width) that the model was trained at. It is empty if nobody has said so.
    """

    default: tuple[int, int]
    minimum: int
    maximum: int
    multiple: int
    trained: tuple[tuple[int, int], ...] = ()

    @property
    def good(self) -> tuple[tuple[int, int], ...]:
        """Return the sizes to offer: the trained ones, or the default if none is stated."""
        return self.trained or (self.default,)


@dataclass(frozen=True)
class Motion:
    """Stage I of a video: its latents, normalised as (x - mean) / std for each channel, and its sampler.

    The first of two experts works at timesteps from `boundary` x train_timesteps up, the second one below.
    """

    channels: int
    factor: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampler: Sampler
    boundary: float = 0.9


@dataclass(frozen=True)
class Detail:
    """Stage II of a video (SwiftI2V): its segments (`segments.SegmentSpec`), and its latents' mean and deviation."""

    targets: int
    before: int
    after: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Video:
    """The tables of a bundle for videos.

    `frames` video frames are a window, the length that Stage I was trained for; it draws at the video's size divided by
    `scale`. `given` says how Stage I gets the picture: "mask" (more channels: a mask, and the latents of picture and
    grey frames) or "first" (the first latent frame is the picture's, at timestep 0). Without `detail` Stage I is the
    only one, and the manifest's sampler and latents are its own; otherwise they belong to Stage II.
    """

    frames: int
    fps: float
    scale: int
    motion: Motion
    given: str = "mask"
    detail: Detail | None = None  # in bundle.json its fields lie beside those of the video, see `bundle_json`


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json."""

    schema: int
    name: str
    family: str  # a row of `families.FAMILIES`
    components: dict[str, Component]
    tokenizers: dict[str, Tokenizer]
    sampler: Sampler
    latents: Latents
    sizes: Sizes
    t5_tokens: int  # zero tokens in place of an absent T5 (SD3 without T5: 256; the emoji miniature: 0)
    provenance: Provenance
    files: dict[str, File]
    parity: tuple[Parity, ...] = field(default=())
    video: Video | None = None
    zero_negative: bool = False  # an empty negative prompt gives zeros in place of the encoders' states (SDXL)
    fidelity: Fidelity | None = None
    islands: dict[str, str] = field(default_factory=dict)  # folder that stays in fp32 in an fp16 bundle -> reason
    engines: dict[str, str] = field(default_factory=dict)  # directory below engines/ -> sha256 of its engine.json
    prompts: str = ""  # the file with the names that the model can draw (`prompts.read_prompts`), or empty
    preview: LinearMap | None = None  # None in older bundles, for videos, and if the latents are pixels

    def weight_bytes(self, component: str) -> int:
        """Return the bytes of weights that a component reads: its files, or what it takes of a file it shares."""
        spec = self.components[component]
        return spec.weight_bytes or sum(self.files[file].bytes for file in spec.weights)


def step_of(denoiser: str) -> str:
    """Return the name of the component that computes the Euler step after a call of `denoiser`."""
    return f"{denoiser}{STEP}"
