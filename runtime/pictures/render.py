"""The path of a picture from a prepared request to pixels: encode, denoise, decode, describe."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.families import GUIDANCE, VAE_DECODER
from ..components import Cancel, Components, Feeds
from ..input_picture import as_input, digest_of
from ..request import Prepared
from ..sampling import latents as latent_space
from ..sampling.recurrence import Moment
from ..sampling.tiles import Tiling, apply
from .families import denoise, find
from .input import begin, encode_picture

if TYPE_CHECKING:
    from ..planning.pictures import Plan

OnStep = Callable[[int, int, np.ndarray], None]
Report = Callable[[int, int, np.ndarray, Moment], None]  # `OnStep` with what a preview needs

REMEMBERED = 64  # prompts whose encoder states stay between requests


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture: `image` uint8 [height, width, 3], `latents` float32 [channels, height / factor, width / factor].

    `metadata` holds what is needed to render it again, see `Result`.
    """

    image: np.ndarray
    latents: np.ndarray
    metadata: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """All pictures of a request.

    `images` is uint8 [pictures, height, width, 3], sRGB. `latents` is float32 [pictures, channels, height / factor,
    width / factor], denoised. `metadata` holds for each picture what is needed to render it again (JSON types), except
    latents that the caller gave.
    """

    images: np.ndarray
    latents: np.ndarray
    metadata: tuple[dict[str, Any], ...]


def render(
    components: Components, prepared: Prepared, plan: Plan | None, remembered: dict[str, Feeds],
    report: Report | None, cancel: Cancel | None,
) -> Iterator[Picture]:  # fmt: skip
    """Yield each picture of a prepared request as soon as it is done; `plan` is None without a budget.

    `remembered` holds the encoder states of earlier prompts; new ones are added. `report` and `cancel` are those of
    `Model.pictures`. Raises the errors of `Components.run`.
    """
    together, tiling = (True, None) if plan is None else (plan.together, plan.tiling)
    beginning = begin(components, prepared, cancel, tiling)
    referred = refer(components, prepared, cancel, tiling)
    for index, prompt in enumerate(prepared.prompts):
        known = encode(components, prompt, prepared, referred, remembered, cancel)
        callback = None if report is None else _reporter(report, prepared, index)
        latents = denoise(components, prepared, index, known, beginning, callback, cancel, together)
        image = decode(components, latents, cancel, tiling)[0]
        image = image if prepared.start is None else prepared.start.kept(image)
        yield Picture(image, latents[0], describe(components, prepared, index))


def refer(components: Components, prepared: Prepared, cancel: Cancel | None, tiling: Tiling | None) -> Feeds:
    """Return the denoiser's inputs for the reference pictures of a request, [1, ...]; none if its family takes none."""
    content = components.bundle.manifest
    if (made := find(content).refer) is None:
        return {}
    encoded = [encode_picture(components, as_input(one), None, cancel, tiling) for one in prepared.references]
    return made(encoded, content.latents.channels)


def encode(
    components: Components, prompt: str, prepared: Prepared, referred: Feeds, remembered: dict[str, Feeds],
    cancel: Cancel | None,
) -> list[Feeds]:  # fmt: skip
    """Return the denoiser's inputs for a prompt, [1, ...]; with guidance those for the negative prompt come first.

    `referred` are those for the reference pictures.
    """
    content = components.bundle.manifest
    family = find(content)

    def states(text: str) -> Feeds:
        if text not in remembered:
            found = family.encode(components, content, text, cancel)
            while len(remembered) >= REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[text] = found
        return remembered[text]

    positive = states(prompt) | family.beside(prepared.height, prepared.width) | referred
    if prepared.embedded:
        positive[GUIDANCE] = np.array([prepared.guidance], np.float32)
    if not prepared.guided:
        return [positive]
    if content.zero_negative and not prepared.negative:
        negative = {name: np.zeros_like(array) for name, array in states(prompt).items()}
    else:
        negative = states(prepared.negative)
    return [positive | negative, positive]


def decode(components: Components, latents: np.ndarray, cancel: Cancel | None, tiling: Tiling | None) -> np.ndarray:
    """Return the pictures of latents [n, channels, h, w], uint8 [n, height, width, 3]; tile by tile with `tiling`."""
    geometry = components.bundle.manifest.latents
    scaled = latent_space.for_decoder(latents, geometry)
    if VAE_DECODER not in components.bundle.manifest.components:  # the latents are pixels
        return latent_space.to_bytes(scaled)

    def pixels(part: np.ndarray) -> np.ndarray:
        return components.run(VAE_DECODER, cancel, latents=part)["pixels"]  # type: ignore[no-any-return]

    return latent_space.to_bytes(apply(scaled, tiling, geometry.factor, pixels))


def describe(components: Components, prepared: Prepared, index: int) -> dict[str, Any]:
    """Return what is needed to render picture `index` again (JSON types), except latents that the caller gave."""
    bundle, asked, drawn = components.bundle, prepared.asked[index], prepared.prompts[index]
    return {
        "prompt": asked,
        **({} if asked == drawn else {"spelled": drawn}),
        "negative": prepared.negative,
        "seed": prepared.seed,
        "index": index % prepared.count,
        "count": prepared.count,
        "steps": prepared.schedule.steps,
        "guidance": prepared.guidance,
        "sampler": bundle.manifest.sampler.kind,
        "size": [prepared.height, prepared.width],
        "sigmas": None if prepared.sigmas is None else list(prepared.sigmas),
        "noise": prepared.noise,
        **_inputs(prepared),
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.digest,
        **({"loras": list(components.adapters.used)} if components.adapters.used else {}),
        "engine": components.target,
        "segue": importlib.metadata.version("segue"),
    }


def _inputs(prepared: Prepared) -> dict[str, Any]:
    """Return what a picture was made of besides its prompt; the caller gives the pictures again."""
    start, found = prepared.start, dict[str, Any]()
    if start is not None:
        found = {"image_sha256": start.digest, "strength": start.strength}
        if start.mask_digest is not None:
            found |= {"mask_sha256": start.mask_digest, "feather": start.feather}
    given = [one for one in prepared.references if start is None or one is not start.image]  # that one is told above
    if given:
        found["references_sha256"] = [digest_of(one) for one in given]
    return found


def _reporter(report: Report, prepared: Prepared, index: int) -> Callable[[int, np.ndarray, Moment], None]:
    """Return a callback that counts steps over all pictures and passes `report` a read-only view."""
    steps = prepared.steps

    def count(step: int, latents: np.ndarray, moment: Moment) -> None:
        view = latents.view()
        view.flags.writeable = False
        report(index * steps + step, steps * len(prepared.prompts), view, moment)

    return count
