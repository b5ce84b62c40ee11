"""The profiles of an engine: the free dimensions of each component at the requested sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engines.base import Profile
from ...errors import UsageError
from .families import TOKENIZER, Kind, Stage, family_of, one_by_one, role_of, tokenizer_of
from .limits import MAX_REFERENCE
from .manifest import Manifest, Tokenizer
from .segments import SegmentSpec, count_segments, latent_frames, window_frames

Three = tuple[int, int, int]  # the smallest, the usual and the largest
USUAL = 64  # tokens of a prompt without padding


@dataclass(frozen=True)
class SizeRange:
    """A range of sizes, and the usual size to tune for, each (height, width) in pixels."""

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]

    def __post_init__(self) -> None:
        """Raise UsageError if the three are not in order."""
        for sides in zip(self.smallest, self.usual, self.largest, strict=True):
            if list(sides) != sorted(sides):
                raise UsageError(
                    f"the sizes {self.smallest}, {self.usual}, {self.largest} (height, width) are not in order.",
                    "Name the smallest, the usual and the largest.",
                )


def default_range(content: Manifest) -> SizeRange:
    """Return the range of sizes that the bundle can draw."""
    sizes = content.sizes
    return SizeRange((sizes.minimum,) * 2, sizes.default, (sizes.maximum,) * 2)


def profiles(content: Manifest, ranges: Sequence[SizeRange], guided: bool = False) -> dict[str, tuple[Profile, ...]]:
    """Return for each component one profile for each of `ranges`, without duplicates.

    Pictures and videos are made one at a time, so the batch is 1. Guidance doubles the batch of a denoiser. If the
    bundle has guidance, the batch is 2, and 1 for a request without guidance. If it has none, `guided` makes room for
    a request with guidance. Prompts with lengths of their own come one by one. Raises UsageError for a size that the
    bundle cannot draw.
    """
    for wanted in ranges:
        for size in (wanted.smallest, wanted.usual, wanted.largest):
            _check_size(content, size)
    made = {}
    for name in content.components:
        unique: list[Profile] = []
        for wanted in ranges:
            profile = _profile(content, name, wanted, guided)
            if profile not in unique:
                unique.append(profile)
        made[name] = tuple(unique)
    return made


def _check_size(content: Manifest, size: tuple[int, int]) -> None:
    sizes = content.sizes
    for side in size:
        if side % sizes.multiple or not sizes.minimum <= side <= sizes.maximum:
            raise UsageError(
                f"the bundle {content.name!r} draws sides of {sizes.minimum} to {sizes.maximum} pixels in multiples of "
                f"{sizes.multiple}, not {side}.",
                "Name such a size.",
            )


def dimensions(content: Manifest, component: str, wanted: SizeRange, guided: bool = True) -> dict[str, Three]:
    """Return each base dimension of a component at the smallest, the usual and the largest size.

    The base dimensions are batch, height, width, length, text and, for videos, frames, each in the component's own
    unit; and references, the tokens of reference pictures, if the component takes these. Other dimensions are a
    multiple or a fraction of one of them (`sized`). `guided` is that of `profiles`.
    """
    dims: dict[str, Three] = {"batch": _batch(content, component, guided)}
    for axis, side in enumerate(("height", "width")):
        divisor = _pixels(content, component)
        small, usual, large = (size[axis] // divisor for size in (wanted.smallest, wanted.usual, wanted.largest))
        dims[side] = (small, usual, large)
    if content.video is not None:
        dims["frames"] = _frames(content, component)
    if any("references" in spec.shape for spec in content.components[component].inputs):
        unit = content.latents.factor * content.latents.patch
        one = MAX_REFERENCE // unit**2
        dims["references"] = (0, one, family_of(content).references * one)
    first = content.tokenizers.get(TOKENIZER)
    if first is None:  # a model without a prompt
        return dims
    own = content.tokenizers.get(tokenizer_of(component), first)
    dims["length"] = _tokens(own, role_of(component).kind is Kind.TEXT)
    small, usual, large = (length + content.t5_tokens for length in _tokens(first, False))
    dims["text"] = (small, usual, large)
    return dims


def _tokens(of: Tokenizer, encoder: bool) -> Three:
    """Return how many tokens a prompt has for its text encoder, or for the denoiser."""
    template = of.template
    if template is None or template.padding == "end":
        return (of.length,) * 3
    if template.padding == "none":
        least = min(max(template.tokens, 1), of.length)
        return least, min(least + USUAL, of.length), of.length
    return (of.length + (template.tokens if encoder else 0),) * 3


def _profile(content: Manifest, component: str, wanted: SizeRange, guided: bool) -> Profile:
    threes = dimensions(content, component, wanted, guided)
    levels = [{name: three[level] for name, three in threes.items()} for level in range(3)]
    return {
        spec.name: tuple(tuple(sized(part, dims, component) for part in spec.shape) for dims in levels)  # type: ignore[misc]
        for spec in content.components[component].inputs
    }


def sized(part: int | str, dims: Mapping[str, int], component: str) -> int:
    """Return the size of one dimension: a number, a name of `dims`, or its multiple or fraction (as in caches)."""
    if isinstance(part, int):
        return part
    found = re.fullmatch(r"(\w+?)(?:_(by|over)_(\d+))?", part)
    if found is None or found[1] not in dims:
        raise UsageError(
            f"the graph of {component} has the free dimension {part!r}, whose size Segue does not know.",
            "Export the bundle again with this Segue.",
        )
    size, factor = dims[found[1]], int(found[3] or 1)
    return size // factor if found[2] == "over" else size * factor


def guidance_of(content: Manifest, component: str) -> float | None:
    """Return the bundle's guidance if guidance doubles the batch of `component`, else None."""
    if not role_of(component).guided:
        return None
    sampler: Any = content.sampler if content.video is None else content.video.motion.sampler
    return float(sampler.guidance)


def _batch(content: Manifest, component: str, guided: bool) -> Three:
    guidance = guidance_of(content, component)
    if guidance is None or not content.sampler.guidable or one_by_one(content):
        return (1, 1, 1)
    return (1, 2, 2) if guidance > 1 else (1, 1, 2 if guided else 1)


def _pixels(content: Manifest, component: str) -> int:
    """Return the output pixels of one unit of the component's height and width."""
    video, latent, role = content.video, content.latents.factor, role_of(component)
    encodes = role.kind is Kind.ENCODER
    if video is None or role.stage is Stage.DETAIL:
        return 1 if encodes else latent
    return video.scale * (1 if encodes else video.motion.factor)


def _frames(content: Manifest, component: str) -> Three:
    assert content.video is not None
    video = content.video
    latent = latent_frames(video.frames)
    role, detail = role_of(component), video.detail
    if detail is None:
        return (1, latent, latent)  # a video may be shorter than a window
    if role.kind is not Kind.DENOISER or role.guided:
        return (latent,) * 3
    spec = SegmentSpec(detail.targets, detail.before, detail.after)
    counts = [window_frames(index, latent, spec) for index in range(count_segments(latent, spec))] or [1]
    return min(counts), max(counts), max(counts)
