"""Find the engine of a component for this machine: in the bundle if it is trusted, or in the cache."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping

from ...engines import devices
from ...engines.targets import Target, load
from ...engines.tensorrt.engine import covers
from ...errors import EngineError
from ..bundle.reader import Bundle
from ..bundle.shapes import guidance_of
from . import bundled, store
from .build import RECIPE
from .store import Entry


def find_engine(
    bundle: Bundle,
    name: str,
    target: Target,
    capability: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    trust: bool = False,
) -> Entry:
    """Return the checked engine of a component for a GPU of that capability; the last one used if several fit.

    If `shapes` of the component's inputs are given, the engine must have room for them. Engines of the user's cache
    come first; those of the bundle count only with `trust`. Raises EngineError if no engine fits; the error names what
    differs in the nearest one.
    """
    store.check_root()
    spec = bundle.manifest.components[name]
    files = bundle.manifest.files
    version, system = load(target).__version__, f"{platform.system()}-{platform.machine()}"
    nearest: list[str] | None = None
    trusted = bundled.within(bundle) if trust else []
    for entry in (*reversed(store.entries(store.root())), *reversed(trusted)):
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
        wrong = list(store.differences(have, here))
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
        why += "; the bundle's engines were not considered (--trust-engines considers them)"
    options = f" --sm {capability}" if target.name == "tensorrt-rtx" else ""
    guidance = guidance_of(bundle.manifest, name)
    doubled = any(port.shape[:1] == ("batch",) and (shapes or {}).get(port.name, (1,))[0] > 1 for port in spec.inputs)
    if guidance is not None and guidance <= 1 and doubled:
        options += " --guidance"
    raise EngineError(
        f"there is no {target.name} engine of {name} for the bundle {bundle.manifest.name!r} on this machine: {why}.",
        f"Run segue build '{bundle.directory}' --target {target.name}{options}",
    )


def _covered(profile: Mapping[str, store.Shapes], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(name in profile and covers(profile[name], shape) for name, shape in shapes.items())
