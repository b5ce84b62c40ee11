"""What pictures take of memory, phase by phase, and how they stay within a budget: decided before anything is loaded.

A plan is a pure function of bundle, request, machine and budget. Of all ways to go about the request it takes the
fastest that fits, and among equals the one that keeps most for the next request. Every way gives the same picture, but
for tiles of the decoder, which are used where nothing else fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import BudgetError
from .amounts import mebibytes
from .hardware import CPU, Machine
from .manifest import Component, Manifest, Part
from .pictures import find
from .profiles import SizeRange, dimensions
from .tiles import Tiling, lay

RUNTIME = 69 * 2**20  # bytes that come with the libraries and the first session of a process
TOKENIZER = 3  # bytes in memory for each of a tokenizer's file
SPREAD = 1.03  # of what was measured at export: pages, threads
ALLOWANCE = 4 * 2**20  # bytes that the allocator keeps between
LEFT = 2 * 2**20  # bytes that parts leave behind between them: what many sessions one after another fragment
CROSSING = 0.15  # of what a call works with: what crosses between parts where that was not measured (0.09 was)
PIXEL = 64  # bytes for each pixel of a picture beside the decoder: tiles, scaled and rounded copies (39 measured)
WORTH = 0.5  # of the time that loading takes: parts that work for less hide too little of it to be loaded ahead
TILES = (64, 48, 32, 24, 16)  # latent pixels of a tile's side, a quarter of which overlaps


@dataclass(frozen=True)
class Wanted:
    """What is asked for: `count` pictures of one size in so many steps, with guidance or without."""

    height: int  # pixels
    width: int
    steps: int
    guided: bool
    count: int = 1


@dataclass(frozen=True)
class Held:
    """Bytes that a component takes: at most while it loads, from then on, and beside that in a call."""

    loading: int
    loaded: int
    working: int


@dataclass(frozen=True)
class Phase:
    """One component's turn: its calls, the most bytes of the process in it, and seconds by the machine's rates."""

    component: str
    calls: int
    peak: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How a request is met: which components stay loaded, how guidance is called, and what the decoder's tiles are.

    `together`: the guided and the free prediction in one call. `tiling` is None where the plane is decoded at once.
    Those `streamed` are loaded part by part in each call, and the value says whether the next part is loaded ahead.
    """

    machine: str
    budget: int | None
    keep: tuple[str, ...]
    together: bool
    tiling: Tiling | None
    phases: tuple[Phase, ...]
    streamed: dict[str, bool] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Return the most bytes beside those of the idle process."""
        return max(phase.peak for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Return the time of the request, by the machine's rates."""
        return sum(phase.seconds for phase in self.phases)


def plan(content: Manifest, wanted: Wanted, machine: Machine, budget: int | None) -> Plan:
    """Return the plan of a bundle that draws pictures; `budget` in bytes; the machine's memory bounds it.

    Raises BudgetError where no way fits; it names the smallest budget for which one does.
    """
    size = (wanted.width, wanted.height)
    return chosen(content, list(_ways(content, wanted, machine, budget)), limit_of(machine, budget), size)


def free(content: Manifest, wanted: Wanted, machine: Machine) -> Plan:
    """Return what a request takes without a budget: every component stays loaded, and works on whole planes."""
    return freest(_ways(content, wanted, machine, None))


def freest(ways: Iterable[Plan]) -> Plan:
    """Return the way that saves nothing."""
    return max(ways, key=lambda way: (way.tiling is None, way.together, not way.streamed, len(way.keep)))


def chosen(content: Manifest, ways: list[Plan], limit: int, size: tuple[int, int]) -> Plan:
    """Return the fastest of the ways that fit into `limit` bytes; raises BudgetError where none does.

    `size` is the width and height to speak of.
    """
    fitting = [way for way in ways if way.peak <= limit]
    if not fitting:
        raise _infeasible(content, min(ways, key=lambda way: way.peak), limit, size)

    def costs(way: Plan) -> tuple[float, ...]:
        behind = False in way.streamed.values()
        # What stays loaded costs this request nothing, and the next one may want it
        return way.tiling is not None, round(way.seconds, 9), len(way.streamed), behind, -len(way.keep), way.peak

    return min(fitting, key=costs)


def limit_of(machine: Machine, budget: int | None) -> int:
    """Return the bytes that a plan may take: the budget, but no more than the machine has."""
    return machine.memory if budget is None else min(budget, machine.memory)


