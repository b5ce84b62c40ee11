"""Building the engines of a bundle's components, one after another, and finding the one that fits a machine."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..engines import devices, tensorrt_build
from ..engines.targets import Target, find_target, load
from ..engines.tensorrt import covers
from ..engines.tensorrt_child import build_apart
from ..errors import EngineError, UsageError
from . import bundled_engines, engine_cache, engine_upkeep, manifest
from .bundle import Bundle
from .engine_cache import Entry, Fingerprint
from .profiles import SizeRange, default_range, guidance_of, profiles

RECIPE = 1


@dataclass(frozen=True)
class BuildRequest:
    """What engines are built for.

    `capabilities` are tenfold compute capabilities, such as 89 (TensorRT-RTX: at least one; TensorRT: none). Each of
    `ranges` becomes a profile; none means the bundle's own range. `components` are all of the bundle if None. `budget`
    bounds weights and the builder's scratch memory of each engine, in bytes: where the weights leave less than a
    quarter of it, they get half, and the rest of them stays in host memory. `guided` makes room for guidance in a
    bundle that has none of its own.
    """

    target: str
    capabilities: tuple[int, ...] = ()
    ranges: tuple[SizeRange, ...] = ()
    components: tuple[str, ...] | None = None
    budget: int | None = None
    guided: bool = False


@dataclass(frozen=True)
class Event:
    """What is being built: `done` of `total` steps of the builder's `phase`. `before`: seconds that it took last."""

    component: str
    phase: str
    done: int
    total: int
    before: float | None


@dataclass(frozen=True)
class Made:
    """An engine that is there now, and whether it was built for this request."""

    component: str
    entry: Entry
    fresh: bool


def build(
    bundle: Bundle,
    request: BuildRequest,
    on_event: Callable[[Event], None] = lambda event: None,
    cancel: Callable[[], bool] | None = None,
) -> list[Made]:
    """Return the engines of the components asked for, out of the user's cache or built into it.

    They stay there together, whatever their size; others give way once, at the end.

    Raises UsageError for a request that the target or the bundle cannot meet, EngineError where the builder refuses a
    graph, MissingDependencyError without its package, OutputError where the cache cannot be written, Cancelled.
    """
    target, limit = find_target(request.target), engine_upkeep.limit()
    names = chosen(bundle.manifest, request.components)
    if not target.compiled:
        raise UsageError(f"the target {target.name} runs a bundle's graphs as they are. There is nothing to build.")
    shapes = profiles(bundle.manifest, request.ranges or (default_range(bundle.manifest),), request.guided)
    wanted = {name: _settings(bundle.manifest, name, request, shapes[name]) for name in names}
    of = {name: fingerprint_of(bundle, name, wanted[name], target) for name in names}
    try:
        return [Made(name, *_one(bundle, name, wanted[name], of[name], on_event, cancel)) for name in names]
    finally:  # also after a failure: requests that never come to an end would fill the disk
        engine_upkeep.evict(limit, {fingerprint.key for fingerprint in of.values()})


def _one(
    bundle: Bundle,
    name: str,
    settings: tensorrt_build.Settings,
    fingerprint: Fingerprint,
    on_event: Callable[[Event], None],
    cancel: Callable[[], bool] | None,
) -> tuple[Entry, bool]:
    spec = bundle.manifest.components[name]
    bundle.check_unchanged(spec.graph, *spec.weights)
    before = last_seconds(fingerprint)

    def tell(phase: str, done: int, total: int) -> None:
        on_event(Event(name, phase, done, total, before))

    tell("starting", 0, 1)
    return engine_cache.obtain(
        fingerprint,
        bundle.manifest.name,
        name,
        lambda out: build_apart(bundle.path(spec.graph), settings, out, tell, cancel),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        lambda: tell("waiting for another process", 0, 1),
        cancel,
    )


def here(target: str) -> tuple[int, ...]:
    """Return the compute capabilities to build for where none is named: those of the first GPU, none for TensorRT.

    Raises UsageError for TensorRT-RTX on a machine without a GPU.
    """
    if target != "tensorrt-rtx":
        return ()
    found = devices.driver()
    if not found.gpus:
        raise UsageError(
            f"no GPU is here ({found.why}), so name one: --sm 89 for an RTX 4090, --sm 120 for an RTX 5090."
        )
    gpu = found.gpus[0]
    if gpu.capability not in tensorrt_build.CAPABILITIES:
        raise UsageError(
            f"TensorRT-RTX runs on no GPU of compute capability {gpu.capability // 10}.{gpu.capability % 10}, which "
            f"{gpu.name} has. Use the target ort-cuda here, or name the GPU to build for: --sm 89 for an RTX 4090."
        )
    return (gpu.capability,)


