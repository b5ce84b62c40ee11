"""What a model says before it runs: facts about its bundle, and notices.

A notice is one plain line that says why a request is likely to disappoint. Segue still meets the request.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np

from ..engines.base import Closing
from .bundle.families import family_of
from .bundle.manifest import Manifest
from .bundle.prompts import Prompts, nearest, read_prompts
from .bundle.reader import Bundle
from .input_picture import Start
from .request import Prepared
from .videos.request import PreparedAnimation

SHOWN = 3  # prompts that get a line each; more are counted
LONGEST = 60  # characters of a prompt in a line
# Levels of 255 within which the edge is plain and neighbours are equal, and the shares below which a picture is a
# photograph. Of the 10,545 training pictures 6 are below both, and so are skimage's astronaut, coffee, cat and camera
EDGE, EQUAL, PLAIN, FLAT = 12, 2, 0.5, 0.7
CUT = 0.02  # share of a picture that may be cut off without a word


class Notice(UserWarning):
    """A request that runs, and is likely to disappoint; the message says why and what to do."""


class Described(Closing):
    """An opened bundle that tells its name, sizes, steps and names."""

    bundle: Bundle
    target: str

    def __repr__(self) -> str:
        height, width = self.sizes[0]
        what = "pictures" if self.bundle.manifest.video is None else "videos"
        return f"<segue.Model {self.name!r}: {what} of {width}x{height} in {self.steps} steps, {self.target}>"

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.bundle.manifest.name

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes (height, width) in pixels that the model was trained at; other sizes may run, with faults."""
        return self.bundle.manifest.sizes.good

    @property
    def steps(self) -> int:
        """The network calls for a picture, or for a segment of a video, if a request names none."""
        return self.bundle.manifest.sampler.steps

    @cached_property
    def prompts(self) -> Prompts | None:
        """The names that the bundle knows; None if it takes any text. Raises BundleError for a damaged list."""
        return read_prompts(self.bundle)


@contextmanager
def silent() -> Iterator[None]:
    """Ignore notices in the block: for programs that draw to measure, not to look at pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        yield


def notices(content: Manifest, prepared: Prepared | PreparedAnimation, names: Prompts | None) -> tuple[str, ...]:
    """Return one line for each reason why a prepared request is likely to disappoint; `names` is the bundle's list."""
    return tuple(_lines(content, prepared, names))


def _lines(content: Manifest, prepared: Prepared | PreparedAnimation, names: Prompts | None) -> Iterator[str]:
    yield from _size(content, prepared)
    if isinstance(prepared, Prepared):
        yield from _guidance(content, prepared)
        if any(prepared.prompts) and not family_of(content).tokenizers:
            yield f"{content.name} draws without a prompt, so the prompt has no effect."
        if names is not None:
            yield from _prompts(content, dict(zip(prepared.prompts, prepared.asked, strict=True)), names)
        if prepared.start is not None:
            yield from _start(content, prepared, prepared.start, names)
        return
    assert content.video is not None
    if prepared.given is not None:
        yield from _crop(content, prepared.given, (prepared.height, prepared.width), ("the picture", "the video"))
    if prepared.negative and content.video.motion.sampler.guidance <= 1:
        yield f"{content.name} draws without guidance, so the negative prompt has no effect. Leave it out."
    if names is None:
        return
    if prepared.prompt:
        yield from _prompts(content, {prepared.prompt: prepared.asked}, names)
    if prepared.image is not None and not names.photographs and is_photograph(prepared.image):
        yield (
            f"the picture looks like a photograph, but {content.name} was trained without photographs, so the video "
            "falls apart. Use a picture like those that it knows."
        )


def _size(content: Manifest, prepared: Prepared | PreparedAnimation) -> Iterator[str]:
    if (prepared.height, prepared.width) in content.sizes.good:
        return
    good = ", ".join(f"{width}x{height}" for height, width in content.sizes.good)
    asked = f"{prepared.width}x{prepared.height}"
    if content.sizes.trained:
        yield f"{content.name} was trained at {good}, so pictures of {asked} show faults. Use a trained size."
    else:
        yield (
            f"{content.name} is made for {good} and states no other trained size, so pictures of {asked} may show "
            "faults. Use its own size if they do."
        )


