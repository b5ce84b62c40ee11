"""The commands that read a bundle or a file: inspect, verify, show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import count as counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .console import JSON, Output, need, table
from .options import BUNDLE, megabytes
from .plan import facts_lines
from .terminal.input_pictures import input_pictures

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import Fidelity, Manifest, Parity
    from ..runtime.bundle.prompts import Prompts
    from ..runtime.bundle.reader import Bundle
    from ..runtime.diagnostics.compare import Comparison


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--prompts", is_flag=True, help="Show only the names that BUNDLE was trained on.")
@JSON
def inspect(bundle: str, prompts: bool, as_json: bool) -> None:
    """Show what BUNDLE draws, its sizes, steps, memory and licence, and then its components and parity.

    \b
    Examples:
      segue inspect emoji
      segue inspect emoji --prompts
    """
    from ..runtime.bundle.prompts import read_prompts
    from ..runtime.bundle.reader import read
    from ..runtime.diagnostics.catalogue import BUNDLE as KIND
    from ..runtime.diagnostics.catalogue import facts_of

    opened = read(bundle)
    made, names, show = opened.manifest, read_prompts(opened), Output(as_json)
    if prompts:
        _show_names(show, made, names)
        return
    facts = facts_of(bundle, KIND, made, names)
    if as_json:
        show.event("manifest", **dataclasses.asdict(made), facts=dataclasses.asdict(facts))
        return
    sampler, sizes, source = made.sampler, made.sizes, made.provenance
    show.line(made.name)
    for line in facts_lines(facts, sizes, () if names is None else names.styles):
        show.line(line)
    for label, value in (
        *(("credit", credit) for credit in source.credits),
        ("source", f"{source.source}, revision {source.revision}"),
        ("sampler", f"{sampler.kind}, shift {sampler.shift:g}"),
        ("levels", ", ".join(f"{level:g}" for level in sampler.sigmas) or "the default grid"),
        ("tokens", _tokens(made)),
        ("fidelity", _fidelity(made.fidelity)),
    ):
        show.line(f"{label:8} {value}")
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
        f"{made.name} ({made.family}), {megabytes(made)} MB",
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


def _show_names(show: Output, made: Manifest, names: Prompts | None) -> None:
    """Show the names that a bundle was trained on; variants by skin tone are only counted."""
    from ..runtime.bundle.prompts import VARIANT

    if names is None:
        raise UsageError(f"the bundle {made.name} takes any text, so it has no list of names. Leave --prompts out.")
    show.event("prompts", **dataclasses.asdict(names))
    trained = [name for name in names.names if name.seen]
    plain = [name for name in trained if VARIANT not in name.name]
    for name in plain:
        show.line(f"{name.emoji or ' '}  {name.name}")
    if len(trained) > len(plain):
        variant = next(name.name for name in trained if VARIANT in name.name)
        show.line(f"{len(trained) - len(plain)} variants by skin tone, such as: {variant}")
    if names.styles:
        show.line(f"styles, after a comma: {', '.join(names.styles)}")


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--parity", is_flag=True, help="Compare every graph with PyTorch again (needs the export extra).")
@click.option("--engines", is_flag=True, help="Compare this machine's targets on one picture or video.")
@click.option(
    "--trust-engines",
    is_flag=True,
    help="With --engines: also run the engines inside the bundle. They are code of its maker.",
)
@input_pictures
@JSON
def verify(
    bundle: str, parity: bool, engines: bool, trust_engines: bool, as_json: bool, inputs: dict[str, Any]
) -> None:
    """Check the sha256 of every file.

    `--parity` also compares with PyTorch. `--engines` compares this machine's targets, on a picture that begins with
    --image, or with a test pattern whose noise hides it.

    \b
    Examples:
      segue verify emoji --parity
      segue verify emoji --engines --image heart.png --strength 0.6
    """
    from ..runtime.bundle.reader import verify as run

    if inputs and not engines:
        raise UsageError("pictures are for the comparison of targets. Give --engines too, or leave them out.")
    show = Output(as_json)
    with show.progress("hashing", "bytes") as update:
        opened = run(bundle, lambda _, done, total: update(done, total))
    show.line(f"{opened.directory}: {len(opened.manifest.files)} files match bundle.json")
    from ..runtime.engine_cache.bundled import verify_engines

    held = verify_engines(opened)
    if held:
        show.line(f"{held} engines in it match their records")
    show.event("verified", files=len(opened.manifest.files), engines=held, sha256=opened.digest)
    if parity:
        need("onnxscript", "export")
        from ..export.checks.parity import check
        from ..export.export import describe

        with show.progress("parity", "comparisons") as update:
            numbers = counter(1)

            def report(result: Parity) -> None:
                update(next(numbers), 2 * len(opened.manifest.components))
                show.line(describe(result))

            single = opened.manifest.provenance.single_file
            results = check(opened.directory, opened.manifest.components, report, single=single)
        show.event("parity", parity=[dataclasses.asdict(p) for p in results])
    if engines:
        compare_engines(show, opened, trust_engines, inputs)


def _port(name: str, shape: Sequence[int | str]) -> str:
    return f"{name} {'x'.join(map(str, shape))}"


def _tokens(made: Manifest) -> str:
    if not made.tokenizers:
        return "none: it draws without a prompt"
    return f"{made.tokenizers['tokenizer'].length} of text, {made.t5_tokens} of T5 (zeros if T5 is absent)"


def _fidelity(found: Fidelity | None) -> str:
    if found is None:
        return "not measured, or in fp32"
    before = f"; its source: {_fidelity(found.source)}" if found.source else ""
    return (
        f"{found.psnr:.1f} dB (gate {found.gate:g}) compared with {found.against}, {found.pictures} pictures or "
        f"clips{before}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def compare_engines(show: Output, opened: Bundle, trust: bool = False, inputs: Mapping[str, Any] | None = None) -> None:
    """Compare every working target with the CPU and show each result; `inputs` are arguments of `Request`."""
    from ..errors import EngineError, ParityError
    from ..runtime.diagnostics.compare import REFERENCE, as_json, compare, store, usual_request
    from ..runtime.diagnostics.doctor import OK, examine

    fine = [finding.subject for finding in examine() if finding.state == OK]
    working = [subject.removeprefix("target ") for subject in fine if subject.startswith("target ")]
    others = [target for target in working if target != REFERENCE]
    if not others:
        raise EngineError(
            f"only {REFERENCE} runs here, so there is nothing to compare. Run segue doctor to see what is missing."
        )
    need("polygraphy", "verify")
    with show.progress("comparing", "targets") as update:
        request = usual_request(opened.manifest, inputs or {})
        found = compare(opened, others, request, lambda _, done, total: update(done, total), trust)
    faults = []
    for each in found:
        if each.why:
            show.warning(f"{each.target} was not compared: {each.why}")
        elif not show.as_json:
            pixels = "equal" if each.psnr is None else f"at {each.psnr:.1f} dB"
            title = f"{each.target} compared with {REFERENCE}: pixels {pixels}"
            table(title, ("", "relative L2", "maximum", "gate", "growth"), _rows(opened, each))
        show.event("comparison", **as_json(each))
        faults += [f"{each.target}: {fault}" for fault in each.faults(opened)]
    if all(each.why for each in found):
        raise EngineError(f"no target of {', '.join(others)} runs this bundle: {found[0].why}")
    show.line(f"written to {store(opened, found)}")
    if faults:
        raise ParityError(f"{'; '.join(faults)}. Do not use that target for this bundle, and report it.")


def _rows(opened: Bundle, found: Comparison) -> list[tuple[str, ...]]:
    """Return a row for each component and each step; a step's growth is relative to the first step."""
    from ..runtime.diagnostics.compare import gate_of

    rows: list[tuple[str, ...]] = [
        (name, f"{far.relative_l2:.1e}", f"{far.maximum:.1e}", f"{gate_of(opened, name):g}", "")
        for name, far in found.components.items()
    ]
    for name, steps in found.steps.items():
        grown = [step / steps[0] if steps[0] else 1.0 for step in steps]
        rows += [
            (f"{name}, step {number}", f"{step:.1e}", "", "", f"{growth:.2f}")
            for number, (step, growth) in enumerate(zip(steps, grown, strict=True), 1)
        ]
    return rows


