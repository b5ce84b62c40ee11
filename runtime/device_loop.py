"""The denoising loop on a GPU: latents and text go to the device once, and the latents come back once.

On a processor, `sampling.recurrence.sample` runs the loop in numpy. On a GPU, guidance and Euler step are a graph
of their own in the bundle (`export/families/step.py`). A bundle without that graph always uses the numpy loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from ..engines.base import Array, Resident
from .bundle.manifest import step_of
from .components import Cancel, Components, Feeds
from .sampling.recurrence import Schedule


def can_stay(components: Components, schedule: Schedule, *denoisers: str) -> bool:
    """Return whether latents can stay on the device: `denoisers` run on a GPU, and the first has a step graph.

    The graph must take what the schedule's steps need. Several denoisers in one loop must have the same inputs and
    outputs.
    """
    content = components.bundle.manifest
    step = content.components.get(step_of(denoisers[0]))
    if step is None or schedule.past is not None or not _needs(schedule) <= {spec.name for spec in step.inputs}:
        return False
    ports = [(content.components[name].inputs, content.components[name].outputs) for name in denoisers]
    alike = all(of == ports[0] for of in ports)
    stay = all(components.stays_on_device(name) for name in denoisers)
    return stay and alike and components.has(step_of(denoisers[0]))


def _needs(schedule: Schedule) -> set[str]:
    """Return the inputs of a step graph that a schedule needs besides those of a plain Euler step."""
    needed = {
        "keep": (schedule.keep != 1).any(),
        "scale": (schedule.divisor != 1).any(),
        "noise": schedule.fresh is not None,
    }
    return {name for name, needs in needed.items() if needs}


def _drawn(loop: DeviceLoop, schedule: Schedule, step: int) -> np.ndarray:
    assert loop.fresh is not None
    assert schedule.fresh is not None
    return schedule.fresh[step] * loop.fresh(step)


@dataclass(frozen=True, eq=False)
class DeviceLoop:
    """The components and feeds of a denoising loop.

    - `denoisers`: the component of each step; `step`: the component after each of them.
    - `hidden`: the denoiser's input for the latents, repeated `batch` times (2 with guidance: negative, positive).
    - `output`: the denoiser's output.
    - `times`: feeds of each step; `fixed`: feeds of all steps.
    - `noisy`, [frames]: 1 for frames that change, 0 for the others (None: all change).
    - `fresh(step)`: the noise of a step, float32 [1, channels, ...], if the schedule takes any.
    - `before(step)` and `cancel()` run before each call of a denoiser.
    """

    denoisers: Sequence[str]
    step: str
    hidden: str
    output: str
    times: Sequence[Feeds]
    fixed: Feeds
    batch: int = 1
    guidance: float = 1.0
    noisy: np.ndarray | None = None
    cancel: Cancel | None = None
    fresh: Callable[[int], np.ndarray] | None = None
    before: Callable[[int], None] = field(default=lambda step: None)


def sample(
    components: Components,
    loop: DeviceLoop,
    latents: np.ndarray,
    schedule: Schedule,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """Denoise `latents`, float32 [1, channels, ...], down to sigma 0, like `sampling.recurrence.sample`.

    Only the first channels change, as many as the denoiser's output has; the others are conditions. A
    `callback(step, latents)` copies the latents to the host after each step. Timesteps and sigmas, a few bytes, are fed
    at each step: the buffers then keep their addresses, which recorded calls need. Raises the errors of
    `Components.run`.
    """
    components.check_going_on(loop.cancel)
    scales = 1 / np.append(schedule.divisor, np.float32(1))
    start = latents.astype(np.float32) * np.float32(schedule.scale)
    beside = {"guidance": np.array([loop.guidance], np.float32)}
    if loop.noisy is not None:
        beside["noisy"] = loop.noisy.astype(np.float32)
    taken = {spec.name for spec in components.bundle.manifest.components[loop.step].inputs}
    numbers = {"change": schedule.move, "keep": schedule.keep, "scale": scales[1:]}
    numbers = {name: array for name, array in numbers.items() if name in taken}

    def feeds(i: int) -> Feeds:
        found = {name: array[i : i + 1] for name, array in numbers.items()}
        if "noise" in taken:
            drawn = (
                np.zeros_like(start) if schedule.fresh is None or not schedule.fresh[i] else _drawn(loop, schedule, i)
            )
            found["noise"] = drawn
        return found

    with ExitStack() as kept:

        def put(component: str, feeds: Feeds) -> dict[str, Resident]:
            placed = components.put(component, feeds)
            for array in placed.values():
                kept.callback(array.close)
            return placed

        first = loop.denoisers[0]
        fixed = put(first, {**loop.fixed, loop.hidden: (start * scales[0]).repeat(loop.batch, 0)})
        seen = fixed.pop(loop.hidden)
        still = put(loop.step, {**beside, "latents": start})
        state = still.pop("latents")
        for i, component in enumerate(loop.denoisers):
            loop.before(i)
            given: dict[str, Array] = {loop.hidden: seen, **fixed, **loop.times[i]}
            made = components.run(component, loop.cancel, (loop.output,), **given)[loop.output]
            moved = components.run(loop.step, None, ("after", "seen"), latents=state, made=made, **still, **feeds(i))
            state, seen = moved["after"], moved["seen"]
            if callback is not None:
                callback(i + 1, state.numpy())
        return state.numpy()
