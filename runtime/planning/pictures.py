"""Plan the memory of pictures, phase by phase, before anything is loaded, so that they stay within a budget.

A plan is a pure function of bundle, request, machine and budget. It is the fastest candidate that fits. Among
equals, it keeps the most loaded for the next request. Every candidate gives the same picture, except with tiles.
A plan uses tiles only if nothing else fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ...errors import BudgetError
from ..bundle import families
from ..bundle.families import Kind, family_of, role_of
from ..bundle.manifest import STEP, Manifest
from ..sampling.tiles import Tiling, make_tiles
from ..units import mebibytes
from .choices import streamings, tilings_of
from .costs import SESSION, ComponentCost, Phase, cost_of, dims_of, phases_of, pooled_cost
from .hardware import CPU, Machine

# Bytes of the libraries and of the first session of a process. Measured: 69 to 71 MiB, by the system's allocator
RUNTIME = 73 * 2**20
# Bytes in memory for each byte of a tokenizer's file (measured: 13.3 for BPE, 36.3 for Unigram), and the bytes that
# RUNTIME includes of that, because it was measured with CLIP's two tokenizers
TOKENIZER, UNIGRAM, INCLUDED = 14, 38, 31 * 2**20
NAMES = 10  # bytes in memory for each byte of prompts.json (9.2 measured)
THREAD = 2**16  # bytes of each thread of a session (45 kB measured)
ALLOWANCE = 4 * 2**20  # bytes that the allocator keeps
FITTING = 2 * 2**20  # bytes of Pillow that crop and scale given pictures (1.3 MiB measured)
INPUT = 24  # bytes of an input picture's pixel: three bytes, three floats, and the mask twice
PIXEL = 64  # bytes of a picture's pixel outside the decoder: tiles, scaled and rounded copies (39 measured)
HELPS = 0.9  # share of the needed bytes: advice names a smaller size only if it takes no more than this
# Latent pixels of a tile's side on a processor; a quarter overlaps. Smaller tiles are visible: 39 dB with 16
TILES = (64, 48, 32, 24)
# Bytes of CUDA, cuBLAS and cuDNN on a GPU without sessions: with the kernels of pictures (565 to 631 MiB measured on an
# H100), and with the kernels of videos (about 740 MiB)
CONTEXT, VIDEO_CONTEXT = 640 * 2**20, 760 * 2**20
HOST = 3 * 2**29  # bytes of the host for CUDA's libraries and for weights in transfer (0.9 to 1.35 GiB measured)


@dataclass(frozen=True)
class Wanted:
    """The part of a request that memory depends on: `count` pictures of one size.

    `given`: it begins with a picture. `references` are the sizes (height, width) of its reference pictures.
    """

    height: int  # pixels
    width: int
    steps: int
    guided: bool
    count: int = 1
    given: bool = False
    references: tuple[tuple[int, int], ...] = ()

    @property
    def encoded(self) -> tuple[tuple[int, int], ...]:
        """Return the size (height, width) of each picture that is encoded."""
        return (*([(self.height, self.width)] if self.given else []), *self.references)


@dataclass(frozen=True)
class Plan:
    """How a request stays within the memory.

    - `keep`: the components that stay loaded.
    - `together`: one call makes the negative and the positive prediction.
    - `tiling`: the tiles of decoder and encoder. None: they work on the plane at once.
    - `streamed`: the components that each call loads part by part. The value says whether the next part loads ahead.
    - `host`: bytes of host memory that a plan for a GPU takes in addition; 0 on a processor.
    - `previews`: the bundle's small decoder stays loaded beside the denoiser, for previews.
    """

    machine: str
    budget: int | None
    keep: tuple[str, ...]
    together: bool
    tiling: Tiling | None
    phases: tuple[Phase, ...]
    streamed: dict[str, bool] = field(default_factory=dict)
    host: int = 0
    previews: bool = False

    @property
    def peak(self) -> int:
        """Return the most bytes in addition to those of the idle process."""
        return max(phase.peak for phase in self.phases)

    @property
    def limits(self) -> dict[str, int]:
        """Return the bytes that a session of each component may take: its own, and what its phase leaves free."""
        if self.budget is None:
            return {}
        return {phase.component: phase.session + max(self.budget - phase.peak, 0) for phase in self.phases}

    @property
    def seconds(self) -> float:
        """Return the time of the request by the machine's rates."""
        return sum(phase.seconds for phase in self.phases)


def plan(content: Manifest, wanted: Wanted, machine: Machine, budget: int | None) -> Plan:
    """Return the plan of a picture bundle; the limit is `budget` in bytes, and at most the machine's memory.

    Raises BudgetError if no candidate fits; it names the smallest budget that is enough.
    """

    def candidates(height: int, width: int) -> Iterator[Plan]:
        return _candidates(content, replace(wanted, height=height, width=width), machine, budget)

    return best_plan(content, candidates, machine, budget, (wanted.height, wanted.width))


