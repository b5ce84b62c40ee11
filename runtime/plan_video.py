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
from .plan import THREAD, Plan, base_of, chosen, freest, host_of, step_bytes, streamings, tilings_of
from .profiles import sized
from .segments import COMPRESSION, SegmentSpec, count_segments, latent_frames, video_frames, window_frames
from .tiles import Tiling, lay
from .turns import Turn, dims_of, phases_of, turn_of

PLAIN = 12  # bytes of a pixel in float32
FRAME = 4 * PLAIN  # of a frame on its way to bytes, between calls: as decoded, joined, clipped, scaled
TILES = (64, 48, 32, 24, 16, 12)  # latent pixels of 16 by 16: smaller ones show, 36 dB with 8 beside 45 with 12
# What is freed as soon as its work is done, without a budget too
LEAVING = frozenset({"text_encoder", "vae_encoder_first", "vae_encoder_next", "transformer", "transformer_2"})
ORDER = (
    "text_encoder", "vae_encoder_first", "vae_encoder_next", "transformer", "transformer_2", "vae_decoder_first",
    "vae_decoder_next", "detail_vae_encoder_first", "detail_vae_encoder_next", "detail_transformer",
    "detail_vae_decoder_first", "detail_vae_decoder_next",
)  # fmt: skip


@dataclass(frozen=True)
class WantedVideo:
    """What is asked for: a video of `frames` frames, 4 k + 1, of one size in pixels.

    `tiling` is the caller's choice; None leaves it to the plan, unless it is `settled` that there are no tiles.
    """

    height: int
    width: int
    frames: int
    tiling: Tiling | None = None
    settled: bool = False


def plan_video(content: Manifest, wanted: WantedVideo, machine: Machine, budget: int | None) -> Plan:
    """Return the plan of a bundle that draws videos, as `plan.plan` does for pictures.

    Raises BudgetError where no way fits; it names the smallest budget for which one does.
    """

    def ways(height: int, width: int) -> Iterator[Plan]:
        return _ways(content, replace(wanted, height=height, width=width), machine, budget)

    return chosen(content, ways, machine, budget, (wanted.height, wanted.width))


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
    settled = wanted.settled or wanted.tiling is not None
    for tiling in (wanted.tiling,) if settled else tilings_of(*plane, TILES, machine):
        found = rest | turns_of(tiled, tiling)
        turns = {name: found[name] for name in ORDER if name in found}
        arrays = _host(content, video, wanted) + max(turn.waiting for turn in turns.values())
        host = host_of(content, machine, arrays)
        if budget is None:  # what is loaded stays then
            keep = tuple(turns) if machine.kind == CPU else tuple(name for name in turns if name not in LEAVING)
            there = base + step_bytes(content, (), machine) + THREAD * machine.threads * len(turns)
            phases = tuple(phases_of(turns, keep, windows, machine, there))
            yield Plan(machine.name, budget, keep, True, tiling, phases, host=host)
        for streamed, taken in streamings(content, turns, (), machine):
            there = base + step_bytes(content, streamed, machine) + THREAD * machine.threads * 2
            phases = tuple(phases_of(taken, (), windows, machine, there))
            yield Plan(machine.name, budget, (), True, tiling, phases, streamed, host)


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
        moved, waiting = (given + caches, tiles * caches) if tiles > 1 else (0, 0)
        turn = replace(turn_of(content, name, dims, machine, calls, given), moved=moved, waiting=waiting)
    else:
        made = 0  # pixels of tiles that wait for the others
        if name.startswith("detail_vae_decoder"):
            frames = 1 if name.endswith("_first") else COMPRESSION
            made = PLAIN * frames * content.latents.factor**2 * dims["height"] * dims["width"]
        # A call's own caches and pixels were measured in it
        turn = turn_of(content, name, dims, machine, calls, (tiles - 1) * (caches + made))
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
