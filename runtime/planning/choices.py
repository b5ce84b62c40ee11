"""What a plan chooses from: tilings of a plane, and which components are streamed part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..bundle.manifest import Manifest
from ..sampling.tiles import Tiling, efficient_tilings
from .costs import ComponentCost, streamed_cost
from .hardware import CPU, Machine

WORTH = 0.5  # share of the loading time: parts that work for less are not loaded ahead, because they hide too little
OVERLAP, LEAST = 8, 24  # latent pixels on a GPU: the overlap of tiles, and a tile's shortest side


def tilings_of(height: int, width: int, sides: Sequence[int], machine: Machine) -> list[Tiling | None]:
    """Return the tilings of a plane of latents that a plan chooses from; None is the whole plane.

    They are squares of `sides` on a processor, and on a GPU the tilings that repeat the least work for their size.
    """
    if machine.kind == CPU:
        return [None, *(Tiling(side, side // 4) for side in sides if side < max(height, width))]
    return [None, *efficient_tilings(height, width, OVERLAP, LEAST)]


def streamings(
    content: Manifest, costs: dict[str, ComponentCost], keep: tuple[str, ...], machine: Machine
) -> Iterator[tuple[dict[str, bool], dict[str, ComponentCost]]]:
    """Yield the components to stream (the value: whether the next part loads ahead), and the resulting costs.

    On a processor, nothing is streamed, or every component with parts. On a GPU, each bound on the bytes gives one
    choice: the components that exceed it when held whole.
    """
    yield {}, costs
    cut = [name for name in costs if content.components[name].parts and name not in keep]
    if machine.kind != CPU:
        yield from _bounded(costs, cut, machine)
        return
    hidden = frozenset(name for name in cut if _is_hidden(costs[name], machine))
    for ahead in dict.fromkeys((hidden, frozenset[str]())) if cut else ():  # one choice if `hidden` is empty
        taken = costs | {name: streamed_cost(costs[name], machine, name in ahead) for name in cut}
        yield {name: name in ahead for name in cut}, taken


def _bounded(
    costs: dict[str, ComponentCost], cut: list[str], machine: Machine
) -> Iterator[tuple[dict[str, bool], dict[str, ComponentCost]]]:
    """For each bound on the bytes, yield the components of `cut` that exceed it, to stream, and the resulting costs.

    The next part loads ahead if the component then stays within the bound. For every budget, one of these choices
    streams only the components that must be streamed.
    """
    streams = {name: [streamed_cost(costs[name], machine, ahead) for ahead in (True, False)] for name in cut}
    bounds = {cost.peak for name in cut for cost in (costs[name], *streams[name])}
    for bound in sorted(bounds, reverse=True):
        large = [name for name in cut if costs[name].peak > bound]
        ahead = {name: streams[name][0].peak <= bound for name in large}
        if large:
            yield ahead, costs | {name: streams[name][0 if ahead[name] else 1] for name in large}


def _is_hidden(cost: ComponentCost, machine: Machine) -> bool:
    """Return whether calls work long enough that loading ahead is worth its memory."""
    return cost.flops / machine.flops >= WORTH * cost.weights / machine.loads
