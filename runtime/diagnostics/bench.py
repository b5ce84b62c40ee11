"""Time a bundle on this machine: per component, per picture, and as a share of the machine's peak."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from ...engines.ort.engine import default_threads
from ...engines.process import peak_resident
from ...engines.targets import DEFAULT
from ...errors import UsageError
from ..bundle import reader as bundles
from ..bundle.families import family_of
from ..components import OnCall
from ..notices import silent
from ..pipeline import Model, open_model
from ..planning.costs import dims_of
from ..request import Request, prepare
from ..worker_process import one_worker

MATRIX = 2048  # side of the matrix product that measures the peak


@dataclass(frozen=True)
class Spread:
    """A spread of times in seconds: the median, and the tenth and ninetieth percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value or more."""
        low, median, high = np.quantile(np.asarray(values, np.float64), (0.1, 0.5, 0.9)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Stage:
    """One component in one picture: its calls, the time and operations of one call, and its share of the peak.

    `device_bytes` is the device memory that it holds after the pictures.
    """

    component: str
    calls: int
    seconds: Spread
    flops: float | None  # None if the bundle does not state it
    share: float | None  # None also if a GPU computes
    device_bytes: int | None  # None if the engine does not report it; ONNX Runtime does not


@dataclass(frozen=True)
class Bench:
    """The measurements: whole pictures, their stages, the first picture (with loading), the peak in operations/s."""

    bundle: str
    target: str
    threads: int
    repeats: int
    picture: Spread
    first: float
    stages: tuple[Stage, ...]
    peak: float
    versions: dict[str, str]


def bench(
    name: str, request: Request, repeats: int = 10, threads: int | None = None, target: str = DEFAULT,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Bench:  # fmt: skip
    """Render `request`, for one picture, `repeats` times after a first one that does not count; time every call.

    The peak is the best of five fp32 matrix products of numpy in this process, on all its cores, before and after. It
    is a measured rate, not the maker's figure. Raises UsageError for bundles of videos.
    """
    from importlib.metadata import version

    opened = bundles.read(name)
    if opened.manifest.video is not None:
        raise UsageError(f"{name} makes videos; segue bench times pictures.", "Name a bundle that draws pictures.")
    if repeats < 2:
        raise UsageError(f"repeats must be 2 or more, got {repeats}.", "Ask for 2 or more.")
    calls: list[tuple[str, float]] = []
    watch = _watch(calls)
    peak = _peak()
    with Model(opened, threads, target, watch) as model, silent():
        started = time.perf_counter()
        model.render(request)
        first = time.perf_counter() - started
        whole, by_component = [], defaultdict(list)
        for number in range(repeats):
            model.forget()  # with a remembered prompt the encoders would not run
            calls.clear()
            calls.append(("", time.perf_counter()))
            model.render(request)
            whole.append(time.perf_counter() - calls[0][1])
            for (_, before), (component, now) in itertools.pairwise(calls):
                by_component[component].append(now - before)
            report(number + 1, repeats)
        held = {component: model.device_bytes(component) for component in by_component}
    peak = max(peak, _peak())
    prepared, denoiser = prepare(request, opened.manifest), family_of(opened.manifest).denoiser
    stages = []
    for component, times in by_component.items():
        spread, spec = Spread.of(times), opened.manifest.components[component]
        dims = dims_of(opened.manifest, component, prepared.height, prepared.width)
        if "batch" in dims:
            dims["batch"] = 2 if prepared.guided and component == denoiser else 1
        flops = None if spec.cost is None else spec.cost.flops.at(dims)
        share = None if flops is None or target != DEFAULT else flops / spread.median / peak
        stages.append(Stage(component, len(times) // repeats, spread, flops, share, held[component]))
    versions = {package: version(package) for package in ("segue", "onnxruntime", "numpy")}
    return Bench(
        opened.manifest.name, target, threads or default_threads(), repeats, Spread.of(whole), first, tuple(stages),
        peak, versions,
    )  # fmt: skip


def _watch(calls: list[tuple[str, float]]) -> OnCall:
    def on_call(component: str, feeds: dict[str, Any], found: dict[str, Any]) -> None:
        calls.append((component, time.perf_counter()))

    return on_call


def _peak() -> float:
    """Return the fp32 operations per second of numpy's matrix product, the best of five."""
    one = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(times)


@dataclass(frozen=True)
class Drawn:
    """A picture from a separate process: uint8 [height, width, 3], seconds, and the peak of its memory in bytes."""

    image: np.ndarray
    seconds: float
    memory: int


class BundleProcess:
    """A bundle in a separate process, so that `draw` measures only its time and memory."""

    def __init__(self, bundle: str, threads: int | None, target: str = DEFAULT) -> None:
        self._pool = one_worker(_open_bundle, (bundle, threads, target))

    def draw(
        self, prompt: str, seed: int, size: tuple[int, int] | None, steps: int | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Drawn:  # fmt: skip
        """Draw one picture; `size` is (height, width), and `inputs` are further arguments of `Request`."""
        return self._pool.submit(_paint, prompt, seed, size, steps, dict(inputs or {})).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


_model: Model | None = None
_idle = 0


def _open_bundle(bundle: str, threads: int | None, target: str) -> None:
    global _model, _idle
    _idle = int(psutil.Process().memory_info().rss)
    _model = open_model(bundle, threads, target=target)


def _paint(prompt: str, seed: int, size: tuple[int, int] | None, steps: int | None, inputs: dict[str, Any]) -> Drawn:
    assert _model is not None
    started = time.perf_counter()
    with silent():
        image = _model.generate(prompt, seed=seed, size=size, steps=steps, **inputs)
    return Drawn(image, time.perf_counter() - started, peak_resident() - _idle)
