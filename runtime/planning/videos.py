"""Plan the memory of a video, phase by phase, with one component loaded at a time (`runtime/videos/render.py`).

Under a budget the stages of a window run one after another: text, the image's latents, Stage I, its frames. With a
Stage II their latents, every segment and its decoder follow. Only the latents of one window wait between stages, so
memory does not grow with the number of windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ..bundle.families import Kind, Role, Stage, family_of, role_of
from ..bundle.manifest import Component, Manifest, Video
from ..bundle.segments import COMPRESSION, SegmentSpec, count_segments, latent_frames, video_frames, window_frames
from ..bundle.shapes import sized
from ..sampling.motion import experts_of
from ..sampling.tiles import Tiling, make_tiles
from .choices import streamings, tilings_of
from .costs import ComponentCost, cost_of, dims_of, phases_of, pooled_cost
from .hardware import CPU, Machine
from .pictures import THREAD, Plan, base_of, best_plan, host_of, step_bytes, unbounded_candidate

PLAIN = 12  # bytes of a pixel in float32
FRAME = 4 * PLAIN  # bytes of a frame's pixel between calls: decoded, joined, clipped and scaled copies
TILES = (
    64,
    48,
    32,
    24,
    16,
    12,
)  # latent pixels, each 16 x 16 pixels. Smaller tiles are visible: 36 dB with 8, 45 with 12


@dataclass(frozen=True)
class WantedVideo:
    """The part of a request that memory depends on: a video of `frames` frames, 4 k + 1, of one size in pixels.

    `tiling` is the caller's choice. With None the plan chooses, but if `settled` there are no tiles.
    """

    height: int
    width: int
    frames: int
    tiling: Tiling | None = None
    settled: bool = False


def plan_video(content: Manifest, wanted: WantedVideo, machine: Machine, budget: int | None) -> Plan:
    """Return the plan of a video bundle, like `pictures.plan` for pictures.

    Raises BudgetError if no candidate fits; it names the smallest budget that is enough.
    """

    def candidates(height: int, width: int) -> Iterator[Plan]:
        return _candidates(content, replace(wanted, height=height, width=width), machine, budget)

    return best_plan(content, candidates, machine, budget, (wanted.height, wanted.width))


def unbounded_video_plan(content: Manifest, wanted: WantedVideo, machine: Machine) -> Plan:
    """Return the plan of a video without a budget, like `pictures.unbounded_plan`."""
    return unbounded_candidate(_candidates(content, wanted, machine, None), content, machine)


def _candidates(content: Manifest, wanted: WantedVideo, machine: Machine, budget: int | None) -> Iterator[Plan]:
    video = content.video
    assert video is not None
    factor = content.latents.factor
    plane = wanted.height // factor, wanted.width // factor
    windows = max(1, math.ceil((latent_frames(wanted.frames) - 1) / (latent_frames(video.frames) - 1)))
    base = base_of(content, machine) + (_host(content, video, wanted) if machine.kind == CPU else 0)
    order = family_of(content).present(content)
    tiled = [name for name in content.components if _is_tiled(video, role_of(name))]

    def costs_of(names: Iterable[str], tiling: Tiling | None) -> dict[str, ComponentCost]:
        made = {name: _cost(content, video, name, wanted, machine, tiling) for name in names}
        return {name: cost for name, cost in made.items() if cost.calls}

    rest = costs_of([name for name in order if name not in tiled], None)
    settled = wanted.settled or wanted.tiling is not None
    for tiling in (wanted.tiling,) if settled else tilings_of(*plane, TILES, machine):
        found = rest | costs_of(tiled, tiling)
        costs = {name: found[name] for name in order if name in found}
        arrays = _host(content, video, wanted) + max(cost.waiting for cost in costs.values())
        host = host_of(content, machine, arrays)
        if budget is None:  # loaded components then stay
            if machine.kind == CPU:
                costs = {name: pooled_cost(cost) for name, cost in costs.items()}
            keep = tuple(costs) if machine.kind == CPU else tuple(name for name in costs if not role_of(name).leaves)
            there = base + step_bytes(content, (), machine) + THREAD * machine.threads * len(costs)
            phases = tuple(phases_of(costs, keep, windows, machine, there))
            yield Plan(machine.name, budget, keep, True, tiling, phases, host=host)
        for streamed, taken in streamings(content, costs, (), machine):
            there = base + step_bytes(content, streamed, machine) + THREAD * machine.threads * 2
            phases = tuple(phases_of(taken, (), windows, machine, there))
            yield Plan(machine.name, budget, (), True, tiling, phases, streamed, host)


def _host(content: Manifest, video: Video, wanted: WantedVideo) -> int:
    """Return the bytes of the arrays that wait between stages: images, Stage I's frames, the latents of a window."""
    pixels, factor = wanted.height * wanted.width, content.latents.factor
    latents = 4 * content.latents.channels * pixels // factor**2 * latent_frames(video.frames)
    waiting = PLAIN * pixels * _frames_at_once(video)
    if video.detail is None:  # the first, the last and the current picture; latents, those seen and the prediction
        seen = _denoisers(content)[0].inputs[0].shape[1]
        calls = 2 if video.motion.sampler.guidance > 1 else 1
        whole = latents * (3 + calls + calls * (seen if isinstance(seen, int) else 1) / content.latents.channels)
        return 3 * PLAIN * pixels + int(whole) + waiting
    small = PLAIN * pixels // video.scale**2 * video.frames
    return 2 * PLAIN * pixels + 3 * latents + 2 * small + waiting