def unbounded_plan(content: Manifest, wanted: Wanted, machine: Machine) -> Plan:
    """Return the plan without a budget: every component stays loaded and works on whole planes."""
    return unbounded_candidate(_candidates(content, wanted, machine, None), content, machine)


def usual_plan(whole: Plan, machine: Machine, budget: int | None, make: Callable[[int | None], Plan]) -> Plan:
    """Return the plan of a run: `whole` if there is no budget and it fits, else the best one, `make(budget)`.

    If `whole` does not fit into a processor's memory, the plan has all memory as its budget.
    """
    if budget is None and whole.peak <= machine.memory:
        return whole
    return make(machine.memory if budget is None and machine.kind == CPU else budget)


def unbounded_candidate(candidates: Iterable[Plan], content: Manifest, machine: Machine) -> Plan:
    """Return the candidate that saves nothing; on a GPU each component's arena keeps its working memory."""
    candidate = max(candidates, key=lambda one: (one.tiling is None, one.together, not one.streamed, len(one.keep)))
    if machine.kind == CPU:
        return candidate
    held, phases = base_of(content, machine) + step_bytes(content, (), machine), []
    for phase in candidate.phases:
        phases.append(replace(phase, peak=held + phase.own))
        held += phase.own if phase.component in candidate.keep else 0
    return replace(candidate, phases=tuple(phases))


def best_plan(
    content: Manifest, candidates: Callable[[int, int], Iterable[Plan]], machine: Machine, budget: int | None,
    size: tuple[int, int],
) -> Plan:  # fmt: skip
    """Return the fastest candidate for `size` (height, width) that fits; raises BudgetError if none does."""
    limit, found = limit_of(machine, budget), list(candidates(*size))
    fitting = [candidate for candidate in found if candidate.peak <= limit]
    if not fitting:
        least = min(found, key=lambda candidate: candidate.peak)
        half = _half(content, size)
        smaller = None if half is None else (half, min(candidate.peak for candidate in candidates(*half)))
        raise _infeasible(content, least, machine, limit, size, smaller)

    def rank(candidate: Plan) -> tuple[float, ...]:
        not_ahead = False in candidate.streamed.values()
        # A component that stays loaded costs this request nothing, and the next request may need it
        return (
            candidate.tiling is not None, round(candidate.seconds, 9), len(candidate.streamed), not_ahead,
            -len(candidate.keep), candidate.peak,
        )  # fmt: skip

    return min(fitting, key=rank)


def limit_of(machine: Machine, budget: int | None) -> int:
    """Return the bytes that a plan may take: the budget, and at most the machine's memory."""
    return machine.memory if budget is None else min(budget, machine.memory)


def base_of(content: Manifest, machine: Machine) -> int:
    """Return the bytes that are always taken: by libraries, and on a processor also by tokenizers and names."""
    if machine.kind == CPU:
        return RUNTIME + ALLOWANCE + _texts(content)
    return CONTEXT if content.video is None else VIDEO_CONTEXT


def step_bytes(content: Manifest, streamed: Collection[str], machine: Machine) -> int:
    """Return the bytes of the Euler step's graph: it is loaded on a GPU if its denoiser is not streamed."""
    denoisers = {name.removesuffix(STEP) for name in content.components if name.endswith(STEP)}
    return SESSION if machine.kind != CPU and denoisers - set(streamed) else 0


def host_of(content: Manifest, machine: Machine, arrays: int) -> int:
    """Return the bytes of host memory of a request on a GPU, including `arrays`; 0 on a processor."""
    return 0 if machine.kind == CPU else HOST + _texts(content) + arrays


def _texts(content: Manifest) -> int:
    names = NAMES * content.files[content.prompts].bytes if content.prompts else 0
    taken = sum(
        (UNIGRAM if (content.family, name) in families.UNIGRAM else TOKENIZER) * content.files[tokenizer.file].bytes
        for name, tokenizer in content.tokenizers.items()
    )
    return max(taken - INCLUDED, 0) + names


