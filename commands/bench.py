"""The commands that examine and measure the user's machine: bench, compare, doctor."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import JSON, Output, need, table
from .options import BUNDLE, TARGET
from .terminal.input_pictures import input_pictures
from .terminal.option_types import Size


class Duration(click.ParamType):
    """A time as "500ms" or "1.5s", to seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, above 0."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is not a time above 0. Write 500ms or 1.5s.", param, ctx)
        return float(found[1]) / (1000 if found[2] == "ms" else 1)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--prompt", default="a red heart", show_default=True, help="Text of the picture.")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--steps", type=int, help="Network calls per picture (default: the bundle's).")
@click.option("--repeats", type=click.IntRange(2), default=10, show_default=True, help="Number of timed pictures.")
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@TARGET
@JSON
def bench(
    bundle: str, prompt: str, size: tuple[int, int] | None, steps: int | None, repeats: int, threads: int | None,
    target: str, as_json: bool,
) -> None:  # fmt: skip
    """Time one picture of BUNDLE per component, with spread and share of this machine's peak.

    \b
    Examples:
      segue bench emoji
      segue bench emoji --size 256 --threads 1 --json
    """
    from ..runtime.diagnostics.bench import bench as run
    from ..runtime.request import Request

    show = Output(as_json)
    with show.progress("timing", "pictures") as update:
        found = run(bundle, Request(prompt, size=size, steps=steps), repeats, threads, target, update)
    if not as_json:
        known = any(stage.device_bytes is not None for stage in found.stages)
        rows: list[tuple[Any, ...]] = [
            (
                stage.component,
                stage.calls,
                _milliseconds(stage.seconds),
                "" if stage.flops is None else f"{stage.flops / 1e9:.3g}",
                "" if stage.share is None else f"{stage.share:.0%}",
                *(["" if stage.device_bytes is None else f"{stage.device_bytes / 2**20:.1f}"] if known else []),
            )
            for stage in found.stages
        ]
        title = f"{found.bundle}, {found.target}, {found.threads} threads, {repeats} pictures"
        columns = ("component", "calls", "ms a call (10 % to 90 %)", "GFLOP a call", "share of peak")
        table(title, (*columns, "MiB on the device") if known else columns, rows)
    show.line(
        f"{_milliseconds(found.picture)} ms per picture, {1000 * found.first:.0f} ms for the first; "
        f"numpy's peak in fp32: {found.peak / 1e9:.0f} GFLOP/s"
    )
    show.event("bench", **dataclasses.asdict(found))


@click.command()
@click.argument("first", type=BUNDLE)
@click.argument("second", type=BUNDLE)
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option("--latency-budget", "budget", required=True, type=Duration(), help="Most time for a picture, as 500ms.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New directory for the report.")
@click.option(
    "--seeds", type=click.IntRange(1, 16), default=2, show_default=True, help="Number of pictures per prompt."
)
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the first bundle's).")
@click.option("--steps", type=click.IntRange(1), help="Network calls per picture, for both (default: each bundle's).")
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@TARGET
@click.option(
    "--price", type=click.FloatRange(0), help="Price of this machine per hour; adds the cost of 1,000 pictures."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Directory of captioned pictures (segue data emoji); adds a score of agreement with the prompt.",
)
@input_pictures
@JSON
def compare(
    first: str, second: str, prompts: Path, budget: float, out: Path, seeds: int, size: tuple[int, int] | None,
    steps: int | None, threads: int | None, target: str, price: float | None, data: Path | None, as_json: bool,
    inputs: dict[str, Any],
) -> None:  # fmt: skip
    """Compare two bundles, or a bundle and a directory of pictures, on your own prompts and latency budget.

    FIRST is a bundle. SECOND is another bundle, or a directory with one picture for each prompt, in the order of the
    file names. Input pictures are the same for every prompt. The report is one HTML page and one JSON file. It needs
    the train extra and `segue data metrics`.

    \b
    Examples:
      segue compare emoji emoji-teacher --prompts prompts.txt --latency-budget 500ms -o report
      segue compare ./mine emoji --prompts prompts.txt --latency-budget 1s -o report --image heart.png
      segue compare ./mine ./pictures --prompts prompts.txt --latency-budget 2s -o report --price 0.6
    """
    need("matplotlib", "train")
    from ..runtime.storage.directory import NewDirectory
    from ..runtime.storage.files import read_text
    from ..training.evaluation.compare import CompareSpec, rows_of
    from ..training.evaluation.compare import compare as run
    from ..training.evaluation.compare_report import write_compare_report

    show = Output(as_json)
    try:
        texts = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{prompts} cannot be read: {error}. Name a file with one prompt a line.") from None
    if len(texts) < 2:
        raise UsageError(f"{prompts} must hold at least 2 prompts, got {len(texts)}. Write one prompt a line.")
    spec = CompareSpec(tuple(texts), budget, seeds, size, threads, price, target, steps, inputs)
    with NewDirectory(out) as new:
        with show.stages() as update:
            found = run(first, second, spec, data, lambda what, done, total: update(what, "pictures", done, total))
        write_compare_report(found, spec, new.path)
        new.commit()
    if not as_json:
        table(f"{first} and {second}, {len(texts)} prompts", ("what", first, second), rows_of(found))
    show.line(found.verdict)
    show.line(f"{out}/report.html")
    show.event("compared", path=str(out), verdict=found.verdict)


def _milliseconds(spread: Any) -> str:
    return f"{1000 * spread.median:.3g} ({1000 * spread.low:.3g} to {1000 * spread.high:.3g})"


@click.command()
@click.argument("bundle", type=BUNDLE, required=False)
@JSON
def doctor(bundle: str | None, as_json: bool) -> None:
    """Show what this machine can run, what is missing and how to get it; with BUNDLE also whether it fits.

    \b
    Example:
      segue doctor emoji
    """
    from ..errors import EngineError
    from ..runtime.bundle.reader import read
    from ..runtime.diagnostics.doctor import FAULT, examine, verdict

    show = Output(as_json)
    opened = None if bundle is None else read(bundle)
    found = examine(opened)
    for finding in found:
        show.event("finding", **dataclasses.asdict(finding))
    told = verdict(found, "" if opened is None else opened.manifest.name)
    show.event("verdict", text=told)
    if not as_json:
        show.line(told)
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


COMMANDS = (bench, compare, doctor)
