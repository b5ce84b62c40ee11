"""The denoising loop with everything on the device: latents, text and levels go there once, latents come back once.

On a processor the loop is `sampler.sample_euler`, in numpy. Here guidance and Euler step are a graph that the bundle
has beside the denoiser's (`export/families/step.py`); bundles without it take the numpy loop everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from ..engines.base import Array, Resident
from .bundle.manifest import step_of
from .components import Cancel, Components, Feeds
from .sampling.schedule import Schedule


def can_stay(components: Components, *denoisers: str) -> bool:
    """Return whether latents can stay where `denoisers` run: on a GPU, with the step of the first of them as a graph.

    Of several denoisers that take turns all have to take and give the same.
    """
    content = components.bundle.manifest
    ports = [(content.components[name].inputs, content.components[name].outputs) for name in denoisers]
    alike = all(of == ports[0] for of in ports)
    stay = all(components.stays_on_device(name) for name in denoisers)
    return stay and alike and components.has(step_of(denoisers[0]))


@dataclass(frozen=True, eq=False)
class DeviceLoop:
    """What a denoising loop calls, and with what.

    `denoisers` is a component for each step, and `step` the one after it. A denoiser takes `hidden`, the latents
    repeated `batch` times (2 with guidance: without the prompt, with it), `told`, arrays for its other inputs, and
    `times[i]` at step i; it gives `output`. `noisy`, [frames], is 1 for frames that move and 0 for others (None: all
    move). `before(step)` is called before each call of a denoiser, and `cancel` asked.
    """

    denoisers: Sequence[str]
    step: str
    hidden: str
    output: str
    times: Sequence[Feeds]
    told: Feeds
    batch: int = 1
    guidance: float = 1.0
    noisy: np.ndarray | None = None
    cancel: Cancel | None = None
    before: Callable[[int], None] = field(default=lambda step: None)


def sample_euler(
    components: Components,
    loop: DeviceLoop,
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Carry `latents`, float32 [1, channels, ...], down to sigma 0, as `sampler.sample_euler` does.

    Only the first channels move, as many as the denoiser gives; the others are what it sees beside them. With a
    `callback(step, latents)` latents are copied to the host after each step, for it to see. Timesteps and levels, a few
    bytes, are fed step by step: the same buffers have the same addresses then, as recorded calls want them. Raises
    what `Components.run` does.
    """
    components.check_going_on(loop.cancel)
    levels = schedule.sigmas
    scales = 1 / np.sqrt(levels**2 + 1) if schedule.exploding else np.ones_like(levels)
    start = latents.astype(np.float32) * np.float32(schedule.scale)
    beside = {"guidance": np.array([loop.guidance], np.float32)}
    if loop.noisy is not None:
        beside["noisy"] = loop.noisy.astype(np.float32)
    moves = [{"change": levels[i + 1 : i + 2] - levels[i]} for i in range(schedule.steps)]
    if schedule.exploding:
        moves = [{**move, "scale": scales[i + 1 : i + 2]} for i, move in enumerate(moves)]
    with ExitStack() as kept:

        def put(component: str, feeds: Feeds) -> dict[str, Resident]:
            placed = components.put(component, feeds)
            for array in placed.values():
                kept.callback(array.close)
            return placed

        first = loop.denoisers[0]
        told = put(first, {**loop.told, loop.hidden: (start * scales[0]).repeat(loop.batch, 0)})
        seen = told.pop(loop.hidden)
        still = put(loop.step, {**beside, "latents": start})
        state = still.pop("latents")
        for i, component in enumerate(loop.denoisers):
            loop.before(i)
            given: dict[str, Array] = {loop.hidden: seen, **told, **loop.times[i]}
            made = components.run(component, loop.cancel, (loop.output,), **given)[loop.output]
            moved = components.run(loop.step, None, ("after", "seen"), latents=state, made=made, **still, **moves[i])
            state, seen = moved["after"], moved["seen"]
            if callback is not None:
                callback(i + 1, state.numpy())
        return state.numpy()