def _frames_at_once(video: Video) -> int:
    """Return the most frames that are yielded together: of a segment once it is complete, or of a latent frame."""
    return COMPRESSION if video.detail is None else video_frames(video.detail.targets + 1)


def _cost(
    content: Manifest, video: Video, name: str, wanted: WantedVideo, machine: Machine, tiling: Tiling | None
) -> ComponentCost:
    """Return one component's cost for a window. Stage I makes the whole length if a Stage II follows."""
    dims = dims_of(content, name, wanted.height, wanted.width)
    whole, latent = latent_frames(video.frames), latent_frames(min(wanted.frames, video.frames))
    detail = video.detail
    segments = None if detail is None else SegmentSpec(detail.targets, detail.before, detail.after)
    count = 0 if segments is None else count_segments(latent, segments)
    if segments is None:
        whole = dims["frames"] = latent
    guided, role, tiled = video.motion.sampler.guidance > 1, role_of(name), _is_tiled(video, role_of(name))
    dims["batch"] = 2 if guided and role.guided else 1
    tiles = 1
    if tiled:
        sides = 1 if role.kind is Kind.DECODER else content.latents.factor
        cut = make_tiles(dims["height"] // sides, dims["width"] // sides, tiling)
        tiles = len(cut)
        dims |= {"height": sides * len(cut[0].rows), "width": sides * len(cut[0].columns)}
    if role.kind is Kind.TEXT:
        calls = 2 if guided else 1
    elif role.guided:
        calls = experts_of(video.motion.sampler, len(_denoisers(content)), video.motion.boundary).count(role.expert)
    elif role.kind is Kind.DENOISER:
        calls = content.sampler.steps * count
    elif role.half == "next":  # Stage I decodes the whole window, Stage II only the part that the video shows
        calls = tiles * ((latent if tiled and role.kind is Kind.DECODER else whole) - 1)
    else:
        calls = tiles
    caches = caches_of(content.components[name], name, dims)
    if machine.kind != CPU:  # one tile's caches stay on the GPU; with several tiles the other caches wait on the host
        given = caches if role.half == "next" else 0  # the caller holds them until the call ends
        moved, waiting = (given + caches, tiles * caches) if tiles > 1 else (0, 0)
        cost = replace(cost_of(content, name, dims, machine, calls, given), moved=moved, waiting=waiting)
    else:
        made = 0  # pixels of tiles that wait for the others
        if tiled and role.kind is Kind.DECODER:
            frames = 1 if role.half == "first" else COMPRESSION
            made = PLAIN * frames * content.latents.factor**2 * dims["height"] * dims["width"]
        # The measurement of a call includes its own caches and pixels
        cost = cost_of(content, name, dims, machine, calls, (tiles - 1) * (caches + made))
        if tiled and role.kind is Kind.DECODER:
            between = (FRAME - PLAIN) * wanted.height * wanted.width * _frames_at_once(video)
            cost = replace(cost, held=replace(cost.held, working=max(cost.held.working, between)))
    counted = content.components[name].cost
    if role.kind is Kind.DENOISER and not role.guided and counted is not None and segments is not None and count:
        # Windows differ in their number of frames
        flops = [counted.flops.at(dims | {"frames": window_frames(i, latent, segments)}) for i in range(count)]
        cost = replace(cost, flops=sum(flops) / count)
    return cost


def _is_tiled(video: Video, role: Role) -> bool:
    """Return whether tiles apply to a component: it works on frames at the size of the video."""
    return role.convolutional and (video.detail is None or role.stage is Stage.DETAIL)


def _denoisers(content: Manifest) -> list[Component]:
    """Return the experts of Stage I."""
    return [spec for name, spec in content.components.items() if role_of(name).guided and not role_of(name).step]


def caches_of(spec: Component, name: str, dims: dict[str, int]) -> int:
    """Return the bytes of the caches that a streaming graph takes or gives."""
    half = role_of(name).half
    if not half:
        return 0
    itemsize = {"float16": 2, "float32": 4}
    ports = spec.inputs if half == "next" else spec.outputs
    return sum(
        itemsize.get(port.dtype, 4) * math.prod(sized(size, dims, name) for size in port.shape)
        for port in ports
        if port.name not in ("pixels", "latents")
    )
