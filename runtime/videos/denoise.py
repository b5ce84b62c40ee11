"""The denoising loops of SwiftI2V's two stages: in numpy, or on a GPU with all arrays kept there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import device_loop
from ..bundle.families import DETAIL, family_of, role_of
from ..bundle.manifest import step_of
from ..bundle.segments import Segment
from ..components import Cancel, Components
from ..sampling import csg, motion, schedule


def denoise_motion(
    components: Components, states: np.ndarray, noise: np.ndarray, image: np.ndarray, cancel: Cancel | None,
    report: Callable[[int, int], None],
) -> np.ndarray:  # fmt: skip
    """Return Stage I's latents of a window, float32 [channels, frames, height, width]; see `motion.generate`.

    `noise` and `image` have that shape; `image` is the latents of the image followed by grey frames. `states`
    [1 or 2, tokens, width] holds the prompt's states; with guidance, the negative prompt's states come first.
    `report(done, total)` runs before each call. An expert is released when the other one starts, and both at the end.
    Raises the errors of `Components.run`.
    """
    content = components.bundle.manifest
    assert content.video is not None
    settings = content.video.motion.sampler
    levels, batch = motion.schedule(settings), len(states)
    names = [name for name in family_of(content).present(content) if role_of(name).guided]
    experts = [names[expert] for expert in motion.experts_of(settings, len(names))]

    def before(step: int) -> None:
        report(step, levels.steps)
        components.release(*(name for name in names if name != experts[step]))  # sigmas only decrease

    def one(step: int, latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        before(step)
        found = components.run(
            experts[step], cancel, latents=latents.repeat(batch, 0), timestep=timestep.repeat(batch), text=states
        )["velocity"]
        return schedule.guide(found[:1], found[1:], settings.guidance) if batch == 2 else found.astype(np.float32)

    if device_loop.can_stay(components, levels, *names):
        times = [{"timestep": np.full(batch, timestep, np.float32)} for timestep in levels.timesteps]
        loop = device_loop.DeviceLoop(
            experts, step_of(names[0]), "latents", "velocity", times, {"text": states}, batch,
            settings.guidance, cancel=cancel, before=before,
        )  # fmt: skip
        shown = np.concatenate([noise, motion.beside(image)])[None]
        made = device_loop.sample(components, loop, shown, levels)[0, : len(noise)]
    else:
        made = motion.generate(one, noise, image, levels)
    components.release(*names, step_of(names[0]))
    return made


def denoise_segment(
    components: Components, text: np.ndarray, cancel: Cancel | None, part: Segment, context: np.ndarray,
    reference: np.ndarray, noise: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return a segment's targets by Stage II, float32 of the shape of `noise`; see `csg.denoise` for the arrays.

    `text` [1, tokens, width] holds the prompt's states. Raises the errors of `Components.run`.
    """
    levels = motion.schedule(components.bundle.manifest.sampler)
    if device_loop.can_stay(components, levels, DETAIL):
        noisy = np.zeros(len(part.frames), np.float32)
        noisy[part.noisy] = 1
        fixed = {"text": text, "positions": np.array([part.frames], np.int64)}
        times = [{"timesteps": csg.timesteps(part, timestep)} for timestep in levels.timesteps]
        loop = device_loop.DeviceLoop(
            [DETAIL] * levels.steps, step_of(DETAIL), "latents", "velocity", times, fixed, noisy=noisy,
            cancel=cancel,
        )  # fmt: skip
        window = csg.window(part, context, reference, noise)
        return device_loop.sample(components, loop, window, levels)[0, : len(noise), part.noisy]

    def velocity(latents: np.ndarray, timesteps: np.ndarray, positions: np.ndarray) -> np.ndarray:
        found = components.run(DETAIL, cancel, latents=latents, timesteps=timesteps, text=text, positions=positions)
        return found["velocity"].astype(np.float32)

    return csg.denoise(velocity, levels, part, context, reference, noise)
