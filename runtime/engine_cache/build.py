"""Build the engines of a bundle's components, one after another, into the user's cache."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from dataclasses import dataclass

from ...engines import devices
from ...engines.targets import Target, find_target, load
from ...engines.tensorrt import build as tensorrt_build
from ...engines.tensorrt.child import build_apart
from ...errors import EngineError, UsageError
from ..bundle import manifest
from ..bundle.reader import Bundle
from ..bundle.shapes import SizeRange, default_range, profiles
from . import store, upkeep
from .store import Entry, Fingerprint, Made

RECIPE = 1


@dataclass(frozen=True)
class BuildRequest:
    """What engines are built for.

    `capabilities` are tenfold compute capabilities, such as 89 (TensorRT-RTX: at least one; TensorRT: none). Each of
    `ranges` becomes a profile; an empty tuple means the bundle's own range. `components` None means all. `budget`
    bounds the weights and the builder's scratch memory of each engine, in bytes. If the weights leave less than a
    quarter of it, they get half, and the other weights stay in host memory. `guided` makes room for guidance in a
    bundle whose default is no guidance.
    """

    target: str
    capabilities: tuple[int, ...] = ()
    ranges: tuple[SizeRange, ...] = ()
    components: tuple[str, ...] | None = None
    budget: int | None = None
    guided: bool = False


@dataclass(frozen=True)
class BuildEvent:
    """Progress of one component: `done` of `total` steps of the builder's `phase`.

    `before` is the number of seconds that the last build of the same graph took, None if there was none.
    """

    component: str
    phase: str
    done: int
    total: int
    before: float | None


def build(
    bundle: Bundle,
    request: BuildRequest,
    on_event: Callable[[BuildEvent], None] = lambda event: None,
    cancel: Callable[[], bool] | None = None,
) -> list[Made]:
    """Return the engines of the requested components from the user's cache; build those that are absent.

    The cache keeps all of them, whatever their size. Other engines are evicted once, at the end.

    Raises UsageError for a request that the target or the bundle cannot meet, EngineError if the builder refuses a
    graph, MissingDependencyError without its package, OutputError if the cache cannot be written, and Cancelled.
    """
    target, limit = find_target(request.target), upkeep.limit()
    names = chosen(bundle.manifest, request.components)
    if not target.compiled:
        raise UsageError(
            f"the target {target.name} runs graphs directly, so there is nothing to build.",
            f"Render with --target {target.name}.",
        )
    shapes = profiles(bundle.manifest, request.ranges or (default_range(bundle.manifest),), request.guided)
    wanted = {name: _settings(bundle.manifest, name, request, shapes[name]) for name in names}
    of = {name: fingerprint_of(bundle, name, wanted[name], target) for name in names}
    try:
        return [Made(name, *_one(bundle, name, wanted[name], of[name], on_event, cancel)) for name in names]
    finally:  # also after a failure: builds that always fail would fill the disk
        upkeep.evict(limit, {fingerprint.key for fingerprint in of.values()})


def _one(
    bundle: Bundle,
    name: str,
    settings: tensorrt_build.Settings,
    fingerprint: Fingerprint,
    on_event: Callable[[BuildEvent], None],
    cancel: Callable[[], bool] | None,
) -> tuple[Entry, bool]:
    spec = bundle.manifest.components[name]
    bundle.check_unchanged(spec.graph, *spec.weights)
    before = last_seconds(fingerprint)

    def report(phase: str, done: int, total: int) -> None:
        on_event(BuildEvent(name, phase, done, total, before))

    report("starting", 0, 1)
    return store.obtain(
        fingerprint,
        bundle.manifest.name,
        name,
        lambda out: build_apart(bundle.path(spec.graph), settings, out, report, cancel),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        lambda: report("waiting for another process", 0, 1),
        cancel,
    )


def here(target: str) -> tuple[int, ...]:
    """Return the compute capabilities to build for by default: those of the first GPU, none for TensorRT.

    Raises UsageError for TensorRT-RTX on a machine without a GPU.
    """
    if target != "tensorrt-rtx":
        return ()
    found = devices.driver()
    if not found.gpus:
        raise UsageError(
            f"this machine has no GPU ({found.why}). Name one: --sm 89 for an RTX 4090, --sm 120 for an RTX 5090."
        )
    gpu = found.gpus[0]
    if gpu.capability not in tensorrt_build.CAPABILITIES:
        raise UsageError(
            f"TensorRT-RTX does not support {gpu.name}, of compute capability {gpu.capability // 10}."
            f"{gpu.capability % 10}. Use the target ort-cuda here, or name the GPU to build for: --sm 89 for an RTX "
            "4090."
        )
    return (gpu.capability,)


def chosen(content: manifest.Manifest, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the components of these names, all if there are no names; raises UsageError for an unknown name."""
    unknown = [name for name in names or () if name not in content.components]
    if unknown:
        raise UsageError(
            f"the bundle {content.name!r} has no component {unknown[0]!r}. Choose among "
            f"{', '.join(content.components)}."
        )
    return names or tuple(content.components)


def _settings(
    content: manifest.Manifest, name: str, request: BuildRequest, shapes: tuple[tensorrt_build.Profile, ...]
) -> tensorrt_build.Settings:
    weights = content.weight_bytes(name)
    room = None if request.budget is None else request.budget - weights
    streaming = room is not None and room < request.budget // 4  # type: ignore[operator]
    if request.budget is not None and streaming:
        room = request.budget // 2
    return tensorrt_build.Settings(request.target, request.capabilities, shapes, room, streaming)


def fingerprint_of(bundle: Bundle, name: str, settings: tensorrt_build.Settings, target: Target) -> Fingerprint:
    """Return all that determines the engine of the component `name`."""
    spec, files = bundle.manifest.components[name], bundle.manifest.files
    gpu = driver = ""
    if target.name == "tensorrt":  # it tunes kernels on this machine's GPU
        found = devices.driver()
        if not found.gpus:
            raise EngineError(
                f"TensorRT builds on a GPU, and this machine has none: {found.why}.",
                "Use the target tensorrt-rtx, which builds without one.",
            )
        gpu, driver = found.gpus[0].name, found.version
    return Fingerprint(
        graph=files[spec.graph].sha256,
        weights={file: files[file].sha256 for file in spec.weights},
        precision=spec.precision,
        target=settings.target,
        version=load(target).__version__,
        capabilities=settings.capabilities,
        profiles=tuple(dict(profile) for profile in settings.profiles),
        workspace=settings.workspace,
        streaming=settings.streaming,
        system=f"{platform.system()}-{platform.machine()}",
        gpu=gpu,
        driver=driver,
        recipe=RECIPE,
    )


def last_seconds(fingerprint: Fingerprint) -> float | None:
    """Return the seconds that the newest kept engine of the same graph and target took; None if there is none."""
    same = [
        entry.record.seconds
        for entry in store.entries(store.root())
        if (entry.record.fingerprint.graph, entry.record.fingerprint.target) == (fingerprint.graph, fingerprint.target)
    ]
    return same[-1] if same else None
