"""What there is, and what a request takes, before anything is loaded: list, plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.bundle.limits import MAX_FRAMES
from ..runtime.units import mebibytes
from .console import JSON, Output, table
from .options import DEVICE, duration
from .terminal.input_pictures import input_pictures
from .terminal.option_types import BundleName, Bytes, Size

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import Sizes
    from ..runtime.diagnostics.catalogue import Facts

NARROW = 72  # columns of a terminal below which a table would break its cells


@click.command()
@click.argument("bundle", type=BundleName(planned=True))
@click.option(
    "--device", type=DEVICE, default="this", show_default=True,
    help="this, cpu, or a GPU as rtx4090 (a wrong name lists them).",
)  # fmt: skip
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB (default: all of the device).")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--steps", type=int, help="Network calls per picture (default: the bundle's).")
@click.option(
    "--guidance", type=float, help="Classifier-free guidance; above 1 it doubles the calls (default: the bundle's)."
)
@click.option("--count", type=int, default=1, show_default=True, help="Number of pictures.")
@input_pictures
@click.option(
    "--frames", type=click.IntRange(1, MAX_FRAMES), help="Video frames, rounded up to 4k + 1 (default: one window)."
)
@click.option("--timeline", type=click.Path(path_type=Path), help="SVG file to write, with the memory of each phase.")
@JSON
def plan(
    bundle: str, device: str, budget: int | None, frames: int | None, timeline: Path | None, as_json: bool,
    inputs: dict[str, Any], **wanted: Any,
) -> None:  # fmt: skip
    """Show the memory and time of rendering with BUNDLE, phase by phase, and how to stay within --budget.

    It takes the options of segue render for input pictures: their encoder, and the steps that --strength leaves out,
    are counted.

    \b
    Examples:
      segue plan emoji --budget 512MiB
      segue plan emoji --image heart.png --strength 0.6
      segue plan emoji-teacher --device rtx4090 --size 256 --timeline plan.svg
    """
    import dataclasses
    from functools import partial

    from ..engines.process import resident
    from ..engines.targets import DEFAULT, find_target
    from ..runtime.bundle import families
    from ..runtime.bundle.reader import read_manifest
    from ..runtime.bundle.segments import latent_frames, video_frames
    from ..runtime.plan_prepared import wanted_of
    from ..runtime.planning.hardware import CPU, find_machine
    from ..runtime.planning.pictures import plan as make
    from ..runtime.planning.pictures import unbounded_plan, usual_plan
    from ..runtime.planning.timeline import timeline as draw
    from ..runtime.planning.videos import WantedVideo, plan_video, unbounded_video_plan
    from ..runtime.request import Request, check_size, prepare
    from ..runtime.storage.files import check_writable, write_whole, writing

    show = Output(as_json)
    content, machine = read_manifest(bundle), find_machine(device)
    target = "ort-cuda" if machine.kind == "gpu" else DEFAULT  # the target whose memory was measured
    families.check(content, find_target(target))
    if timeline is not None:
        check_writable(timeline)
    if content.video is None:
        if frames is not None:
            raise click.UsageError(f"{content.name} draws pictures, so --frames does not apply. Leave it out.")
        asked = prepare(Request("", **inputs, **wanted), content)
        of = wanted_of(asked)
        made = usual_plan(unbounded_plan(content, of, machine), machine, budget, partial(make, content, of, machine))
    else:
        given = [name for name in ("steps", "guidance") if wanted[name] is not None]
        given += ["reference" if name == "references" else name for name in inputs]
        if given or wanted["count"] != 1:
            raise click.UsageError(
                f"{content.name} makes videos, so --{(*given, 'count')[0]} does not apply. Leave it out."
            )
        height, width = check_size(wanted["size"], content.sizes)
        length = content.video.frames if frames is None else video_frames(latent_frames(frames))
        film = WantedVideo(height, width, length)
        whole = unbounded_video_plan(content, film, machine)
        made = usual_plan(whole, machine, budget, partial(plan_video, content, film, machine))
    title = f"{content.name} by {target} on {made.machine}"
    if timeline is not None:
        with writing(timeline):
            write_whole(timeline, draw(made, title, machine.memory).encode())
        show.line(f"{timeline}: memory by phase")

    def label(component: str) -> str:
        parts = len(content.components[component].parts)
        return f"{component}, in {parts} parts" if component in made.streamed else component

    if not as_json:
        rows: list[tuple[Any, ...]] = [
            (label(p.component), p.calls, f"{p.flops / 1e9:.3g}", mebibytes(p.peak), f"{p.seconds:.2g}")
            for p in made.phases
        ]
        table(title, ("phase", "calls", "GFLOP", "peak, MiB", "seconds"), rows)
    tiles = made.tiling
    idle = resident() if machine.kind == CPU else 0  # a budget does not count it
    program = f", of which {mebibytes(idle)} MiB are the program" if idle else ""
    show.line(
        f"at most {mebibytes(made.peak + idle)} MiB{program}; about {duration(made.seconds)} plus the start; "
        f"stays loaded: {', '.join(made.keep) or 'nothing'}"
        f"{'' if made.together else '; guidance in two calls'}"
        f"{f'; autoencoder in tiles of {tiles.side} x {tiles.columns} latent pixels' if tiles else ''}"
    )
    if budget is None and made.budget is not None:
        show.line(f"only with --budget: without one the request takes more than the {machine.memory // 2**20} MiB here")
    if made.host:
        show.line(f"also {mebibytes(made.host)} MiB of the host's memory")
    figures = {"peak": made.peak, "process": made.peak + idle, "seconds": made.seconds}
    show.event("plan", target=target, **figures, **dataclasses.asdict(made))


@click.command("list")
@click.argument("places", type=click.Path(path_type=Path), nargs=-1)
@JSON
def list_bundles(places: tuple[Path, ...], as_json: bool) -> None:
    """List the bundles that come with Segue, the plans, and the bundles in PLACES.

    A place is a bundle, or a directory of bundles. Memory and time are planned for one picture, or one window of a
    video, on this machine.

    \b
    Examples:
      segue list
      segue list ./my-bundles
    """
    import dataclasses
    import shutil

    from ..runtime.diagnostics.catalogue import BUNDLE, OWN, PLAN, catalogue

    show = Output(as_json)
    found = list(catalogue(places))
    for facts in found:
        show.event("listed", **dataclasses.asdict(facts))
    if as_json:
        return
    tables = shutil.get_terminal_size().columns >= NARROW
    for facts in found:
        if facts.kind == OWN or not tables:
            show.line(f"{facts.name}: {_sentence(facts)}")
    columns = ("name", "draws", "names", "size", "steps", "disk", "memory")
    if tables:
        bundles = [(f.name, *_cells(f)) for f in found if f.kind == BUNDLE]
        table("bundles", (*columns, "licence"), bundles, narrow=True)
        planned = [(f.name, *_cells(f)[:-1]) for f in found if f.kind == PLAN]
        table("plans: no weights, only for segue plan", columns, planned, narrow=True)
    show.line("The memory is that of the program with one default request, on this machine. More: segue inspect NAME")


def _sentence(facts: Facts) -> str:
    from ..runtime.diagnostics.catalogue import PLAN

    if not facts.sizes:
        return facts.why
    draws, names, *others = _cells(facts)
    known = "any text" if facts.names is None else f"{names} names"
    size, steps, *rest = others
    return f"{'a plan of ' if facts.kind == PLAN else ''}{draws}, {known}, {size}, {steps} steps, {', '.join(rest)}"


def _cells(facts: Facts) -> tuple[str, ...]:
    """Return what a bundle draws, its names, size, steps, disk, memory and licence."""
    height, width = facts.sizes[0]
    return (
        facts.draws,
        "any" if facts.names is None else str(facts.names),
        f"{width}x{height}{'…' if len(facts.sizes) > 1 else ''}",
        str(facts.steps),
        amount(facts.bytes),
        "not here" if facts.process is None else _memory(facts.process),
        "licence unknown" if facts.licence == "unknown" else facts.licence.partition(" (")[0],
    )


def _memory(size: int) -> str:
    return f"{mebibytes(size)} MiB" if size < 2**34 else f"{size / 2**30:.1f} GiB"


def amount(size: int) -> str:
    """Return bytes of a disk for people, as "66 MB" or "5.4 GB"."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"


