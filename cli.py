"""The `segue` command: parse, call, show progress.

With --json a failure is an event as well: {"event": "error", "kind": class, "exit_code": number, "text": message}.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import cli_batch, cli_bench, cli_engines, cli_plan, cli_render, cli_serve, cli_train, cli_video
from .cli_common import BUNDLE, Bytes, Scaled
from .cli_engines import COMPILED, build_engines, building, checked, compare_engines
from .console import JSON, Output, guard, need, table
from .runtime.limits import PART_BYTES, QUANTIZED

if TYPE_CHECKING:
    from .export.export import Event
    from .runtime.manifest import Fidelity, Parity

UNITS = {
    "copy": "bytes",
    "trace": "graphs",
    "tokenizer": "tokenizers",
    "parity": "comparisons",
    "measure": "parts",
}  # of export's stages
EXIT_CODES = (
    "Exit codes: 0 done; 1 a Segue error without a kind of its own; 2 wrong usage; 3 a bad bundle; 4 a bad checkpoint; "
    "5 parity missed; 6 output not writable; 7 an optional package is missing; 8 training failed; 9 no engine that "
    "fits; 10 no room within the budget; 11 busy; 70 a defect of Segue; 130 stopped by Ctrl-C; 141 standard output "
    "was closed."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="segue", message="segue %(version)s")
def cli() -> None:
    """Few-step diffusion: train, export, render."""


for command in (
    *cli_render.COMMANDS, *cli_video.COMMANDS, *cli_batch.COMMANDS, *cli_bench.COMMANDS, *cli_serve.COMMANDS,
    *cli_engines.COMMANDS, *cli_train.COMMANDS, cli_plan.plan,
):  # fmt: skip
    cli.add_command(command)


@cli.command()
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle directory to make.")
@click.option("--precision", type=click.Choice(["keep", "fp16", "bf16", "fp32"]), default="keep", show_default=True)
@click.option("--parity/--no-parity", default=True, show_default=True, help="Compare every graph with PyTorch.")
@click.option("--name", help="The bundle's name (default: that of the directory).")
@click.option("--lora", "loras", type=Scaled(), multiple=True, help="Merge a LoRA file, as FILE=0.8. Repeatable.")
@click.option(
    "--part-size", type=Bytes(), default=PART_BYTES, help="Weights of a part (default: 256MiB; docs/memory.md)."
)
@click.option("--target", type=click.Choice(COMPILED), help="Build its engines as well, as segue build does.")
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
    target: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Export CHECKPOINT, a directory in diffusers' format or hf:ORG/NAME[@REVISION], as a bundle.

    No weight is loaded.

    \b
    Examples:
      segue export ./checkpoint -o my-bundle
      segue export hf:stabilityai/stable-diffusion-3-medium-diffusers -o sd3 --precision fp16
    """
    if target is None and any(wanted.values()):
        raise click.UsageError(
            "--sm, --shapes, --guidance, --budget and --into-bundle are those of --target. Give it as well."
        )
    if target is not None:  # known before the export
        wanted["sm"] = checked(target, wanted["sm"])
    need("onnxscript", "export")
    from .export.export import export as run
    from .export.hub import locate
    from .export.lora import Lora

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
            progress=report,
        )
    show.line(f"{output}: {len(made.components)} components, {_megabytes(made)} MB")
    if made.fidelity is not None:
        show.line(f"what it draws is at {made.fidelity.psnr:.1f} dB to {made.fidelity.against}")
    show.event(
        "bundle", path=str(output), parity=[dataclasses.asdict(p) for p in made.parity],
        fidelity=None if made.fidelity is None else dataclasses.asdict(made.fidelity),
    )  # fmt: skip
    if target is not None:
        from .runtime.bundle import read

        build_engines(show, read(output), target=target, **wanted)


@cli.command()
@click.argument("bundle", type=BUNDLE)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint directory to make."
)
@JSON
def unpack(bundle: str, output: Path, as_json: bool) -> None:
    """Restore the diffusers checkpoint that BUNDLE was exported from.

    \b
    Example:
      segue unpack emoji -o checkpoint
    """
    from .export.unpack import unpack as run
    from .runtime.bundle import resolve

    show = Output(as_json)
    with show.progress("unpacking", "bytes") as update:
        run(resolve(bundle), output, lambda file, done, total: update(done, total))
    show.line(str(output))
    show.event("checkpoint", path=str(output))


@cli.command()
@click.argument("bundle", type=BUNDLE)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle directory to make.")
@click.option(
    "--kind", type=click.Choice(QUANTIZED), default=QUANTIZED[0], show_default=True,
    help="int8: for processors. w8a8, fp8: the denoiser for GPUs, calibrated; fp8 needs SM 8.9 or above.",
)  # fmt: skip
@JSON
def quantize(bundle: str, output: Path, kind: str, as_json: bool) -> None:
    """Make of BUNDLE one whose large matrices have 8 bits, which is smaller and faster.

    \b
    Example:
      segue quantize emoji -o emoji-int8
    """
    need("onnxscript", "export")
    from .export.quantize import quantize as run
    from .runtime.bundle import resolve

    show = Output(as_json)
    with show.progress("quantizing") as update:
        made = run(resolve(bundle), output, kind=kind, progress=lambda what, done, total: update(done, total))
    assert made.fidelity is not None
    show.line(f"{output}: {_megabytes(made)} MB, pictures at {made.fidelity.psnr:.1f} dB to those of {bundle} in fp32")
    parity = [dataclasses.asdict(p) for p in made.parity]
    show.event("bundle", path=str(output), parity=parity, fidelity=dataclasses.asdict(made.fidelity))