def _start(content: Manifest, prepared: Prepared, start: Start, names: Prompts | None) -> Iterator[str]:
    """Yield the lines for a picture to begin with."""
    yield from _crop(content, start.given, (prepared.height, prepared.width), ("the given picture", "the drawn one"))
    if start.mask is not None and not start.mask.any():
        yield "the mask is black, so nothing is redrawn. Make white what is to change."
    elif start.mask is None and start.step == 0 and prepared.sigmas is None:
        run = "1 step runs" if prepared.steps == 1 else f"all {prepared.steps} steps run"
        less = "Use more steps." if prepared.steps == 1 else f"Use at most {1 - 1 / prepared.steps:.2g}."
        yield f"at strength {start.strength:g} {run}, from noise alone, so little of the picture stays. {less}"
    elif prepared.steps == 1 < prepared.schedule.steps:
        yield (
            f"strength {start.strength:g} leaves 1 of {prepared.schedule.steps} steps, so the picture hardly changes. "
            "Raise strength, or steps."
        )
    if names is not None and not names.photographs and is_photograph(start.image.astype(np.float32) / 127.5 - 1):
        yield (
            f"the given picture looks like a photograph, but {content.name} was trained without photographs, so expect "
            "a poor result. Use a picture like those that it knows."
        )


def _crop(content: Manifest, given: tuple[int, int], size: tuple[int, int], what: tuple[str, str]) -> Iterator[str]:
    """Yield a line if a picture, `given` (height, width), loses much by the shape of `size`; `what` names both."""
    height, width = given
    sizes, area = content.sizes, size[0] * size[1]

    def wider(size: tuple[int, int]) -> float:
        return width * size[0] / (height * size[1])

    def lost(size: tuple[int, int]) -> float:
        return 1 - min(wider(size), 1 / wider(size))

    def side(length: float) -> int:
        whole = round(length / sizes.multiple) * sizes.multiple
        return int(min(max(whole, sizes.minimum), sizes.maximum))

    if lost(size) < CUT:
        return
    own = side((area * height / width) ** 0.5), side((area * width / height) ** 0.5)
    best = min(sizes.trained or (own,), key=lost)
    advice = "Crop the picture yourself to choose its part."
    if lost(best) < lost(size):
        advice = f"A size nearer to its shape is {best[1]}x{best[0]}."
    yield (
        f"{what[0]} is {width}x{height} and {what[1]} {size[1]}x{size[0]}, so {lost(size):.0%} of the picture is cut "
        f"off, {'left and right' if wider(size) > 1 else 'above and below'}. {advice}"
    )


def _guidance(content: Manifest, prepared: Prepared) -> Iterator[str]:
    alone = content.sampler.guidance <= 1
    if prepared.guided and alone:
        yield (
            f"{content.name} was made to draw without guidance, so guidance {prepared.guidance:g} spoils its pictures. "
            "Leave guidance out."
        )
    if prepared.negative and not prepared.guided:
        yield (
            f"guidance is {prepared.guidance:g}, so the negative prompt has no effect. "
            f"{'Leave it out.' if alone else 'Use a guidance above 1.'}"
        )


def _prompts(content: Manifest, asked: dict[str, str], names: Prompts) -> Iterator[str]:
    """Yield a line for each prompt that no name is near to; `asked` maps it to the caller's own spelling."""
    unknown = [text for text in asked if not names.knows(text)]
    for text in unknown[:SHOWN]:
        found = nearest(names, text)
        known = f"The nearest names are: {', '.join(found)}." if found else ""
        known = known if text.strip() and found else f"Some of its names are: {', '.join(nearest(names, ''))}."
        if not text.strip():
            yield f"the prompt is empty, so {content.name} draws anything. {known}"
            continue
        shown = asked[text] if len(asked[text]) <= LONGEST else f"{asked[text][:LONGEST]}…"
        yield f"{content.name} does not know {shown!r}, so expect a wrong result. {known}"
    if len(unknown) > SHOWN:
        yield f"{len(unknown) - SHOWN} more prompts are unknown to {content.name}."


def is_photograph(image: np.ndarray) -> bool:
    """Return whether a picture, float32 [height, width, 3] in [-1, 1], looks like a photograph and not like an emoji.

    A photograph has neither a plain background nor plain areas. The background is plain if at least half of the pixels
    on the edge are within 12 of 255 levels of their median colour. The areas are plain if at least 70 % of neighbours
    are within 2 levels. Both are counted on a grid of about 64 x 64 pixels.
    """
    pixels = (image[:: max(image.shape[0] // 64, 1), :: max(image.shape[1] // 64, 1)] + 1) * 127.5
    edge = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    plain = (np.abs(edge - np.median(edge, axis=0)) <= EDGE).all(-1).mean()
    flat = (np.abs(np.diff(pixels, axis=1)) <= EQUAL).all(-1).mean()
    return bool(plain < PLAIN and flat < FLAT)