def base_of(content: Manifest, machine: Machine) -> int:
    """Return the bytes that are there all along: on a processor the libraries and the tokenizers."""
    if machine.kind != CPU:
        return 0
    tables = sum(content.files[tokenizer.file].bytes for tokenizer in content.tokenizers.values())
    return RUNTIME + ALLOWANCE + TOKENIZER * tables


def held(spec: Component, dims: dict[str, int], machine: Machine, weights: int) -> Held:
    """Return what a component takes at the sizes `dims`, its files of weights having `weights` bytes.

    On a processor that is what was measured at export; without it, and on a GPU, what was counted of the graph.
    """
    if machine.kind == CPU and spec.footprint is not None:
        of = spec.footprint
        return Held(int(SPREAD * of.loading), int(SPREAD * of.loaded), int(SPREAD * of.working.at(dims)))
    cost = spec.cost
    working = 0 if cost is None else int((cost.widened if machine.kind == CPU else cost.activations).at(dims))
    if machine.kind == CPU:  # ONNX Runtime computes in fp32, and packs what it can
        wide = weights if spec.precision == "int8" else 4 * spec.parameters
        return Held(int(1.35 * wide), int(1.1 * wide), working)
    return Held(weights, weights, working)


def _ways(content: Manifest, wanted: Wanted, machine: Machine, budget: int | None) -> Iterator[Plan]:
    of = find(content)
    used = [name for name in content.components if name.startswith("text_encoder")]
    used += [of.denoiser, "vae_decoder"]
    factor = content.latents.factor
    plane = wanted.height // factor, wanted.width // factor
    tilings = [None, *(Tiling(side, side // 4) for side in TILES if side < max(plane))]
    pixels, latents = 3 * wanted.height * wanted.width, 4 * content.latents.channels * plane[0] * plane[1]
    base = base_of(content, machine) + wanted.count * (pixels + latents)  # which `Model.render` keeps
    split = (True, False) if wanted.guided else (True,)
    for together, tiling in itertools.product(split, tilings):
        turns = {name: _turn(content, name, wanted, machine, together, tiling) for name in used}
        for number in range(len(used) + 1):
            for keep in itertools.combinations(used, number):
                for streamed, taken in streamings(content, turns, keep, machine):
                    phases = tuple(phases_of(taken, keep, wanted.count, machine, base))
                    yield Plan(machine.name, budget, keep, together, tiling, phases, streamed)


def streamings(
    content: Manifest, turns: dict[str, Turn], keep: tuple[str, ...], machine: Machine
) -> Iterator[tuple[dict[str, bool], dict[str, Turn]]]:
    """Yield what may be streamed of the turns, with the turns as they are then: nothing; all that is in parts."""
    yield {}, turns
    cut = [name for name in turns if content.components[name].parts and name not in keep]
    hidden = frozenset(name for name in cut if _is_hidden(turns[name], machine))
    for ahead in dict.fromkeys((hidden, frozenset[str]())) if cut else ():  # one way where nothing is hidden
        taken = turns | {name: streamed_turn(turns[name], machine, name in ahead) for name in cut}
        yield {name: name in ahead for name in cut}, taken


def _is_hidden(turn: Turn, machine: Machine) -> bool:
    """Return whether calls work long enough for loading ahead to be worth its memory; where not, it hardly occurs."""
    return machine.kind != CPU or turn.flops / machine.flops >= WORTH * turn.weights / machine.loads


def streamed_turn(turn: Turn, machine: Machine, ahead: bool) -> Turn:
    """Return a turn in which each call loads the component part by part."""
    following = [part.loading if ahead else 0 for part in turn.parts[1:]]
    called = [part.loaded + part.working + more for part, more in zip(turn.parts, [*following, 0], strict=True)]
    crossing = int(CROSSING * turn.held.working)  # waits while the first of two parts loads
    peak = max(*called, *(part.loading + crossing for part in turn.parts)) + (LEFT if machine.kind == CPU else 0)
    return replace(
        turn, held=Held(peak, 0, peak), weights=turn.weights * turn.calls, overlapped=ahead and machine.kind != CPU
    )


def _held_part(part: Part, spec: Component, dims: dict[str, int], machine: Machine, whole: int, beside: int) -> Held:
    """Return what a part takes of a component that works with `whole` bytes, `beside` bytes of arrays included."""
    if machine.kind != CPU:
        return Held(part.bytes, part.bytes, whole)
    working = int((1 + CROSSING) * whole)
    if part.working is not None:
        working = int(SPREAD * part.working.at(dims)) + beside
    if part.loaded:
        return Held(int(SPREAD * part.loading), int(SPREAD * part.loaded), working)
    wide = part.bytes * {"fp16": 2, "bf16": 2}.get(spec.precision, 1)
    return Held(int(1.35 * wide), int(1.1 * wide), working)


@dataclass(frozen=True)
class Turn:
    """A component's work for one picture, or one window of a video: its calls, operations a call, bytes of weights.

    `parts` are what its parts take where it comes in such.
    """

    held: Held
    calls: int
    flops: float
    weights: int
    parts: tuple[Held, ...] = ()
    overlapped: bool = False  # weights are read while others are worked with, which takes no time of the processor


def _turn(
    content: Manifest, name: str, wanted: Wanted, machine: Machine, together: bool, tiling: Tiling | None
) -> Turn:
    """Return one component's work for a picture."""
    dims, calls, beside = dims_of(content, name, wanted.height, wanted.width), 1, 0
    if name == find(content).denoiser:
        dims["batch"] = 2 if wanted.guided and together else 1
        calls = wanted.steps * (2 if wanted.guided and not together else 1)
    elif name == "vae_decoder":
        laid = lay(dims["height"], dims["width"], tiling)
        calls = len(laid)
        dims |= {"height": len(laid[0].rows), "width": len(laid[0].columns)}
        beside = PIXEL * wanted.height * wanted.width if machine.kind == CPU else 0
    elif wanted.guided:
        calls = 2
    return turn_of(content, name, dims, machine, calls, beside)


def dims_of(content: Manifest, name: str, height: int, width: int) -> dict[str, int]:
    """Return the largest dimensions of a component for a picture or a video of that size in pixels."""
    size = (height, width)
    return {base: three[2] for base, three in dimensions(content, name, SizeRange(size, size, size)).items()}


def turn_of(content: Manifest, name: str, dims: dict[str, int], machine: Machine, calls: int, beside: int) -> Turn:
    """Return a component's turn of so many calls at the sizes `dims`, with `beside` bytes of arrays in each."""
    spec = content.components[name]
    weights = sum(content.files[file].bytes for file in spec.weights)
    taken = held(spec, dims, machine, weights)
    flops = 0.0 if spec.cost is None else spec.cost.flops.at(dims)
    whole = taken.working + beside
    parts = tuple(_held_part(part, spec, dims, machine, whole, beside) for part in spec.parts)
    return Turn(replace(taken, working=whole), calls, flops, weights, parts)


def phases_of(
    turns: dict[str, Turn], keep: tuple[str, ...], count: int, machine: Machine, base: int
) -> Iterator[Phase]:
    """Return the phases of components that take turns, one loaded at a time beside those that are kept.

    There are `count` rounds, and `base` bytes are there all along.
    """
    before, kept = 0, sum(turn.held.loaded for name, turn in turns.items() if name in keep)
    for name, turn in turns.items():
        own, stays = turn.held, name in keep
        called = own.loaded + own.working
        first = before + max(own.loading, called)
        later = kept + own.working if stays else kept + max(own.loading, called)
        before += own.loaded if stays else 0
        flops = count * turn.calls * turn.flops
        reading = (1 if stays else count) * turn.weights / machine.loads
        working = flops / machine.flops
        alone = turn.weights / turn.calls / machine.loads  # the first time, which nothing runs beside
        seconds = alone + max(reading, working) if turn.overlapped else reading + working
        yield Phase(name, count * turn.calls, base + max(first, later), flops, seconds)


def _infeasible(content: Manifest, least: Plan, limit: int, size: tuple[int, int]) -> BudgetError:
    worst = max(least.phases, key=lambda phase: phase.peak)
    small = content.components[worst.component].precision == "int8" or worst.component in least.streamed
    sized = "vae" in worst.component or content.video is not None
    if worst.component.startswith("text_encoder") and small:
        knob = "Give that much: no size takes less"
    elif small or sized:
        knob = "Ask for a smaller size, or give that much"
    else:
        knob = f"Quantize the bundle (segue quantize {content.name} -o NEW) or give that much"
    return BudgetError(
        f"{worst.component} takes {mebibytes(worst.peak)} MiB for {size[0]}x{size[1]} px, which is "
        f"{mebibytes(worst.peak - limit)} MiB above the budget of {limit // 2**20} MiB. The smallest budget that "
        f"does is {mebibytes(least.peak)} MiB. {knob}."
    )
