"""The commands of `segue` about engines: build them, look after those that are kept, and say what a machine can run."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import click

from ..engines.targets import TARGETS
from ..errors import UsageError
from .console import JSON, Output, table
from .options import BUNDLE, COMPILED, LARGE, Bytes, building

if TYPE_CHECKING:
    from ..runtime.bundle.reader import Bundle
    from ..runtime.bundle.shapes import SizeRange
    from ..runtime.engine_cache.build import Event
    from ..runtime.engine_cache.store import Made


@click.command()
@click.argument("bundle", type=BUNDLE)
@building
@click.option("--target", type=click.Choice(list(TARGETS)), default=COMPILED[0], show_default=True)
@click.option("--component", "components", multiple=True, help="Only this one. Repeatable.")
@JSON
def build(bundle: str, as_json: bool, **wanted: Any) -> None:
    """Build the engines of BUNDLE. TensorRT-RTX needs no GPU for that; without --sm it takes the GPU's own.

    The targets ort-* run graphs as they are: each is loaded once, to see that it does.

    \b
    Examples:
      segue build emoji --device rtx4090
      segue build emoji --sm 89 --sm 120
      segue build emoji --target ort-cpu
    """
    from ..runtime.bundle.reader import read

    show = Output(as_json)
    with show.progress("hashing", "bytes") as update:
        opened = read(bundle, progress=lambda _, done, total: update(done, total) if total > LARGE else None)
    if wanted["target"] in COMPILED:
        build_engines(show, opened, **wanted)
    else:
        load_graphs(show, opened, **wanted)


def checked(target: str, sm: tuple[int, ...]) -> tuple[int, ...]:
    """Return the compute capabilities to build for; raises what building for them would, before any work."""
    from ..engines.targets import find_target, load
    from ..engines.tensorrt.build import Settings
    from ..runtime.engine_cache.build import here

    load(find_target(target))
    return Settings(target, sm or here(target), ()).capabilities


def build_engines(
    show: Output, opened: Bundle, *, target: str, components: tuple[str, ...] = (), sm: tuple[int, ...] = (),
    shapes: tuple[SizeRange, ...] = (), guidance: bool = False, budget: int | None = None, into_bundle: bool = False,
) -> None:  # fmt: skip
    """Build engines and tell of each."""
    from ..runtime.bundle.reader import shipped
    from ..runtime.engine_cache.build import BuildRequest
    from ..runtime.engine_cache.build import build as run
    from ..runtime.engine_cache.bundled import put_into

    if into_bundle and opened.directory.resolve() in {path.resolve() for path in shipped().values()}:
        raise UsageError(
            f"{opened.directory} came with Segue, and engines would make another bundle of it for every program. Copy "
            "it first, and name the copy."
        )
    request = BuildRequest(target, checked(target, sm), shapes, components or None, budget, guidance)
    started = time.perf_counter()
    with show.stages() as update:

        def tell(event: Event) -> None:
            last = {} if event.before is None else {"last": event.before}
            update(event.component, "steps", event.done, event.total, **last)

        made = run(opened, request, tell)
    if into_bundle:
        put_into(opened, made, lambda: show.line("waiting for another process that puts engines into the bundle"))
    for each in made:
        show.line(described(each))
        record = dataclasses.asdict(each.entry.record)
        show.event(
            "engine", path=str(each.entry.plan), built=each.fresh, **{k: v for k, v in record.items() if k != "built"}
        )
    show.event("done", seconds=time.perf_counter() - started)


def load_graphs(
    show: Output, opened: Bundle, *, target: str, components: tuple[str, ...] = (), **engines_only: Any
) -> None:
    """Load each graph by a target that builds no engines, and tell how long that took."""
    from ..runtime.components import Components
    from ..runtime.engine_cache.build import chosen

    given = [name.replace("_", "-") for name, value in engines_only.items() if value]
    if given:
        raise click.UsageError(f"{target} builds no engines, so it takes no --{given[0]}. Leave it out.")
    names = chosen(opened.manifest, components)
    with Components(opened, target=target) as parts:
        for name in names:
            started = time.perf_counter()
            parts.load(name)
            seconds = time.perf_counter() - started
            parts.release(name)
            show.line(f"{name}: runs as it is, loaded in {seconds:.1f} s")
            show.event("loaded", component=name, target=target, seconds=seconds)


def described(made: Made) -> str:
    """Return an engine as a line for people."""
    record = made.entry.record
    how = f"built in {record.seconds:.1f} s" if made.fresh else "kept from before"
    attention = (
        f", attention {record.fused} fused {record.decomposed} decomposed" if record.fused + record.decomposed else ""
    )
    return f"{made.component}: {record.bytes / 1e6:.1f} MB, {how}{attention}: {made.entry.plan}"


@click.group()
def cache() -> None:
    """Look after the engines that are kept in the user's cache directory.

    \b
    Example:
      segue cache list
    """


@cache.command("list")
@JSON
def listed(as_json: bool) -> None:
    """Show the engines, the least recently used first, then those whose records cannot be read.

    \b
    Example:
      segue cache list --json
    """
    from ..runtime.engine_cache.store import entries, root
    from ..runtime.engine_cache.upkeep import unreadable

    show, found = Output(as_json), entries(root())
    rows = []
    for entry in found:
        record, of = entry.record, entry.record.fingerprint
        show.event("engine", path=str(entry.plan), **dataclasses.asdict(record))
        rows.append(
            (record.bundle, record.component, f"{of.target} {of.version}", of.precision,
             ", ".join(map(str, of.capabilities)), f"{record.bytes / 1e6:.1f}", record.built[:10],
             entry.directory.name[:12])
        )  # fmt: skip
    if not as_json:
        columns = ("bundle", "component", "target", "precision", "SM", "MB", "built", "key")
        table(f"{root()}: {sum(e.record.bytes for e in found) / 1e6:.1f} MB", columns, rows)
    for each in unreadable(root()):
        show.line(f"{each.bytes / 1e6:.1f} MB more, the first to go once there are too many: {each.why}")
        show.event("unreadable", path=str(each.directory), bytes=each.bytes, text=each.why)


@cache.command("verify")
@JSON
def verified(as_json: bool) -> None:
    """Hash every engine; those that are not what their record says are an error.

    \b
    Example:
      segue cache verify
    """
    from ..errors import EngineError
    from ..runtime.engine_cache.store import root
    from ..runtime.engine_cache.upkeep import verify

    show = Output(as_json)
    whole, wrong = verify(root())
    for why in wrong:
        show.line(why)
        show.event("damaged", text=why)
    show.line(f"{whole} engines are as their records say, {len(wrong)} are not")
    show.event("verified", engines=whole, damaged=len(wrong))
    if wrong:
        raise EngineError(
            f"{len(wrong)} engines are damaged. Run segue build for their bundles again, with the same options: it "
            "replaces a damaged engine and keeps the others, which segue cache clear would remove as well."
        )


@cache.command("clear")
@click.option("--keep", type=Bytes(), default=0, help="Keep the most recently used ones up to this size, as 8GiB.")
@JSON
def cleared(keep: int, as_json: bool) -> None:
    """Remove the engines. Nothing is lost that segue build does not make again.

    \b
    Examples:
      segue cache clear
      segue cache clear --keep 8GiB
    """
    from ..runtime.engine_cache.upkeep import clear, evict

    show = Output(as_json)
    count = len(evict(keep)) if keep else clear()
    show.line(f"{count} engines removed")
    show.event("cleared", engines=count)


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@JSON
def doctor(bundle: str | None, as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to get it; with BUNDLE also whether that fits.

    \b
    Example:
      segue doctor emoji
    """
    from ..errors import EngineError
    from ..runtime.bundle.reader import read
    from ..runtime.diagnostics.doctor import FAULT, examine

    show = Output(as_json)
    found = examine(None if bundle is None else read(bundle))
    for finding in found:
        show.event("finding", **dataclasses.asdict(finding))
    if not as_json:
        table("segue doctor", ("", "state", "found"), [(f.subject, f.state, f.text) for f in found])
        for finding in found:
            if finding.hint:
                show.line(f"{finding.subject}: {finding.hint}")
    faults = [finding for finding in found if finding.state == FAULT]
    if faults:
        raise EngineError(
            f"{len(faults)} of {len(found)} checks found a fault: "
            f"{'; '.join(f'{f.subject}: {f.text}' for f in faults)}. {faults[0].hint or 'See the table.'}."
        )


COMMANDS = (build, cache, doctor)