def _candidates(content: Manifest, wanted: Wanted, machine: Machine, budget: int | None) -> Iterator[Plan]:
    used = families.picked(content.components, Kind.ENCODER) if wanted.encoded else []
    used += families.picked(content.components, Kind.TEXT)
    used += [family_of(content).denoiser, *families.picked(content.components, Kind.DECODER)]
    factor = content.latents.factor
    plane = wanted.height // factor, wanted.width // factor
    # The host holds the results, which `Model.render` keeps and stacks, and torch's noise
    pixels, latents = 3 * wanted.height * wanted.width, 4 * content.latents.channels * plane[0] * plane[1]
    results = wanted.count * (2 * pixels + 3 * latents)
    # Pictures as bytes and as the encoder takes them, a mask, and latents that stay during the run
    results += sum(INPUT * rows * columns for rows, columns in wanted.encoded) + (3 * latents if wanted.given else 0)
    results += FITTING if wanted.encoded else 0
    base = base_of(content, machine) + (results if machine.kind == CPU else 0)
    host = host_of(content, machine, results + PIXEL * wanted.height * wanted.width)
    apart = families.one_by_one(content)
    split = ((False,) if apart else (True, False)) if wanted.guided else (True,)
    for together, tiling in itertools.product(split, tilings_of(*plane, TILES, machine)):
        costs = {name: _cost(content, name, wanted, machine, together, tiling) for name in used}
        if budget is None and machine.kind == CPU:
            costs = {name: pooled_cost(cost) for name, cost in costs.items()}
        for number in range(len(used) + 1):
            for keep in itertools.combinations(used, number):
                for streamed, taken in streamings(content, costs, keep, machine):
                    there = base + step_bytes(content, streamed, machine) + THREAD * machine.threads * (len(keep) + 2)
                    phases = tuple(phases_of(taken, keep, wanted.count, machine, there))
                    yield Plan(machine.name, budget, keep, together, tiling, phases, streamed, host)


def _cost(
    content: Manifest, name: str, wanted: Wanted, machine: Machine, together: bool, tiling: Tiling | None
) -> ComponentCost:
    """Return one component's cost for a picture."""
    dims, calls, beside = dims_of(content, name, wanted.height, wanted.width), 1, 0
    if role_of(name).kind is Kind.ENCODER:
        rows, columns = max(wanted.encoded, key=math.prod)
        factor = content.latents.factor
        tiles = make_tiles(rows // factor, columns // factor, tiling)
        dims = dims_of(content, name, factor * len(tiles[0].rows), factor * len(tiles[0].columns))
        waiting = 8 * content.latents.channels * rows * columns // factor**2  # mean and variance of all tiles
        cost = cost_of(content, name, dims, machine, len(tiles) * len(wanted.encoded), waiting)
        return replace(cost, once=True)
    if role_of(name).kind is Kind.DENOISER:
        dims["batch"] = 2 if wanted.guided and together else 1
        if "references" in dims:
            unit = content.latents.factor * content.latents.patch
            dims["references"] = sum(rows * columns for rows, columns in wanted.references) // unit**2
        calls = wanted.steps * (2 if wanted.guided and not together else 1)
    elif role_of(name).kind is Kind.DECODER:
        tiles = make_tiles(dims["height"], dims["width"], tiling)
        calls = len(tiles)
        dims |= {"height": len(tiles[0].rows), "width": len(tiles[0].columns)}
        beside = PIXEL * wanted.height * wanted.width if machine.kind == CPU else 0
    elif wanted.guided:
        calls = 2
    return cost_of(content, name, dims, machine, calls, beside)


def _half(content: Manifest, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return half the sides of a picture; None if the bundle does not draw that size."""
    multiple = content.sizes.multiple
    height, width = (side // 2 // multiple * multiple for side in size)
    return (height, width) if min(height, width) >= max(content.sizes.minimum, multiple) else None


def _infeasible(
    content: Manifest, least: Plan, machine: Machine, limit: int, size: tuple[int, int],
    smaller: tuple[tuple[int, int], int] | None,
) -> BudgetError:  # fmt: skip
    """Return the error for `size` (height, width); `smaller` is a smaller size and the bytes that it takes."""
    worst = max(least.phases, key=lambda phase: phase.peak)
    spec = content.components[worst.component]
    sixteen = machine.kind == CPU and content.video is None and spec.precision in ("fp32", "fp16", "bf16")
    if smaller is not None and smaller[1] <= HELPS * least.peak:
        (height, width), peak = smaller
        knob = f"Ask for a smaller size ({width}x{height} takes {mebibytes(peak)} MiB), or give that much"
    elif sixteen and worst.component not in least.streamed:
        knob = f"Quantize the bundle (segue quantize {content.name} -o NEW) or give that much"
    else:
        knob = "Give that much: half the size takes almost as much"
    whose = f"the memory of {machine.name}," if limit == machine.memory else "the budget of"
    return BudgetError(
        f"{worst.component} takes {mebibytes(worst.peak)} MiB for {size[1]}x{size[0]} px, which is "
        f"{mebibytes(worst.peak - limit)} MiB above {whose} {limit // 2**20} MiB. The smallest budget that is enough "
        f"is {mebibytes(least.peak)} MiB.",
        advice=f"{knob}.",
        needed=least.peak,
    )
