"""A request for pictures: its checks and its defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .bundle.families import draws_posterior, embeds_guidance, family_of, takes_picture
from .bundle.limits import MAX_COUNT, MAX_TEXT, NOISES
from .bundle.manifest import Manifest, Sizes
from .input_picture import Start, check_alone, references_of, start_of, strength_of
from .sampling import noise
from .sampling.schedule import Schedule, first_step, schedule_of
from .units import is_whole, whole_number


@dataclass(frozen=True, eq=False)
class Request:
    """A request for pictures; None takes the bundle's default.

    - `prompt`: one string, or a list for several pictures from the same noise. A prompt may be empty.
    - `negative`: what guidance leads away from.
    - `seed`: 0 to 2**64 - 1. None draws one at random; the metadata names it.
    - `steps`: network evaluations per picture, 1 or more.
    - `guidance`: classifier-free guidance scale, 0 or more. Values up to 1 switch it off.
    - `size`: (height, width) in pixels, or one number for both.
    - `count`: pictures per prompt, each with its own noise. Picture i of a seed does not depend on `count`.
    - `sigmas`: noise levels instead of the default grid. They decrease within (0, 1], without the final 0, and set the
      number of steps.
    - `latents`: the initial latents instead of noise, float32 [pictures, channels, height / factor, width / factor].
    - `noise`: "philox" gives the same bits everywhere. "torch" gives the values of torch's CPU generator: one block
      for all pictures of the request, as diffusers draws it.
    - `image`: a picture to begin with, uint8 [height, width, 3] in sRGB. Its middle, cropped to the shape of `size`, is
      noised and drawn anew.
    - `strength`: the share of the steps that then run, above 0 and at most 1. Less keeps more of the picture.
    - `mask`: uint8 [height, width] as `image`. 255 is redrawn, 0 keeps its pixels.
    - `feather`: softens the edge of the mask, in pixels of the result.
    - `references`: pictures to draw from, uint8 [height, width, 3] each, for models that take them.
    """

    prompt: str | Sequence[str]
    negative: str = ""
    seed: int | None = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | tuple[int, int] | None = None
    count: int = 1
    sigmas: Sequence[float] | None = None
    latents: np.ndarray | None = None
    noise: str = "philox"
    image: np.ndarray | None = None
    strength: float | None = None
    mask: np.ndarray | None = None
    feather: int = 0
    references: Sequence[np.ndarray] = ()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request with all defaults, checked for one bundle; picture i shows `prompts[i]`."""

    prompts: tuple[str, ...]
    negative: str
    seed: int
    guidance: float
    height: int
    width: int
    count: int  # pictures per prompt
    sigmas: tuple[float, ...] | None  # the caller's own, before the shift
    schedule: Schedule
    shape: tuple[int, int, int]  # one picture's latents: channels, height / factor, width / factor
    block: np.ndarray | None  # the initial latents of all pictures, if they come as one block
    noise: str  # "philox", "torch" or "given"
    asked: tuple[str, ...]  # the prompts as the caller wrote them; `prompts` may spell their emoji as names
    embedded: bool = False  # whether the network takes guidance as an input
    start: Start | None = None
    references: tuple[np.ndarray, ...] = ()  # uint8 [height, width, 3] each; the one under a mask comes first
    drawn: bool = False  # whether the latents of `start` are drawn from the encoder's posterior

    @property
    def steps(self) -> int:
        """Return the number of steps that run for each picture."""
        return self.schedule.steps - (0 if self.start is None else self.start.step)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs, which doubles the network's batch."""
        return self.guidance > 1 and not self.embedded

    def initial(self, index: int) -> np.ndarray:
        """Return the initial latents of picture `index`, float32 [1, channels, height / factor, width / factor]."""
        if self.block is not None:
            return self.block[index : index + 1]
        return noise.philox_normal(self.shape, self.seed, image=index % self.count)[None]

    def fresh(self, index: int, step: int) -> np.ndarray:
        """Return the noise that step `step` of picture `index` adds, float32 of the shape of `initial`.

        Steps count from the first one that runs. With noise "torch" the generator goes on after the initial latents,
        one block for all pictures, as in diffusers.
        """
        if self.noise == "torch":
            block, one = (len(self.prompts), *self.shape), (1, *self.shape)
            # diffusers also encodes the masked picture, for networks that take it
            masked = self.drawn and self.start is not None and self.start.mask is not None
            earlier = [*([one] if self.drawn else []), block, *([one] if masked else []), *[block] * step]
            return noise.torch_normal(block, self.seed, earlier)[index : index + 1]
        return noise.philox_normal(self.shape, self.seed, image=index % self.count, stream=step + 1)[None]

    def posterior(self) -> np.ndarray:
        """Return the noise that draws the latents of `start` from the encoder's posterior, float32 [1, channels, …]."""
        if self.noise == "torch":
            return noise.torch_normal((1, *self.shape), self.seed)
        return noise.philox_normal(self.shape, self.seed, stream=noise.POSTERIOR)[None]


