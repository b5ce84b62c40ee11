"""The commands that make a bundle, or a checkpoint of one: export, unpack, quantize."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.bundle.limits import BETAS, FLOW, MAX_RANK, PART_BYTES, PRECISIONS, QUANTIZED
from .console import JSON, Output, need
from .engines import build_engines, checked
from .options import BUNDLE, COMPILED, building, megabytes
from .terminal.option_types import Bytes, Scaled, Sigmas, Size

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
@click.option(
    "--lora", "loras", type=Scaled(), multiple=True,
    help="Merge a LoRA file, as FILE=0.8 or, for a second expert, transformer_2:FILE=0.8. Repeatable.",
)  # fmt: skip
@click.option(
    "--lora-rank", type=click.IntRange(1, MAX_RANK), help="Let the bundle play LoRA files of up to this rank."
)
@click.option(
    "--part-size", type=Bytes(), default=PART_BYTES, help="Most bytes of weights in one graph part (default: 256MiB)."
)
@click.option(
    "--trained-size",
    "trained",
    type=Size(),
    multiple=True,
    help="A size that the model was trained at, as 1152x896 (default: what the checkpoint states). Repeatable.",
)
@click.option("--steps", type=click.IntRange(1), help="Steps of a picture (default: what the checkpoint states).")
@click.option(
    "--guidance", type=click.FloatRange(0), help="Guidance; 1 or less is off (default: what the checkpoint states)."
)
@click.option("--sigmas", type=Sigmas(), help="Sigmas of a student, before the shift, as 1,0.75,0.5,0.25.")
@click.option(
    "--sampler", type=click.Choice((*FLOW, *BETAS)), help="Sampler of the bundle (default: the checkpoint's scheduler)."
)
@click.option(
    "--base", help="Source of what a single file lacks: sdxl, a directory, hf:ORG/NAME (default: a shipped one)."
)
@click.option("--variant", default="", help="Take this variant of the weights, such as fp16.")
@click.option(
    "--tiny-decoder", type=click.Path(path_type=Path), help="Directory of an AutoencoderTiny that makes previews."
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
    loras: tuple[tuple[Path, float, str], ...],
    lora_rank: int | None,
    part_size: int,
    trained: tuple[tuple[int, int], ...],
    steps: int | None,
    guidance: float | None,
    sigmas: tuple[float, ...] | None,
    sampler: str | None,
    base: str | None,
    variant: str,
    tiny_decoder: Path | None,
    target: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Export CHECKPOINT, a directory in diffusers' format or hf:ORG/NAME[@REVISION], as a bundle.

    CHECKPOINT may also be a single .safetensors file. If no shipped base fits it, --base names a checkpoint of the same
    model. Tracing loads no weights, and the comparison loads one component at a time.

    \b
    Examples:
      segue export ./checkpoint -o my-bundle
      segue export hf:stabilityai/stable-diffusion-3-medium-diffusers -o sd3 --precision fp16
    """
    if target is None and any(wanted.values()):
        raise click.UsageError("--sm, --shapes, --budget and --into-bundle need --target. Give it as well.")
    if target is not None:  # errors come before the export
        wanted["sm"] = checked(target, wanted["sm"])
    need("onnxscript", "export")
    from ..export.checkpoint.defaults import Asked
    from ..export.checkpoint.lora.read import Lora
    from ..export.checkpoint.single.stage import staged, with_decoder
    from ..export.export import export as run
    from ..runtime.storage.directory import refuse_existing

    refuse_existing(output)  # before a download of gigabytes
    show = Output(as_json)
    with (
        staged(checkpoint, base, variant) as plain,
        with_decoder(plain, tiny_decoder) as source,
        show.stages() as update,
    ):

        def report(event: Event) -> None:
            if event.stage in UNITS:
                update(event.stage, UNITS[event.stage], event.done, event.total)
            if event.stage in ("parity", "note"):
                show.line(event.text)

        for text in source.notes:
            show.line(text)
        merged = [Lora(path, scale, folder) for path, scale, folder in loras]
        made = run(
            source.root,
            output,
            origin=source.origin,
            single=source.single,
            title=source.title,
            precision=precision,
            parity=parity,
            name=name,
            loras=merged,
            lora_rank=lora_rank or 0,
            part_bytes=part_size,
            trained=trained,
            defaults=Asked(sampler or "", steps, guidance, tuple(sigmas or ())),
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


class Fixed(click.ParamType):
    """An input of a graph and its number, as NAME=3."""

    name = "NAME=NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Return the name and the number."""
        name, _, number = str(value).rpartition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r} does not name an input and a number. Write it as class_labels=3.", param, ctx)


@click.command("import")
@click.argument("graph", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle directory to make.")
@click.option("--size", type=Size(), help="Pixels, as 64 or 96x64 (default: the graph's own).")
@click.option("--sampler", type=click.Choice(BETAS), default="euler", show_default=True, help="Sampler of the bundle.")
@click.option(
    "--prediction",
    type=click.Choice(("sample", "epsilon", "v_prediction")),
    default="sample",
    show_default=True,
    help="What the graph gives: the clean picture, the noise, or v.",
)
@click.option("--steps", type=click.IntRange(1), default=1, show_default=True, help="Network calls per picture.")
@click.option("--timestep", "timesteps", type=click.IntRange(0, 999), multiple=True, help="One for each step, falling.")
@click.option("--fix", "fixed", type=Fixed(), multiple=True, help="A number for another input. Repeatable.")
@click.option("--name", help="Name of the bundle (default: name of the directory).")
@JSON
def import_graph(
    graph: Path, output: Path, size: tuple[int, int] | None, sampler: str, prediction: str, steps: int,
    timesteps: tuple[int, ...], fixed: tuple[tuple[str, float], ...], name: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a bundle from GRAPH, an .onnx file that turns noise and a timestep into pixels, without a prompt.

    \b
    Example:
      segue import unet.onnx --sampler euler --prediction sample -o mine
    """
    need("onnx_ir", "export")
    from ..export.own_graph import Play
    from ..export.own_graph import import_graph as run

    show = Output(as_json)
    play = Play(sampler, prediction, steps, timesteps, size=size, fixed=dict(fixed))
    made = run(graph, output, play, name)
    show.line(f"{output}: {megabytes(made)} MB. Draw with it: segue render {output} ''")
    show.event("imported", path=str(output), **dataclasses.asdict(made))


COMMANDS = (export, import_graph, unpack, quantize)
