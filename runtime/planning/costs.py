"""What one component's work takes: bytes while it loads, from then on and in a call, operations and seconds.

On a processor bytes are those that were measured at export; without a measurement, and on a GPU, what was counted of
the graph. A component may be held whole, or loaded part by part in each of its calls (streamed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..bundle.families import role_of
from ..bundle.manifest import Component, Manifest, Part
from ..bundle.shapes import SizeRange, dimensions
from .hardware import CPU, Machine

SPREAD = 1.03  # of what was measured at export: pages, threads
LEFT = 8 * 2**20  # bytes that parts leave behind between them: what many sessions one after another fragment (5 seen)
CROSSING = 0.15  # of what a call works with: what crosses between parts where that was not measured (0.09 was)
# Of what was counted for a GPU: holes between arrays, and the workspace of convolutions (at most 2.3, without them 1.5,
# measured with ONNX Runtime on an H100)
WORKSPACE, CONVOLUTIONS = 1.5, 2.4
SESSION = 132 * 2**20  # bytes of a GPU that each session takes for cuBLAS and cuDNN (130 measured)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a component takes: at most while it loads, from then on, and beside that in a call."""

    loading: int
    loaded: int
    working: int


@dataclass(frozen=True)
class Phase:
    """One component's cost: its calls, the most bytes of the process in it, and seconds by the machine's rates.

    `own` are the most bytes that the component itself takes, and `session` those that one session of it may ask for.
    """

    component: str
    calls: int
    peak: int
    own: int
    session: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class ComponentCost:
    """A component's work for one picture, or one window of a video: its calls, operations a call, bytes of weights.

    `parts` are what its parts take where it comes in such, and `first` the bytes of the first one's weights; `coming`
    is what loads while a part works. `moved` are bytes between host and GPU in each call, beside weights, and `waiting`
    those that stay on the host between calls.
    """

    held: MemoryUse
    calls: int
    flops: float
    weights: int
    parts: tuple[MemoryUse, ...] = ()
    overlapped: bool = False  # weights are read while others are worked with, which takes no time of the processor
    moved: int = 0
    waiting: int = 0
    first: int = 0
    coming: int = 0

    @property
    def peak(self) -> int:
        """Return the most bytes that it takes at one time."""
        return max(self.held.loading, self.held.loaded + self.held.working)


def held(name: str, spec: Component, dims: dict[str, int], machine: Machine, weights: int) -> MemoryUse:
    """Return what the component `name` takes at the sizes `dims`, its files of weights having `weights` bytes.

    On a processor that is what was measured at export; without it, and on a GPU, what was counted of the graph.
    """
    if machine.kind == CPU and spec.footprint is not None:
        of = spec.footprint
        return MemoryUse(int(SPREAD * of.loading), int(SPREAD * of.loaded), int(SPREAD * of.working.at(dims)))
    cost = spec.cost
    if machine.kind != CPU:
        more = CONVOLUTIONS if role_of(name).convolutional else WORKSPACE
        loaded = _placed(weights)
        return MemoryUse(loaded, loaded, 0 if cost is None else int(more * cost.activations.at(dims)))
    working = 0 if cost is None else int(cost.widened.at(dims))
    wide = weights if spec.precision == "int8" else 4 * spec.parameters  # ONNX Runtime computes in fp32, and packs
    return MemoryUse(int(1.45 * wide), int(1.2 * wide), int(1.1 * working))


def _placed(weights: int) -> int:
    """Return the bytes of a GPU that a session with so many bytes of weights takes.

    CUDA gives memory in blocks of 2 MiB, which tensors do not fill: a third more was measured of small models, 8 % of
    SD3-Medium's transformer.
    """
    return SESSION + weights + min(weights // 3, 80 * 2**20 + weights // 10)


def streamed_cost(cost: ComponentCost, machine: Machine, ahead: bool) -> ComponentCost:
    """Return a cost in which each call loads the component part by part."""
    following = [part.loading if ahead else 0 for part in cost.parts[1:]]
    called = [part.loaded + part.working + more for part, more in zip(cost.parts, [*following, 0], strict=True)]
    crossing = int(CROSSING * cost.held.working)  # waits while the first of two parts loads
    peak = max(*called, *(part.loading + crossing for part in cost.parts)) + (LEFT if machine.kind == CPU else 0)
    return replace(
        cost, held=MemoryUse(peak, 0, peak), weights=cost.weights * cost.calls, overlapped=ahead and machine.kind != CPU,
        coming=max(following, default=0),
    )  # fmt: skip


def _held_part(
    part: Part, spec: Component, dims: dict[str, int], machine: Machine, whole: int, beside: int
) -> MemoryUse:
    """Return what a part takes of a component that works with `whole` bytes, `beside` bytes of arrays included."""
    if machine.kind != CPU:
        return MemoryUse(_placed(part.bytes), _placed(part.bytes), whole)
    working = int((1 + CROSSING) * whole)
    if part.working is not None:
        working = int(SPREAD * part.working.at(dims)) + beside
    if part.loaded:
        return MemoryUse(int(SPREAD * part.loading), int(SPREAD * part.loaded), working)
    wide = part.bytes * {"fp16": 2, "bf16": 2}.get(spec.precision, 1)
    return MemoryUse(int(1.35 * wide), int(1.1 * wide), working)


def dims_of(content: Manifest, name: str, height: int, width: int) -> dict[str, int]:
    """Return the largest dimensions of a component for a picture or a video of that size in pixels."""
    size = (height, width)
    return {base: three[2] for base, three in dimensions(content, name, SizeRange(size, size, size)).items()}


def cost_of(
    content: Manifest, name: str, dims: dict[str, int], machine: Machine, calls: int, beside: int
) -> ComponentCost:
    """Return a component's cost of so many calls at the sizes `dims`, with `beside` bytes of arrays in each."""
    spec = content.components[name]
    weights = sum(content.files[file].bytes for file in spec.weights)
    taken = held(name, spec, dims, machine, weights)
    flops = 0.0 if spec.cost is None else spec.cost.flops.at(dims)
    whole = taken.working + beside
    parts = tuple(_held_part(part, spec, dims, machine, whole, beside) for part in spec.parts)
    first = spec.parts[0].bytes if spec.parts else 0
    return ComponentCost(replace(taken, working=whole), calls, flops, weights, parts, first=first)


def phases_of(
    costs: dict[str, ComponentCost], keep: tuple[str, ...], count: int, machine: Machine, base: int
) -> Iterator[Phase]:
    """Return the phases of components that take costs, one loaded at a time beside those that are kept.

    There are `count` rounds, and `base` bytes are there all along.
    """
    before, kept = 0, sum(cost.held.loaded for name, cost in costs.items() if name in keep)
    for name, cost in costs.items():
        own, stays = cost.held, name in keep
        called = own.loaded + own.working
        first = before + max(own.loading, called)
        later = kept + own.working if stays else kept + max(own.loading, called)
        before += own.loaded if stays else 0
        flops = count * cost.calls * cost.flops
        reading = (1 if stays else count) * cost.weights / machine.loads
        working = flops / machine.flops + count * cost.calls * cost.moved / machine.moves
        seconds = reading + working
        if cost.overlapped:  # but for each call's first part; and no faster than whole, which need not be streamed
            alone = count * cost.calls * cost.first / machine.loads
            once = count * cost.weights / cost.calls / machine.loads
            seconds = max(alone + max(reading - alone, working), once + working)
        session = cost.peak - cost.coming - (SESSION if machine.kind != CPU else 0)
        yield Phase(name, count * cost.calls, base + max(first, later), cost.peak, session, flops, seconds)