@click.command(name="show")
@click.argument("file", type=click.Path(path_type=Path))
@JSON
def show_metadata(file: Path, as_json: bool) -> None:
    """Show the origin of FILE, a picture or video that Segue wrote: its request, bundle and signature.

    \b
    Example:
      segue show a-red-heart-7.png
    """
    from ..runtime.media.provenance import read_file

    found, out = read_file(file), Output(as_json)
    out.event("provenance", path=str(file), **found)
    if as_json:
        return
    metadata, signature = found["metadata"], found["signature"]
    if metadata is None:
        out.line(f"{file} holds no metadata of Segue.")
    else:
        rows = [(name, _shown(name, value)) for name, value in metadata.items() if value is not None]
        table(str(file), ("what", "value"), rows)
    if signature is None:
        out.line("It is not signed.")
    elif signature["valid"] is None:
        out.line(f"It may be signed: {signature['why'][0]}")
    elif signature["valid"]:
        out.line(
            f"Signed by {signature['signer']} ({signature['issuer']}) and not changed since. Segue did not check "
            "whether that signer is trustworthy."
        )
    else:
        out.line(f"Its signature by {signature['signer']} is not valid: {', '.join(signature['why'])}.")


def _shown(name: str, value: Any) -> Any:
    """Return a value of the metadata for people: a size as width x height, as every command takes it."""
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)
    return f"{value[1]}x{value[0]}" if name == "size" and pair else value


COMMANDS = (inspect, verify, show_metadata)
