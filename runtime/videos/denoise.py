"""The denoising loops of a video's stages: in numpy, or on a GPU with all arrays kept there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import device_loop
from ..bundle.families import DETAIL, TIMES, family_of, role_of
from ..bundle.manifest import step_of
from ..bundle.segments import Segment
from ..components import Cancel, Components
from ..sampling import csg, motion, schedule

Fresh = Callable[[int], np.ndarray]  # the noise of a step, for steps that add noise anew


@dataclass(frozen=True, eq=False)
class Given:
    """What a window of Stage I begins with, float32 [channels, frames, height, width].

    Of the kind "mask": the latents of the image and of grey frames, and `last` tells that the last frame is given too.
    Of the kind "first": the image's latent frame, or None.
    """

    latents: np.ndarray | None
    last: bool = False


def denoise_motion(
    components: Components, states: np.ndarray, noise: np.ndarray, given: Given, fresh: Fresh, cancel: Cancel | None,
    report: Callable[[int, int], None],
) -> np.ndarray:  # fmt: skip
    """Return Stage I's latents of a window in the shape of `noise`, float32 [channels, frames, height, width].

    `states` [1 or 2, tokens, width] holds the prompt's states; with guidance, the negative prompt's states come first.
    `report(done, total)` runs before each call. An expert is released when the other one starts, and both at the end.
    Raises the errors of `Components.run`.
    """
    content = components.bundle.manifest
    assert content.video is not None
    settings, boundary = content.video.motion.sampler, content.video.motion.boundary
    first = TIMES[content.video.given] == "timesteps"
    image = given.latents
    levels, batch, frames = motion.schedule(settings), len(states), noise.shape[1]
    names = [name for name in family_of(content).present(content) if role_of(name).guided]
    experts = [names[expert] for expert in motion.experts_of(settings, len(names), boundary)]
    places = {"positions": np.arange(frames, dtype=np.int64)[None].repeat(batch, 0)} if first else {}

    def before(step: int) -> None:
        report(step, levels.steps)
        components.release(*(name for name in names if name != experts[step]))  # sigmas only decrease

    def timed(timestep: np.ndarray) -> dict[str, np.ndarray]:
        return {"timesteps" if first else "timestep": timestep.repeat(batch, 0)}

    def one(step: int, latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        before(step)
        found = components.run(
            experts[step], cancel, latents=latents.repeat(batch, 0), **timed(timestep), text=states, **places
        )["velocity"]
        return schedule.guide(found[:1], found[1:], settings.guidance) if batch == 2 else found.astype(np.float32)

    if device_loop.can_stay(components, levels, *names):
        if first:
            seen, noisy = motion.begun(noise, image), np.ones(frames, np.float32)
            noisy[: 0 if image is None else 1] = 0
            times = [timed(motion.times(frames, image, timestep)) for timestep in levels.timesteps]
        else:
            assert image is not None
            seen, noisy = np.concatenate([noise, motion.beside(image, given.last)]), None
            times = [timed(np.array([timestep], np.float32)) for timestep in levels.timesteps]
        loop = device_loop.DeviceLoop(
            experts, step_of(names[0]), "latents", "velocity", times, {"text": states, **places}, batch,
            settings.guidance, noisy=noisy, cancel=cancel, fresh=_widened(fresh, seen), before=before,
        )  # fmt: skip
        made = device_loop.sample(components, loop, seen[None], levels)[0, : len(noise)]
    elif first:
        made = motion.generate_after(one, noise, image, levels, fresh)
    else:
        assert image is not None
        made = motion.generate(one, noise, image, levels, given.last, fresh)
    components.release(*names, step_of(names[0]))
    return made


def denoise_segment(
    components: Components, text: np.ndarray, cancel: Cancel | None, fresh: csg.Fresh,
    part: Segment, context: np.ndarray, reference: np.ndarray, noise: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return a segment's targets by Stage II, float32 of the shape of `noise`; see `csg.denoise` for the arrays.

    `text` [1, tokens, width] holds the prompt's states. `fresh(step, frames)` is the noise of a step for these latent
    frames. Raises the errors of `Components.run`.
    """
    levels = motion.schedule(components.bundle.manifest.sampler)

    def drawn(step: int) -> np.ndarray:
        return fresh(step, part.targets)

    if device_loop.can_stay(components, levels, DETAIL):
        noisy = np.zeros(len(part.frames), np.float32)
        noisy[part.noisy] = 1
        fixed = {"text": text, "positions": np.array([part.frames], np.int64)}
        times = [{"timesteps": csg.timesteps(part, timestep)} for timestep in levels.timesteps]
        window = csg.window(part, context, reference, noise)
        loop = device_loop.DeviceLoop(
            [DETAIL] * levels.steps, step_of(DETAIL), "latents", "velocity", times, fixed, noisy=noisy,
            cancel=cancel, fresh=_widened(drawn, window[0], part.noisy),
        )  # fmt: skip
        return device_loop.sample(components, loop, window, levels)[0, : len(noise), part.noisy]

    def velocity(latents: np.ndarray, timesteps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        found = components.run(DETAIL, cancel, latents=latents, timesteps=timesteps, text=text, positions=positions)
        return found["velocity"].astype(np.float32)

    return csg.denoise(velocity, levels, part, context, reference, noise, drawn)


def _widened(fresh: Fresh, seen: np.ndarray, frames: slice = slice(None)) -> Fresh:
    """Return `fresh` with zeros for the channels and frames of `seen` that do not change, and a batch of 1."""

    def drawn(step: int) -> np.ndarray:
        made, whole = fresh(step), np.zeros_like(seen)
        whole[: len(made), frames] = made
        return whole[None]

    return drawn