def facts_lines(facts: Facts, other: Sizes, styles: tuple[str, ...]) -> list[str]:
    """Return the facts of a bundle for people, one line each; `other` is the range of sizes that run."""
    sizes = ", ".join(f"{width}x{height}" for height, width in facts.sizes)
    window = "" if facts.frames is None else f", {facts.frames} frames at once, from a first picture"
    taken = (
        f"this machine cannot run it: {facts.why}"
        if facts.process is None
        else f"{mebibytes(facts.process)} MiB with the program"
    )
    within = "" if facts.seconds is None else f", about {duration(facts.seconds)}, on {facts.machine}"
    added = f", and the styles {', '.join(styles)}" if styles else ""
    names = "any text" if facts.names is None else f"{facts.names} names{added} (segue inspect {facts.name} --prompts)"
    faults = ", with faults" if other.trained else ""
    guided = "none" if facts.guidance <= 1 else f"{facts.guidance:g}"
    return [
        f"draws    {facts.draws}{window}",
        f"prompts  {names}",
        f"sizes    {sizes}; others run from {other.minimum} to {other.maximum} by {other.multiple}{faults}",
        f"steps    {facts.steps}, guidance {guided}",
        f"memory   {taken}{within}",
        f"disk     {amount(facts.bytes)}",
        f"licence  {facts.licence}",
    ]


COMMANDS = (list_bundles, plan)
