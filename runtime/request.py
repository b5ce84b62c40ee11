"""What a caller asks for, and the checks and defaults that turn it into work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .bundle.limits import MAX_COUNT, MAX_STEPS, MAX_TEXT
from .bundle.manifest import Manifest, Sizes
from .sampling import noise
from .sampling import schedule as sampler


@dataclass(frozen=True, eq=False)
class Request:
    """A request for pictures; what is None takes the bundle's default.

    `prompt`: one text, or several for as many pictures with the same noise; may be empty. `negative`: what guidance
    leads away from. `seed`: 0 to 2**64 - 1. `steps`: network evaluations a picture, from 1. `guidance`:
    classifier-free guidance scale, 0 or more; up to 1 it is off. `size`: (height, width) in pixels, or one number for
    both. `count`: pictures a prompt, each with its own noise: picture i of a seed is the same whatever `count` is.
    `sigmas`: noise levels instead of the default grid, falling within (0, 1], without the final 0; they set the number
    of steps. `latents`: the initial latents, float32 [pictures, channels, height / factor, width / factor], instead of
    noise of the seed. `noise`: "philox", the same bits everywhere, or "torch", the values of torch's CPU generator,
    which is drawn as one block for all pictures of the request, as diffusers does.
    """

    prompt: str | Sequence[str]
    negative: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | tuple[int, int] | None = None
    count: int = 1
    sigmas: Sequence[float] | None = None
    latents: np.ndarray | None = None
    noise: str = "philox"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request with every default filled in and every value checked against a bundle; picture i shows `prompts[i]`."""

    prompts: tuple[str, ...]
    negative: str
    seed: int
    guidance: float
    height: int
    width: int
    count: int  # pictures a prompt
    sigmas: tuple[float, ...] | None  # the caller's own levels, before the shift
    schedule: sampler.Schedule
    shape: tuple[int, int, int]  # of one picture's latents: channels, height / factor, width / factor
    block: np.ndarray | None  # the initial latents of all pictures, where they come as one block
    noise: str  # "philox", "torch" or "given"

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs, which doubles the network's batch."""
        return self.guidance > 1

    def initial(self, index: int) -> np.ndarray:
        """Return the initial latents of picture `index`, float32 [1, channels, height / factor, width / factor]."""
        if self.block is not None:
            return self.block[index : index + 1]
        return noise.philox_normal(self.shape, self.seed, image=index % self.count)[None]


def prepare(request: Request, manifest: Manifest) -> Prepared:
    """Return `request` ready for the bundle of `manifest`; raises UsageError for whatever cannot be met."""
    if not isinstance(request, Request):
        raise UsageError(
            f"{str(request)[:80]!r} is no request. Give segue.Request(…), or call generate with the prompt."
        )
    texts = tuple(request.prompt) if isinstance(request.prompt, list | tuple) else (request.prompt,)
    if not texts or not all(isinstance(text, str) for text in (*texts, request.negative)):
        raise UsageError(
            f"prompt = {request.prompt!r}, negative = {request.negative!r}: texts are needed. "
            "Give one text, or a list with at least one (the empty text is allowed)."
        )
    for text in (*texts, request.negative):
        check_text(text)
    count = _whole("count", request.count, 1, MAX_COUNT // len(texts))
    seed = noise.check_seed(request.seed)
    guidance = manifest.sampler.guidance if request.guidance is None else request.guidance
    if not _is_number(guidance) or not math.isfinite(guidance) or guidance < 0:
        raise UsageError(f"guidance = {guidance!r} is no number from 0 up. Try {manifest.sampler.guidance:g}.")
    height, width = check_size(request.size, manifest.sizes)
    shape = (
        manifest.latents.channels,
        height // manifest.latents.factor,
        width // manifest.latents.factor,
    )
    schedule = _schedule(request, manifest, height, width)
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
        block=_block(request, (len(texts) * count, *shape), seed),
        noise=request.noise if request.latents is None else "given",
    )