def chosen(content: manifest.Manifest, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the components of these names, all where there are none; raises UsageError for one that is not there."""
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
    spec = content.components[name]
    weights = sum(content.files[file].bytes for file in spec.weights)
    room = None if request.budget is None else request.budget - weights
    streaming = room is not None and room < request.budget // 4  # type: ignore[operator]
    if request.budget is not None and streaming:
        room = request.budget // 2
    return tensorrt_build.Settings(request.target, request.capabilities, shapes, room, streaming)


def fingerprint_of(bundle: Bundle, name: str, settings: tensorrt_build.Settings, target: Target) -> Fingerprint:
    """Return everything that decides the engine of the component `name`."""
    spec, files = bundle.manifest.components[name], bundle.manifest.files
    gpu = driver = ""
    if target.name == "tensorrt":  # it tunes kernels on the GPU at hand
        found = devices.driver()
        if not found.gpus:
            raise EngineError(
                f"TensorRT builds on a GPU, and none is here: {found.why}. The target tensorrt-rtx needs none."
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
    """Return how long the newest engine of the same graph and target took to build, if one is kept."""
    same = [
        entry.record.seconds
        for entry in engine_cache.entries(engine_cache.root())
        if (entry.record.fingerprint.graph, entry.record.fingerprint.target) == (fingerprint.graph, fingerprint.target)
    ]
    return same[-1] if same else None


def find(
    bundle: Bundle,
    name: str,
    target: Target,
    capability: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    trust: bool = False,
) -> Entry:
    """Return the checked engine of a component for a GPU of that capability, the one used last of several.

    It has to have room for `shapes`, of the component's inputs, if they are given. Engines of the user's cache come
    first; those of the bundle are looked at with `trust` alone. Raises EngineError where none fits, which names what
    differs in the nearest one.
    """
    engine_cache.check_root()
    spec = bundle.manifest.components[name]
    files = bundle.manifest.files
    version, system = load(target).__version__, f"{platform.system()}-{platform.machine()}"
    nearest: list[str] | None = None
    theirs = bundled_engines.within(bundle) if trust else []
    for entry in (*reversed(engine_cache.entries(engine_cache.root())), *reversed(theirs)):
        have = entry.record.fingerprint
        if entry.record.component != name or have.target != target.name:
            continue
        here = dataclasses.replace(
            have,
            graph=files[spec.graph].sha256,
            weights={file: files[file].sha256 for file in spec.weights},
            precision=spec.precision,
            version=version,
            capabilities=have.capabilities
            if capability in have.capabilities or not have.capabilities
            else (capability,),
            system=system,
            recipe=RECIPE,
        )
        if target.name == "tensorrt":
            found = devices.driver()
            here = dataclasses.replace(here, gpu=found.gpus[0].name if found.gpus else "none", driver=found.version)
        wrong = list(engine_cache.differences(have, here))
        if not wrong and shapes is not None and not any(_covered(profile, shapes) for profile in have.profiles):
            wrong = [f"no profile with room for {', '.join(f'{k} {list(v)}' for k, v in shapes.items())}"]
        if not wrong:
            try:
                entry.check()
            except EngineError:
                wrong = ["bytes that were altered since it was built"]
            else:
                entry.touch()
                return entry
        if nearest is None or len(wrong) < len(nearest):
            nearest = wrong
    why = f"the nearest has {'; '.join(nearest)}" if nearest else "none was built"
    if bundle.manifest.engines and not trust:
        why += "; those in the bundle were not looked at, which --trust-engines does"
    options = f" --sm {capability}" if target.name == "tensorrt-rtx" else ""
    guidance = guidance_of(bundle.manifest, name)
    doubled = any(port.shape[:1] == ("batch",) and (shapes or {}).get(port.name, (1,))[0] > 1 for port in spec.inputs)
    if guidance is not None and guidance <= 1 and doubled:
        options += " --guidance"
    raise EngineError(
        f"there is no {target.name} engine of {name} for the bundle {bundle.manifest.name!r} on this machine: {why}. "
        f"Run segue build '{bundle.directory}' --target {target.name}{options}"
    )


def _covered(profile: Mapping[str, engine_cache.Shapes], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(name in profile and covers(profile[name], shape) for name, shape in shapes.items())
