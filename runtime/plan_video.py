"""What a video takes of memory, phase by phase, where one component at a time is loaded (`runtime/animation.py`).

Under a budget a window goes through its stages one after another: text, the image's latents, Stage I, its frames, their
latents, every segment, and then the decoder. Only the latents of one window wait between them, so nothing grows with
the number of windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .hardware import CPU, Machine
from .manifest import Component, Manifest, Video
from .motion import experts_of
from .plan import THREAD, Plan, base_of, chosen, freest, limit_of, step_of, streamings, tilings_of
from .profiles import sized
from .segments import SegmentSpec, count_segments, latent_frames, video_frames, window_frames
from .tiles import Tiling, lay
from .turns import Turn, dims_of, phases_of, turn_of

PLAIN = 12  # bytes of a pixel in float32
FRAME = 4 * PLAIN  # of a frame on its way to bytes, between calls: as decoded, joined, clipped, scaled
TILES = (64, 48, 32, 24, 16, 8)
ORDER = (
    "text_encoder", "vae_encoder_first", "vae_encoder_next", "transformer", "transformer_2", "vae_decoder_first",
    "vae_decoder_next", "detail_vae_encoder_first", "detail_vae_encoder_next", "detail_transformer",
    "detail_vae_decoder_first", "detail_vae_decoder_next",
)  # fmt: skip


@dataclass(frozen=True)
class WantedVideo:
    """What is asked for: a video of `frames` frames, 4 k + 1, of one size in pixels."""

    height: int
    width: int
    frames: int
    tiling: Tiling | None = None  # where the caller has chosen; else the plan does


def plan_video(content: Manifest, wanted: WantedVideo, machine: Machine, budget: int | None) -> Plan:
    """Return the plan of a bundle that draws videos, as `plan.plan` does for pictures.

    Raises BudgetError where no way fits; it names the smallest budget for which one does.
    """
    ways = list(_ways(content, wanted, machine, budget))
    return chosen(content, ways, limit_of(machine, budget), (wanted.width, wanted.height))


def free_video(content: Manifest, wanted: WantedVideo, machine: Machine) -> Plan:
    """Return what a video takes without a budget; see `plan.free`."""
    return freest(_ways(content, wanted, machine, None), content, machine)


def _ways(content: Manifest, wanted: WantedVideo, machine: Machine, budget: int | None) -> Iterator[Plan]:
    video = content.video
    assert video is not None
    factor = content.latents.factor
    plane = wanted.height // factor, wanted.width // factor
    windows = max(1, math.ceil((latent_frames(wanted.frames) - 1) / (latent_frames(video.frames) - 1)))
    base = base_of(content, machine) + (_host(content, video, wanted) if machine.kind == CPU else 0)
    tiled = [name for name in content.components if name.startswith("detail_vae")]

    def turns_of(names: Iterable[str], tiling: Tiling | None) -> dict[str, Turn]:
        made = {name: _turn(content, video, name, wanted, machine, tiling) for name in names}
        return {name: turn for name, turn in made.items() if turn.calls}

    rest = turns_of([name for name in ORDER if name in content.components and name not in tiled], None)
    for tiling in tilings_of(*plane, TILES, machine) if wanted.tiling is None else (wanted.tiling,):
        found = rest | turns_of(tiled, tiling)
        turns = {name: found[name] for name in ORDER if name in found}
        if budget is None:  # what is loaded stays then
            there = base + THREAD * machine.threads * len(turns)
            phases = tuple(phases_of(turns, tuple(turns), windows, machine, there))
            yield Plan(machine.name, budget, tuple(turns), True, tiling, phases)
        for streamed, taken in streamings(content, turns, (), machine):
            there = base + step_of(content, streamed, machine) + THREAD * machine.threads * 2
            phases = tuple(phases_of(taken, (), windows, machine, there))
            yield Plan(machine.name, budget, (), True, tiling, phases, streamed)


def _host(content: Manifest, video: Video, wanted: WantedVideo) -> int:
    """Return the bytes of the arrays that wait between stages: images, small frames, the latents of a window."""
    pixels, factor = wanted.height * wanted.width, content.latents.factor
    latents = 4 * content.latents.channels * pixels // factor**2 * latent_frames(video.frames)
    small = PLAIN * pixels // video.scale**2 * video.frames
    waiting = PLAIN * pixels * video_frames(video.targets + 1)  # frames of a segment until it is whole
    return 2 * PLAIN * pixels + 3 * latents + 2 * small + waiting


def _turn(
    content: Manifest, video: Video, name: str, wanted: WantedVideo, machine: Machine, tiling: Tiling | None
) -> Turn:
    """Return one component's work for a window, of which Stage I always makes the whole length."""
    dims = dims_of(content, name, wanted.height, wanted.width)
    whole, latent = latent_frames(video.frames), latent_frames(min(wanted.frames, video.frames))
    segments = SegmentSpec(video.targets, video.before, video.after)
    count = count_segments(latent, segments)
    guided = video.motion.sampler.guidance > 1
    dims["batch"] = 2 if guided and name.startswith("transformer") else 1
    tiles = 1
    if name.startswith("detail_vae"):
        sides = 1 if "decoder" in name else content.latents.factor
        laid = lay(dims["height"] // sides, dims["width"] // sides, tiling)
        tiles = len(laid)
        dims |= {"height": sides * len(laid[0].rows), "width": sides * len(laid[0].columns)}
    experts = experts_of(video.motion.sampler, 2 if "transformer_2" in content.components else 1)
    calls = {
        "text_encoder": 2 if guided else 1,
        "transformer": experts.count(0),
        "transformer_2": experts.count(1),
        "detail_transformer": content.sampler.steps * count,
        "detail_vae_decoder_next": tiles * (latent - 1),
    }.get(name, tiles * ((whole - 1) if name.endswith("_next") else 1))
    caches = caches_of(content.components[name], name, dims)
    if machine.kind != CPU:  # caches of one tile are there; of many, the others wait on the host
        given = caches if name.endswith("_next") else 0  # which the caller holds to the call's end
        moved = given + caches if tiles > 1 else 0
        turn = replace(turn_of(content, name, dims, machine, calls, given), moved=moved)
    else:
        turn = turn_of(content, name, dims, machine, calls, (tiles - 1) * caches)  # a call's own were measured in it
        if name.startswith("detail_vae_decoder"):
            between = (FRAME - PLAIN) * wanted.height * wanted.width * video_frames(video.targets + 1)
            turn = replace(turn, held=replace(turn.held, working=max(turn.held.working, between)))
    cost = content.components[name].cost
    if name == "detail_transformer" and cost is not None and count:  # not all windows have as many frames
        of = [cost.flops.at(dims | {"frames": window_frames(i, latent, segments)}) for i in range(count)]
        turn = replace(turn, flops=sum(of) / count)
    return turn


def caches_of(spec: Component, name: str, dims: dict[str, int]) -> int:
    """Return the bytes of what a stream's graph is given beside pixels or latents."""
    if not name.endswith(("_next", "_first")):
        return 0
    itemsize = {"float16": 2, "float32": 4}
    ports = spec.inputs if name.endswith("_next") else spec.outputs
    return sum(
        itemsize.get(port.dtype, 4) * math.prod(sized(size, dims, name) for size in port.shape)
        for port in ports
        if port.name not in ("pixels", "latents")
    )