def check_text(text: object) -> None:
    """Raise UsageError for what is no text, a text that is too long, and one that is no Unicode."""
    if not isinstance(text, str):
        raise UsageError(f"the text {text!r} is none. Give a text; the empty one is allowed.")
    if len(text) > MAX_TEXT or not _is_unicode(text):
        raise UsageError(
            f"the text {text[:40]!r}… has {len(text)} characters, above {MAX_TEXT}, or some that are no Unicode. "
            "Give a shorter, plain text."
        )


def check_size(size: int | tuple[int, int] | None, sizes: Sizes) -> tuple[int, int]:
    """Return `size` as (height, width) in pixels; raises UsageError, naming the nearest size that is possible."""
    if size is None:
        return sizes.default
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(_is_whole(side) for side in sides):
        raise UsageError(f"size = {size!r} is neither a number of pixels nor (height, width). Try {sizes.default}.")
    nearest = tuple(
        min(max(sizes.multiple * ((2 * side + sizes.multiple) // (2 * sizes.multiple)), sizes.minimum), sizes.maximum)
        for side in sides
    )
    if nearest != sides:
        raise UsageError(
            f"the size {sides[1]}x{sides[0]} (width x height) is not possible: both sides must be multiples of "
            f"{sizes.multiple} from {sizes.minimum} to {sizes.maximum}. Try {nearest[1]}x{nearest[0]}, which a "
            f"program writes as size = ({nearest[0]}, {nearest[1]})."
        )
    return int(sides[0]), int(sides[1])


def _schedule(request: Request, manifest: Manifest, height: int, width: int) -> sampler.Schedule:
    spec = manifest.sampler
    steps = _whole("steps", spec.steps if request.steps is None else request.steps, 1, MAX_STEPS)
    if spec.noise is not None:
        if request.sigmas is not None:
            raise UsageError(
                f"sigmas = {request.sigmas!r}: the bundle {manifest.name!r} predicts noise, and its levels follow from "
                "the number of steps. Give steps alone."
            )
        return sampler.exploding_schedule(
            steps, spec.noise.betas, spec.train_timesteps, spec.noise.spacing, spec.noise.offset
        )
    shift = spec.shift
    if spec.token_shift is not None:
        unit = manifest.latents.factor * manifest.latents.patch
        tokens = (height // unit) * (width // unit)
        shift = sampler.token_shift(tokens, spec.token_shift.tokens, spec.token_shift.mu)
    if request.sigmas is None and spec.sigmas and request.steps in (None, spec.steps):
        return sampler.custom_schedule(spec.sigmas, shift, spec.train_timesteps)
    if request.sigmas is None and manifest.family == "longcat-image":  # whose pipeline names levels of its own
        return sampler.custom_schedule(np.linspace(1, 1 / steps, steps), shift, spec.train_timesteps)  # type: ignore[arg-type]
    if request.sigmas is None:
        return sampler.default_schedule(steps, shift, spec.train_timesteps)
    schedule = sampler.custom_schedule(request.sigmas, shift, spec.train_timesteps)
    if request.steps not in (None, schedule.steps):
        raise UsageError(f"steps = {request.steps}, but {schedule.steps} sigmas are given. Leave steps out.")
    _whole("the number of sigmas", schedule.steps, 1, MAX_STEPS)
    return schedule


def _block(request: Request, shape: tuple[int, ...], seed: int) -> np.ndarray | None:
    if request.latents is not None:
        given = np.asarray(request.latents)
        if given.shape != shape or given.dtype.kind != "f" or not np.isfinite(given).all():
            raise UsageError(
                f"latents of shape {list(given.shape)} and type {given.dtype} do not fit (or are not finite). "
                f"Give finite float32 of shape {list(shape)}."
            )
        return given.astype(np.float32)
    if request.noise not in noise.KINDS:
        raise UsageError(f"noise = {request.noise!r} is unknown. Choose one of: {', '.join(noise.KINDS)}.")
    return noise.torch_normal(shape, seed) if request.noise == "torch" else None


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not _is_whole(value) or not low <= value <= high:  # type: ignore[operator]
        raise UsageError(f"{name} = {value!r} is no whole number from {low} to {high}. Choose one in that range.")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, as the command line passes on bytes that are no UTF-8
        return False
    return True


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
