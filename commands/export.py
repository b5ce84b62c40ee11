"""The commands that make a bundle, or a checkpoint of one: export, unpack, quantize."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.bundle.limits import PART_BYTES, PRECISIONS, QUANTIZED
from .console import JSON, Output, need
from .engines import build_engines, checked
from .options import BUNDLE, COMPILED, building, megabytes
from .terminal.option_types import Bytes, Scaled, Size

if TYPE_CHECKING:
    from ..export.export import Event

# What each stage of an export counts. Stages without a unit have no progress.
UNITS = {"copy": "bytes", "trace": "graphs", "tokenizer": "tokenizers", "parity": "comparisons", "measure": "parts"}


@click.command()
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle directory to make.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="Precision of the weights; keep: that of the checkpoint.",
)
@click.option("--parity/--no-parity", default=True, show_default=True, help="Compare every graph with PyTorch.")
@click.option("--name", help="Name of the bundle (default: name of the directory).")
@click.option("--lora", "loras", type=Scaled(), multiple=True, help="Merge a LoRA file, as FILE=0.8. Repeatable.")
@click.option(
    "--part-size", type=Bytes(), default=PART_BYTES, help="Most weights in one part of a graph (default: 256MiB)."
)
@click.option(
    "--trained-size",
    "trained",
    type=Size(),
    multiple=True,
    help="A size that the model was trained at, as 1152x896 (default: what the checkpoint states). Repeatable.",
)
@click.option("--target", type=click.Choice(COMPILED), help="Also build engines for this target, as segue build does.")
@building
@JSON
def export(
    checkpoint: str,
    output: Path,
    precision: str,
    parity: bool,
    name: str | None,
    loras: tuple[tuple[Path, float], ...],
    part_size: int,
    trained: tuple[tuple[int, int], ...],
    target: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Export CHECKPOINT, a directory in diffusers' format or hf:ORG/NAME[@REVISION], as a bundle.

    The export loads no weights.

    \b
    Examples:
      segue export ./checkpoint -o my-bundle
      segue export hf:stabilityai/stable-diffusion-3-medium-diffusers -o sd3 --precision fp16
    """
    if target is None and any(wanted.values()):
        raise click.UsageError("--sm, --shapes, --guidance, --budget and --into-bundle need --target. Give it as well.")
    if target is not None:  # errors come before the export
        wanted["sm"] = checked(target, wanted["sm"])
    need("onnxscript", "export")
    from ..export.checkpoint.hub import locate
    from ..export.checkpoint.lora import Lora
    from ..export.export import export as run

    source, origin = locate(checkpoint)
    show = Output(as_json)
    with show.stages() as update:

        def report(event: Event) -> None:
            if event.stage in UNITS:
                update(event.stage, UNITS[event.stage], event.done, event.total)
            if event.stage in ("parity", "note"):
                show.line(event.text)

        merged = [Lora(path, scale) for path, scale in loras]
        made = run(
            source,
            output,
            origin=origin,
            precision=precision,
            parity=parity,
            name=name,
            loras=merged,
            part_bytes=part_size,
            trained=trained,
            progress=report,
        )
    show.line(f"{output}: {len(made.components)} components, {megabytes(made)} MB")
    if made.fidelity is not None:
        show.line(f"its pictures: {made.fidelity.psnr:.1f} dB compared with {made.fidelity.against}")
    show.event(
        "bundle", path=str(output), parity=[dataclasses.asdict(p) for p in made.parity],
        fidelity=None if made.fidelity is None else dataclasses.asdict(made.fidelity),
    )  # fmt: skip
    if target is not None:
        from ..runtime.bundle.reader import read

        build_engines(show, read(output), target=target, **wanted)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Checkpoint directory to make.")
@JSON
def unpack(bundle: str, output: Path, as_json: bool) -> None:
    """Restore the diffusers checkpoint that BUNDLE was exported from.

    \b
    Example:
      segue unpack emoji -o checkpoint
    """
    from ..export.unpack import unpack as run
    from ..runtime.bundle.reader import resolve

    show = Output(as_json)
    with show.progress("unpacking", "bytes") as update:
        note = run(resolve(bundle), output, lambda file, done, total: update(done, total))
    show.line(str(output))
    if note:
        show.line(note)
    show.event("checkpoint", path=str(output), note=note)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle directory to make.")
@click.option(
    "--kind", type=click.Choice(QUANTIZED), default=QUANTIZED[0], show_default=True,
    help="int8: for CPUs. w8a8, fp8: for GPUs, only the denoiser, calibrated; fp8 needs SM 8.9 or above.",
)  # fmt: skip
@JSON
def quantize(bundle: str, output: Path, kind: str, as_json: bool) -> None:
    """Copy BUNDLE with its large matrices in 8 bits, which is smaller and faster.

    \b
    Example:
      segue quantize emoji -o emoji-int8
    """
    need("onnxscript", "export")
    from ..export.quantize.quantize import quantize as run
    from ..runtime.bundle.reader import resolve

    show = Output(as_json)
    with show.progress("quantizing") as update:
        made = run(resolve(bundle), output, kind=kind, progress=lambda what, done, total: update(done, total))
    assert made.fidelity is not None
    show.line(f"{output}: {megabytes(made)} MB, pictures: {made.fidelity.psnr:.1f} dB compared with {bundle} in fp32")
    parity = [dataclasses.asdict(p) for p in made.parity]
    show.event("bundle", path=str(output), parity=parity, fidelity=dataclasses.asdict(made.fidelity))


COMMANDS = (export, unpack, quantize)
