"""The command that shows the memory and time of a request before anything is loaded: plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..runtime.bundle.limits import MAX_FRAMES
from .console import JSON, Output, table
from .options import BundleName, Bytes, Size


@click.command()
@click.argument("bundle", type=BundleName(planned=True))
@click.option(
    "--device", default="this", show_default=True, help="this, cpu, or a GPU as rtx4090 (a wrong name lists them)."
)
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB (default: all of the device).")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--steps", type=int, help="Network calls per picture (default: the bundle's).")
@click.option(
    "--guidance", type=float, help="Classifier-free guidance; above 1 it doubles the calls (default: the bundle's)."
)
@click.option("--count", type=int, default=1, show_default=True, help="Number of pictures.")
@click.option(
    "--frames", type=click.IntRange(1, MAX_FRAMES), help="Video frames, rounded up to 4k + 1 (default: one window)."
)
@click.option("--timeline", type=click.Path(path_type=Path), help="SVG file to write, with the memory of each phase.")
@JSON
def plan(
    bundle: str, device: str, budget: int | None, frames: int | None, timeline: Path | None, as_json: bool,
    **wanted: Any,
) -> None:  # fmt: skip
    """Show the memory and time of rendering with BUNDLE, phase by phase, and how to stay within --budget.

    \b
    Examples:
      segue plan emoji --budget 512MiB
      segue plan emoji-teacher --device rtx4090 --size 256 --timeline plan.svg
    """
    import dataclasses

    from ..engines.targets import DEFAULT, find_target
    from ..runtime.bundle import families
    from ..runtime.bundle.reader import read_manifest
    from ..runtime.bundle.segments import latent_frames, video_frames
    from ..runtime.planning.hardware import find_machine
    from ..runtime.planning.pictures import Wanted
    from ..runtime.planning.pictures import plan as make
    from ..runtime.planning.timeline import timeline as draw
    from ..runtime.planning.videos import WantedVideo, plan_video
    from ..runtime.request import Request, check_size, prepare
    from ..runtime.storage.files import check_writable, write_whole, writing
    from ..runtime.units import mebibytes

    show = Output(as_json)
    content, machine = read_manifest(bundle), find_machine(device)
    target = "ort-cuda" if machine.kind == "gpu" else DEFAULT  # the target whose memory was measured
    families.check(content, find_target(target))
    if timeline is not None:
        check_writable(timeline)
    if content.video is None:
        if frames is not None:
            raise click.UsageError(f"{content.name} draws pictures, so --frames does not apply. Leave it out.")
        asked = prepare(Request("", **wanted), content)
        of = Wanted(asked.height, asked.width, asked.schedule.steps, asked.guided, len(asked.prompts))
        made = make(content, of, machine, budget)
    else:
        given = [name for name in ("steps", "guidance") if wanted[name] is not None]
        if given or wanted["count"] != 1:
            raise click.UsageError(
                f"{content.name} makes videos, so --{(*given, 'count')[0]} does not apply. Leave it out."
            )
        height, width = check_size(wanted["size"], content.sizes)
        length = content.video.frames if frames is None else video_frames(latent_frames(frames))
        made = plan_video(content, WantedVideo(height, width, length), machine, budget)
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
    show.line(
        f"at most {mebibytes(made.peak)} MiB, about {made.seconds:.2g} s; "
        f"stays loaded: {', '.join(made.keep) or 'nothing'}"
        f"{'' if made.together else '; guidance in two calls'}"
        f"{f'; autoencoder in tiles of {tiles.side} x {tiles.columns} latent pixels' if tiles else ''}"
    )
    if made.host:
        show.line(f"also {mebibytes(made.host)} MiB of the host's memory")
    show.event("plan", target=target, peak=made.peak, seconds=made.seconds, **dataclasses.asdict(made))


COMMANDS = (plan,)
