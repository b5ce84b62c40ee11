"""The cost of one component: bytes while it loads, once it is loaded and in a call; operations and seconds.

On a processor the bytes come from the export's measurement. Without one, and on a GPU, they are counted from the graph.
A component is held whole, or each of its calls loads it part by part (streamed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..bundle.families import role_of
from ..bundle.manifest import Component, Manifest, Part
from ..bundle.shapes import SizeRange, dimensions
from .hardware import CPU, Machine

SPREAD = 1.03  # factor on the export's measurement: pages, threads
LEFT = 8 * 2**20  # bytes that fragmentation by the sessions of successive parts leaves behind (5 MiB measured)
CROSSING = 0.15  # share of a call's working bytes that passes between parts, if not measured (0.09 measured)
# Without a budget a call takes more from ONNX Runtime's arena than it works with, because the arena does not join its
# regions: a factor (1.8 to 1.95 measured), and bytes that it keeps between calls
ARENA, REGIONS = 1.95, 12 * 2**20
# Factors on the counted bytes of a GPU: holes between arrays, and the workspace of convolutions (measured with ONNX
# Runtime on an H100: at most 1.5 without convolutions, 2.3 with them)
WORKSPACE, CONVOLUTIONS = 1.5, 2.4
SESSION = 132 * 2**20  # bytes of a GPU that each session takes for cuBLAS and cuDNN (130 MiB measured)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a component: the peak while it loads, once it is loaded, and in addition during a call."""

    loading: int
    loaded: int
    working: int


@dataclass(frozen=True)
class Phase:
    """One component's phase of a request: its calls, operations and seconds by the machine's rates.

    `peak` is the most bytes of the process in the phase, `own` the most bytes of the component itself, and `session`
    the bytes that one of its sessions may take.
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
    """A component's cost for one picture, or for one window of a video; `flops` are operations a call.

    `parts` is the memory of each part, empty if the component has none. `first` is the bytes of the first part's
    weights, and `coming` the bytes that load while another part works. `moved` is the bytes between host and GPU in
    each call without weights, and `waiting` the bytes that stay on the host between calls. `once`: the calls are those
    of the whole request.
    """

    held: MemoryUse
    calls: int
    flops: float
    weights: int
    parts: tuple[MemoryUse, ...] = ()
    overlapped: bool = False  # a part's weights load while another part works, at no cost of processor time
    moved: int = 0
    waiting: int = 0
    first: int = 0
    coming: int = 0
    once: bool = False

    @property
    def peak(self) -> int:
        """Return the most bytes that the component takes at one time."""
        return max(self.held.loading, self.held.loaded + self.held.working)


def held(name: str, spec: Component, dims: dict[str, int], machine: Machine, weights: int) -> MemoryUse:
    """Return the memory of component `name` at the sizes `dims`; its weight files have `weights` bytes."""
    if machine.kind == CPU and spec.footprint is not None:
        measured = spec.footprint
        return MemoryUse(
            int(SPREAD * measured.loading), int(SPREAD * measured.loaded), int(SPREAD * measured.working.at(dims))
        )
    cost = spec.cost
    if machine.kind != CPU:
        more = CONVOLUTIONS if role_of(name).convolutional else WORKSPACE
        loaded = _placed(weights)
        return MemoryUse(loaded, loaded, 0 if cost is None else int(more * cost.activations.at(dims)))
    working = 0 if cost is None else int(cost.widened.at(dims))
    wide = weights if spec.precision == "int8" else 4 * spec.parameters  # ONNX Runtime computes in fp32 and packs
    return MemoryUse(int(1.45 * wide), int(1.2 * wide), int(1.1 * working))


def _placed(weights: int) -> int:
    """Return the bytes of a GPU that a session takes for weights of that size.

    CUDA allocates blocks of 2 MiB, and tensors do not fill them. Measured: a third more for small models, 8 % more for
    SD3-Medium's transformer.
    """
    return SESSION + weights + min(weights // 3, 80 * 2**20 + weights // 10)


def streamed_cost(cost: ComponentCost, machine: Machine, ahead: bool) -> ComponentCost:
    """Return the cost if each call loads the component part by part; `ahead` loads the next part early."""
    following = [part.loading if ahead else 0 for part in cost.parts[1:]]
    called = [part.loaded + part.working + more for part, more in zip(cost.parts, [*following, 0], strict=True)]
    crossing = int(CROSSING * cost.held.working)  # kept while the next part loads
    peak = max(*called, *(part.loading + crossing for part in cost.parts)) + (LEFT if machine.kind == CPU else 0)
    return replace(
        cost, held=MemoryUse(peak, 0, peak), weights=cost.weights * cost.calls,
        overlapped=ahead and machine.kind != CPU, coming=max(following, default=0),
    )  # fmt: skip


def pooled_cost(cost: ComponentCost) -> ComponentCost:
    """Return the cost if the component works in the arena of the processor, as it does without a budget."""
    return replace(cost, held=replace(cost.held, working=int(ARENA * cost.held.working) + REGIONS))


def _held_part(
    part: Part, spec: Component, dims: dict[str, int], machine: Machine, whole: int, beside: int
) -> MemoryUse:
    """Return the memory of one part. The whole component works with `whole` bytes, including `beside` of arrays."""
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
    """Return a component's largest dimensions for a picture or a video of that size in pixels."""
    size = (height, width)
    return {base: three[2] for base, three in dimensions(content, name, SizeRange(size, size, size)).items()}


def cost_of(
    content: Manifest, name: str, dims: dict[str, int], machine: Machine, calls: int, beside: int
) -> ComponentCost:
    """Return the cost of `calls` calls of a component at the sizes `dims`, each with `beside` bytes of arrays."""
    spec = content.components[name]
    weights = content.weight_bytes(name)
    taken = held(name, spec, dims, machine, weights)
    flops = 0.0 if spec.cost is None else spec.cost.flops.at(dims)
    whole = taken.working + beside
    parts = tuple(_held_part(part, spec, dims, machine, whole, beside) for part in spec.parts)
    first = spec.parts[0].bytes if spec.parts else 0
    return ComponentCost(replace(taken, working=whole), calls, flops, weights, parts, first=first)


def phases_of(
    costs: dict[str, ComponentCost], keep: tuple[str, ...], count: int, machine: Machine, base: int
) -> Iterator[Phase]:
    """Yield the phase of each component; one is loaded at a time, in addition to those in `keep`.

    There are `count` rounds (one for a component that works `once`), and `base` bytes are always taken.
    """
    before, kept = 0, sum(cost.held.loaded for name, cost in costs.items() if name in keep)
    rounds = count
    for name, cost in costs.items():
        count = 1 if cost.once else rounds
        own, stays = cost.held, name in keep
        called = own.loaded + own.working
        first = before + max(own.loading, called)
        later = kept + own.working if stays else kept + max(own.loading, called)
        before += own.loaded if stays else 0
        flops = count * cost.calls * cost.flops
        reading = (1 if stays else count) * cost.weights / machine.loads
        working = flops / machine.flops + count * cost.calls * cost.moved / machine.moves
        seconds = reading + working
        if cost.overlapped:  # loading hides behind work, except each call's first part; never faster than held whole
            alone = count * cost.calls * cost.first / machine.loads
            once = count * cost.weights / cost.calls / machine.loads
            seconds = max(alone + max(reading - alone, working), once + working)
        session = cost.peak - cost.coming - (SESSION if machine.kind != CPU else 0)
        yield Phase(name, count * cost.calls, base + max(first, later), cost.peak, session, flops, seconds)