def prepare(request: Request, manifest: Manifest) -> Prepared:
    """Return `request` checked for the bundle of `manifest`; raises UsageError if the bundle cannot meet it."""
    if not isinstance(request, Request):
        raise UsageError(
            f"a request must be a segue.Request, got {str(request)[:80]!r}. Give segue.Request(…), or call generate "
            "with the prompt."
        )
    texts = tuple(request.prompt) if isinstance(request.prompt, list | tuple) else (request.prompt,)
    if not texts:
        raise UsageError(f"prompt must be a string or a list with at least one, got {request.prompt!r}.")
    for text in texts:
        check_text("prompt", text)
    check_text("negative", request.negative)
    if len(texts) > MAX_COUNT:
        raise UsageError(f"a request has at most {MAX_COUNT} prompts, got {len(texts)}. Send several requests.")
    count = whole_number("count", request.count, 1, MAX_COUNT // len(texts))
    seed = noise.random_seed() if request.seed is None else noise.check_seed(request.seed)
    guidance = manifest.sampler.guidance if request.guidance is None else request.guidance
    if not _is_number(guidance) or not math.isfinite(guidance) or guidance < 0:
        raise UsageError(f"guidance must be a number, 0 or more, got {guidance!r}. Try {manifest.sampler.guidance:g}.")
    if guidance > 1 and not family_of(manifest).tokenizers:
        raise UsageError(f"guidance is {guidance:g}, and {manifest.name} has no prompt to be guided by. Leave it out.")
    if guidance > 1 and not manifest.sampler.guidable:
        raise UsageError(f"guidance is {guidance:g}, and {manifest.name} was distilled without guidance. Leave it out.")
    height, width = check_size(request.size, manifest.sizes)
    shape = (
        manifest.latents.channels,
        height // manifest.latents.factor,
        width // manifest.latents.factor,
    )
    schedule = schedule_of(manifest, request.steps, request.sigmas, height, width)
    start = _start(request, manifest, (height, width), schedule)
    drawn = start is not None and draws_posterior(manifest)
    most = family_of(manifest).references
    masked = start is not None and start.mask is not None
    references = references_of(request.references, most, manifest.sizes.multiple, manifest.name, masked)
    if most and start is not None and masked:
        references = (start.image, *references)  # such a network fills a hole by the picture around it
    return Prepared(
        prompts=tuple(text for text in texts for _ in range(count)),
        negative=request.negative,
        seed=seed,
        guidance=float(guidance),
        height=height,
        width=width,
        count=count,
        sigmas=None if request.sigmas is None else tuple(float(level) for level in request.sigmas),
        schedule=schedule,
        shape=shape,
        block=_block(request, (len(texts) * count, *shape), seed, drawn),
        noise=request.noise if request.latents is None else "given",
        asked=tuple(text for text in texts for _ in range(count)),
        embedded=embeds_guidance(manifest),
        start=start,
        references=references,
        drawn=drawn,
    )


def _start(request: Request, manifest: Manifest, size: tuple[int, int], schedule: Schedule) -> Start | None:
    if request.image is None:
        check_alone(mask=request.mask, strength=request.strength, feather=request.feather or None)
        return None
    if not takes_picture(manifest):
        raise UsageError(
            f"the bundle {manifest.name!r} has no encoder, so it cannot begin with a picture. Export it again."
        )
    own = request.sigmas is not None  # they say where to begin
    strength = 1.0 if own and request.strength is None else strength_of(request.strength, request.mask)
    whole = request.mask is not None and strength == 1 and not own
    step = first_step(schedule, strength)
    return start_of(request.image, request.mask, strength, request.feather, size, step, whole)


def check_text(name: str, text: object) -> None:
    """Raise UsageError unless `text` is a Unicode string of at most MAX_TEXT characters; `name` is its field."""
    if not isinstance(text, str):
        raise UsageError(f"{name} must be a string, got {text!r} (an empty string is allowed).")
    if len(text) > MAX_TEXT:
        raise UsageError(f"{name} must have at most {MAX_TEXT} characters, got {len(text)}. Shorten {text[:40]!r}….")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate: the command line makes them of bytes that are not UTF-8
        raise UsageError(
            f"{name} must be valid Unicode, got the surrogate {text[error.start]!r} in {text[:40]!r}. Remove it."
        ) from None


def check_size(size: int | tuple[int, int] | None, sizes: Sizes) -> tuple[int, int]:
    """Return `size` as (height, width) in pixels; the UsageError for a wrong size names the nearest possible one."""
    if size is None:
        return sizes.default
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(is_whole(side) for side in sides):
        raise UsageError(f"size must be a number of pixels or (height, width), got {size!r}. Try {sizes.default}.")
    nearest = tuple(
        min(max(sizes.multiple * ((2 * side + sizes.multiple) // (2 * sizes.multiple)), sizes.minimum), sizes.maximum)
        for side in sides
    )
    if nearest != sides:
        raise UsageError(
            f"size {sides[1]}x{sides[0]} (width x height) is not possible: both sides must be multiples of "
            f"{sizes.multiple} from {sizes.minimum} to {sizes.maximum}. Try {nearest[1]}x{nearest[0]}."
        )
    return int(sides[0]), int(sides[1])


def _block(request: Request, shape: tuple[int, ...], seed: int, drawn: bool) -> np.ndarray | None:
    if request.latents is not None:
        given = np.asarray(request.latents)
        fits = given.shape == shape and given.dtype.kind == "f"
        if not fits or not np.isfinite(given).all():
            raise UsageError(
                f"latents must be finite float32 of shape {list(shape)}, got {given.dtype} of shape "
                f"{list(given.shape)}{' with NaN or infinity' if fits else ''}. Correct them."
            )
        return given.astype(np.float32)
    if request.noise not in NOISES:
        raise UsageError(f"noise must be one of {', '.join(NOISES)}, got {request.noise!r}.")
    if request.noise != "torch":
        return None
    return noise.torch_normal(shape, seed, [(1, *shape[1:])] if drawn else [])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
