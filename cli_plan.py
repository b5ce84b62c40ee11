"""The command of `segue` that says what a request takes of memory and time, before anything is loaded."""

from __future__ import annotations

from typing import Any

import click

from .cli_common import Bytes, Size
from .console import JSON, Output, table


@click.command()
@click.argument("bundle")
@click.option(
    "--device", default="this", show_default=True, help="rtx4090, rtx4080, rtx4060, rtx5090, h100, cpu, this."
)
@click.option("--budget", type=Bytes(), help="The most memory to take (default: all of the device's).")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128.")
@click.option("--steps", type=int, help="Network evaluations a picture.")
@click.option("--guidance", type=float, help="Guidance scale; above 1 it doubles the calls.")
@click.option("--count", type=int, default=1, show_default=True, help="Number of pictures.")
@JSON
def plan(bundle: str, device: str, budget: int | None, as_json: bool, **wanted: Any) -> None:
    """Say what rendering with BUNDLE takes, phase by phase, and how it would stay within --budget."""
    import dataclasses

    from .runtime.amounts import mebibytes
    from .runtime.bundle import read_manifest
    from .runtime.hardware import find_machine
    from .runtime.plan import Wanted
    from .runtime.plan import plan as make
    from .runtime.request import Request, prepare

    show = Output(as_json)
    content = read_manifest(bundle)
    prepared = prepare(Request("", **wanted), content)
    request = Wanted(prepared.height, prepared.width, prepared.schedule.steps, prepared.guided, len(prepared.prompts))
    made = make(content, request, find_machine(device), budget)
    if not as_json:
        rows: list[tuple[Any, ...]] = [
            (p.component, p.calls, f"{p.flops / 1e9:.3g}", mebibytes(p.peak), f"{p.seconds:.2g}") for p in made.phases
        ]
        table(f"{content.name} on {made.machine}", ("phase", "calls", "GFLOP", "peak, MiB", "seconds"), rows)
    show.line(
        f"at most {mebibytes(made.peak)} MiB, about {made.seconds:.2g} s; "
        f"stays loaded: {', '.join(made.keep) or 'nothing'}"
        f"{'' if made.together else '; guidance in two calls'}"
        f"{f'; decoder in tiles of {made.tiling.side} latent pixels' if made.tiling else ''}"
    )
    show.event("plan", peak=made.peak, seconds=made.seconds, **dataclasses.asdict(made))