@cli.command()
@click.argument("bundle", type=BUNDLE)
@JSON
def inspect(bundle: str, as_json: bool) -> None:
    """Show what BUNDLE holds: components, parity, sampler, sizes, provenance.

    \b
    Example:
      segue inspect emoji
    """
    from .runtime.bundle import read

    made = read(bundle).manifest
    show = Output(as_json)
    if as_json:
        show.event("manifest", **dataclasses.asdict(made))
        return
    rows: list[tuple[Any, ...]] = [
        (
            name,
            c.precision,
            f"{c.parameters / 1e6:.2f} M",
            c.opset,
            ", ".join(_port(t.name, t.shape) for t in c.inputs),
        )
        for name, c in made.components.items()
    ]
    table(
        f"{made.name} ({made.family}), {_megabytes(made)} MB",
        ("component", "precision", "parameters", "opset", "inputs"),
        rows,
    )
    rows = [
        (
            p.component,
            ", ".join(_port(n, s) for n, s in p.shapes.items()),
            _number(p.relative_l2),
            _number(p.maximum),
            _number(p.gate),
            p.note,
        )
        for p in made.parity
    ]
    table("parity", ("component", "shapes", "relative L2", "maximum", "gate", "note"), rows)
    sampler, sizes, source = made.sampler, made.sizes, made.provenance
    for label, value in (
        ("sampler", f"{sampler.kind}, shift {sampler.shift:g}, {sampler.steps} steps, guidance {sampler.guidance:g}"),
        ("levels", ", ".join(f"{level:g}" for level in sampler.sigmas) or "the default grid"),
        ("sizes", f"{sizes.default[1]}x{sizes.default[0]}; {sizes.minimum} to {sizes.maximum} by {sizes.multiple}"),
        ("tokens", f"{made.tokenizers['tokenizer'].length} of text, {made.t5_tokens} of T5 (zeros where it is absent)"),
        ("source", f"{source.source}, revision {source.revision}"),
        ("fidelity", _fidelity(made.fidelity)),
        ("licence", source.licence),
        *(("credit", credit) for credit in source.credits),
    ):
        show.line(f"{label:8} {value}")


@cli.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--parity", is_flag=True, help="Also compare every graph with PyTorch again (needs the export extra).")
@click.option("--engines", is_flag=True, help="Also draw one picture or video with every target that works here.")
@click.option("--trust-engines", is_flag=True, help="With --engines, run those that came with the bundle as well.")
@JSON
def verify(bundle: str, parity: bool, engines: bool, trust_engines: bool, as_json: bool) -> None:
    """Hash every file of BUNDLE; compare its graphs with PyTorch, and what runs them here with one another.

    \b
    Example:
      segue verify emoji --parity
    """
    from .runtime.bundle import verify as run

    show = Output(as_json)
    with show.progress("hashing", "bytes") as update:
        opened = run(bundle, lambda _, done, total: update(done, total))
    show.line(f"{opened.directory}: {len(opened.manifest.files)} files are as bundle.json says")
    from .runtime.bundled_engines import verify_engines

    held = verify_engines(opened)
    if held:
        show.line(f"{held} engines in it are as they were built")
    show.event("verified", files=len(opened.manifest.files), engines=held, sha256=opened.digest)
    if parity:
        need("onnxscript", "export")
        from .export.export import describe
        from .export.parity import check

        with show.progress("parity", UNITS["parity"]) as update:
            numbers = counter(1)

            def report(result: Parity) -> None:
                update(next(numbers), 2 * len(opened.manifest.components))
                show.line(describe(result))

            results = check(opened.directory, opened.manifest.components, report)
        show.event("parity", parity=[dataclasses.asdict(p) for p in results])
    if engines:
        compare_engines(show, opened, trust_engines)


def _megabytes(made: Any) -> str:
    return f"{sum(f.bytes for f in made.files.values()) / 1e6:.1f}"


def _port(name: str, shape: Sequence[int | str]) -> str:
    return f"{name} {'x'.join(map(str, shape))}"


def _fidelity(found: Fidelity | None) -> str:
    if found is None:
        return "not measured, or in fp32"
    before = f"; that one: {_fidelity(found.source)}" if found.source else ""
    return f"{found.psnr:.1f} dB (gate {found.gate:g}) to {found.against}, {found.pictures} pictures or clips{before}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def main() -> None:
    """Run the command line; no traceback reaches the user unless SEGUE_DEBUG is set."""
    sys.exit(guard(lambda: cli.main(standalone_mode=False), Output("--json" in sys.argv[1:])))


if __name__ == "__main__":
    main()
