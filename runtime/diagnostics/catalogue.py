"""What there is to draw with: the facts of bundles and plans, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...engines.process import resident
from ...engines.targets import DEFAULT, find_target
from ...errors import BundleError, SegueError, UsageError
from ..bundle import families
from ..bundle.manifest import FILE_NAME, Manifest
from ..bundle.prompts import Prompts, names_in
from ..bundle.reader import plans, read_manifest, shipped
from ..plan_prepared import plan_default
from ..planning.hardware import CPU, THIS, find_machine

OWN, BUNDLE, PLAN = "own", "bundle", "plan"
PICTURES, VIDEOS = "pictures", "videos"


@dataclass(frozen=True)
class Facts:
    """The facts of a bundle, or of a model that ships only as a plan.

    `kind` is "own", "bundle" (shipped) or "plan". `name` is what a command takes. `sizes` are (height, width) in
    pixels. `names` is how many names it was trained on, None if it takes any text. `bytes` are those of its files.
    `peak` is the planned memory of a default request in bytes and `seconds` its time, both on `machine` and None if
    that machine cannot run it; `why` is the reason.
    """

    name: str
    kind: str
    family: str
    draws: str
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    frames: int | None
    names: int | None
    licence: str
    bytes: int
    machine: str
    peak: int | None
    seconds: float | None
    why: str = ""
    process: int | None = None  # `peak` with the bytes that this program takes without a model, on a processor


def catalogue(places: Iterable[Path] = ()) -> Iterator[Facts]:
    """Yield the facts of the bundles in `places`, of the shipped bundles and of the plans.

    A place is a bundle, or a directory of bundles. Raises UsageError for a place without a bundle. A bundle that cannot
    be read is listed with the reason.
    """
    for place in places:
        found = [place] if (place / FILE_NAME).is_file() else sorted(p.parent for p in place.glob(f"*/{FILE_NAME}"))
        if not found:
            raise UsageError(f"{place} is not a bundle and holds none. Name a directory made by segue export.")
        for directory in found:
            yield _facts_at(directory, str(directory), OWN)
    for kind, known in ((BUNDLE, shipped()), (PLAN, plans())):
        for name, directory in known.items():
            yield _facts_at(directory, name, kind)


def _facts_at(directory: Path, name: str, kind: str) -> Facts:
    try:
        content = read_manifest(directory)
        return facts_of(name, kind, content, names_in(directory, content))
    except BundleError as error:
        return Facts(name, kind, "", "", (), 0, 0.0, None, None, "", 0, "", None, None, str(error))


def facts_of(name: str, kind: str, content: Manifest, names: Prompts | None) -> Facts:
    """Return the facts of a manifest and its list of names, with the plan of a default request on this machine."""
    machine, plan, why = find_machine(THIS), None, ""
    try:
        families.check(content, find_target(DEFAULT if machine.kind == CPU else "ort-cuda"))
        plan = plan_default(content, machine)
    except SegueError as error:
        why = str(error)
    return Facts(
        name=name,
        kind=kind,
        family=content.family,
        draws=PICTURES if content.video is None else VIDEOS,
        sizes=content.sizes.good,
        steps=content.sampler.steps,
        guidance=content.sampler.guidance,
        frames=None if content.video is None else content.video.frames,
        names=None if names is None else len(names.seen),
        licence=content.provenance.licence,
        bytes=sum(file.bytes for file in content.files.values()),
        machine=machine.name,
        peak=None if plan is None else plan.peak,
        seconds=None if plan is None else plan.seconds,
        why=why,
        process=None if plan is None else plan.peak + (resident() if machine.kind == CPU else 0),
    )
