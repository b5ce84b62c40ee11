"""The commands about engines and the rest of the cache: build, cache."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import click

from ..engines.targets import TARGETS
from ..errors import UsageError
from .console import JSON, Output, table
from .options import BUNDLE, COMPILED, LARGE, building, sure
from .terminal.option_types import Bytes

if TYPE_CHECKING:
    from ..runtime.bundle.reader import Bundle
    from ..runtime.bundle.shapes import SizeRange
    from ..runtime.engine_cache.build import BuildEvent
    from ..runtime.engine_cache.store import Made


@click.command()
@click.argument("bundle", type=BUNDLE)
@building
@click.option("--guidance", is_flag=True, help="Build for guidance even if the bundle uses none by default.")
@click.option(
    "--target", type=click.Choice(list(TARGETS)), default=COMPILED[0], show_default=True, help="Target to build for."
)
@click.option("--component", "components", multiple=True, help="Build only this component. Repeatable.")
@JSON
def build(bundle: str, as_json: bool, **wanted: Any) -> None:
    """Build the engines of BUNDLE for --sm (default: this machine's GPU). tensorrt-rtx needs no GPU to build.

    The targets ort-* need no engines; for them the command only loads each graph once.

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
    """Return the compute capabilities to build for. Raises before any work if the target cannot build."""
    from ..engines.targets import find_target, load
    from ..engines.tensorrt.build import Settings
    from ..runtime.engine_cache.build import here

    load(find_target(target))
    return Settings(target, sm or here(target), ()).capabilities


def build_engines(
    show: Output, opened: Bundle, *, target: str, components: tuple[str, ...] = (), sm: tuple[int, ...] = (),
    shapes: tuple[SizeRange, ...] = (), guidance: bool = False, budget: int | None = None, into_bundle: bool = False,
) -> None:  # fmt: skip
    """Build engines and show each."""
    from ..runtime.bundle.reader import shipped
    from ..runtime.engine_cache.build import BuildRequest
    from ..runtime.engine_cache.build import build as run
    from ..runtime.engine_cache.bundled import put_into

    if into_bundle and opened.directory.resolve() in {path.resolve() for path in shipped().values()}:
        raise UsageError(
            f"{opened.directory} is shipped with Segue, and --into-bundle would change it for every program. Copy it "
            "and name the copy."
        )
    request = BuildRequest(target, checked(target, sm), shapes, components or None, budget, guidance)
    started = time.perf_counter()
    with show.stages() as update:

        def report(event: BuildEvent) -> None:
            last = {} if event.before is None else {"last": event.before}
            update(event.component, "steps", event.done, event.total, **last)

        made = run(opened, request, report)
    if into_bundle:
        put_into(opened, made, lambda: show.line("waiting for another process that writes engines into the bundle"))
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
    """Load each graph with a target that builds no engines, and show the time."""
    from ..runtime.components import Components
    from ..runtime.engine_cache.build import chosen

    given = [name.replace("_", "-") for name, value in engines_only.items() if value]
    if given:
        raise click.UsageError(f"{target} builds no engines, so --{given[0]} does not apply. Leave it out.")
    names = chosen(opened.manifest, components)
    with Components(opened, target=target) as parts:
        for name in names:
            started = time.perf_counter()
            parts.load(name)
            seconds = time.perf_counter() - started
            parts.release(name)
            show.line(f"{name}: needs no engine, loaded in {seconds:.1f} s")
            show.event("loaded", component=name, target=target, seconds=seconds)


def described(made: Made) -> str:
    """Return the line that describes an engine."""
    record = made.entry.record
    how = f"built in {record.seconds:.1f} s" if made.fresh else "found in the cache"
    attention = (
        f", attention {record.fused} fused {record.decomposed} decomposed" if record.fused + record.decomposed else ""
    )
    return f"{made.component}: {record.bytes / 1e6:.1f} MB, {how}{attention}: {made.entry.plan}"


@click.group()
def cache() -> None:
    """Manage the user's cache directory: engines, training data, digests of verified files.

    \b
    Example:
      segue cache list
    """


@cache.command("list")
@JSON
def listed(as_json: bool) -> None:
    """List the engines, the least recently used first, unreadable ones, and what else the cache holds.

    \b
    Example:
      segue cache list --json
    """
    from ..runtime.engine_cache.store import entries, root
    from ..runtime.engine_cache.upkeep import bytes_below, rest, unreadable
    from ..runtime.storage.paths import cache_directory

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
        table(f"{root()}: {len(found)} engines, {sum(e.record.bytes for e in found) / 1e6:.1f} MB", columns, rows)
    for each in unreadable(root()):
        show.line(f"{each.bytes / 1e6:.1f} MB unreadable, removed first if the cache grows too large: {each.why}")
        show.event("unreadable", path=str(each.directory), bytes=each.bytes, text=each.why)
    held = rest()
    for other in held:
        show.line(f"{other.path}: {other.count} {other.what}, {other.bytes / 1e6:.1f} MB")
        show.event("held", what=other.what, path=str(other.path), count=other.count, bytes=other.bytes)
    total = bytes_below(root()) + sum(other.bytes for other in held)
    show.line(f"{cache_directory()}: {total / 1e6:.1f} MB in all")


@cache.command("verify")
@JSON
def verified(as_json: bool) -> None:
    """Hash every engine; an engine that differs from its record is an error.

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
    show.line(f"{whole} engines match their records, {len(wrong)} do not")
    show.event("verified", engines=whole, damaged=len(wrong))
    if wrong:
        raise EngineError(
            f"{len(wrong)} engines are damaged. Run segue build for their bundles again, with the same options. It "
            "replaces damaged engines and keeps the others; segue cache clear removes all."
        )


@cache.command("clear")
@click.option(
    "--keep",
    type=Bytes(),
    default=0,
    help="Remove only engines, and keep the most recently used ones up to this size, as 8GiB.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def cleared(keep: int, yes: bool, as_json: bool) -> None:
    """Remove the cache: engines, training data, digests of verified files. Segue makes or fetches them again.

    Data in $SEGUE_DATA stays, because that directory is not Segue's own.

    \b
    Examples:
      segue cache clear
      segue cache clear --keep 8GiB --yes
    """
    from ..runtime.engine_cache.store import root
    from ..runtime.engine_cache.upkeep import bytes_below, clear, clear_rest, evict, rest

    show, before = Output(as_json), bytes_below(root())
    others = [] if keep else [each for each in rest() if each.mine]
    if keep:
        asked = f"engines of {before / 1e6:.1f} MB, except the last {keep / 1e6:.1f} MB"
    else:
        parts = [f"engines ({before / 1e6:.1f} MB)", *(f"{each.what} ({each.bytes / 1e6:.1f} MB)" for each in others)]
        asked = ", ".join(parts)
    if before or others:
        sure(show, f"This removes {asked}.", yes)
    count = len(evict(keep)) if keep else clear()
    freed = before - bytes_below(root()) + (0 if keep else clear_rest())
    show.line(f"{count} engines removed, {freed / 1e6:.1f} MB in all")
    show.event("cleared", engines=count, bytes=freed)


COMMANDS = (build, cache)
