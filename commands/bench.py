"""The commands of `segue` that measure on the user's own machine and prompts: bench and compare."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .console import JSON, Output, need, table
from .options import BUNDLE, TARGET, Size


class Duration(click.ParamType):
    """A time as "500ms" or "1.5s", to seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, above 0."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no time. Write 500ms or 1.5s.", param, ctx)
        return float(found[1]) / (1000 if found[2] == "ms" else 1)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--prompt", default="a red heart", show_default=True)
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128.")
@click.option("--steps", type=int, help="Network calls a picture (default: the bundle's).")
@click.option("--repeats", type=click.IntRange(2), default=10, show_default=True, help="Pictures that are timed.")
@click.option("--threads", type=int, help="Processor threads (default: the cores of this process).")
@TARGET
@JSON
def bench(
    bundle: str, prompt: str, size: tuple[int, int] | None, steps: int | None, repeats: int, threads: int | None,
    target: str, as_json: bool,
) -> None:  # fmt: skip
    """Time one picture of BUNDLE, component by component, with its spread and share of this machine's peak.

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
        columns = ("component", "calls", "ms a call (10 % to 90 %)", "GFLOP a call", "of the peak")
        table(title, (*columns, "MiB on the device") if known else columns, rows)
    show.line(
        f"{_milliseconds(found.picture)} ms a picture, the first {1000 * found.first:.0f} ms; the peak is numpy's "
        f"{found.peak / 1e9:.0f} GFLOP/s in fp32"
    )
    show.event("bench", **dataclasses.asdict(found))


@click.command()
@click.argument("first", type=BUNDLE)
@click.argument("second", type=BUNDLE)
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option("--latency-budget", "budget", required=True, type=Duration(), help="The most for a picture, as 500ms.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New directory for the report.")
@click.option("--seeds", type=click.IntRange(1, 16), default=2, show_default=True, help="Pictures a prompt.")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the first bundle's).")
@click.option("--steps", type=click.IntRange(1), help="Network calls of both (default: each bundle's own).")
@click.option("--threads", type=int, help="Processor threads (default: the cores of this process).")
@TARGET
@click.option("--price", type=click.FloatRange(0), help="Of an hour of this machine, for the cost of a thousand.")
@click.option("--data", type=click.Path(path_type=Path), help="Captioned pictures (segue data), to score agreement.")
@JSON
def compare(
    first: str, second: str, prompts: Path, budget: float, out: Path, seeds: int, size: tuple[int, int] | None,
    steps: int | None, threads: int | None, target: str, price: float | None, data: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Compare two bundles, or a bundle and a directory of pictures, on your own prompts and latency budget.

    FIRST is a bundle; SECOND another one, or a directory whose pictures, in the order of their names, belong to the
    prompts. The report is one HTML page and one JSON file. It needs the train extra and `segue data metrics`.

    \b
    Examples:
      segue compare emoji emoji-teacher --prompts prompts.txt --latency-budget 500ms -o report
      segue compare ./mine ./pictures --prompts prompts.txt --latency-budget 2s -o report --price 0.6
    """
    need("matplotlib", "train")
    from ..runtime.storage.directory import NewDirectory
    from ..training.evaluation.compare import CompareSpec, rows_of
    from ..training.evaluation.compare import compare as run
    from ..training.evaluation.compare_report import write_compare_report

    show = Output(as_json)
    try:
        texts = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{prompts} cannot be read: {error}. Name a file with one prompt a line.") from None
    if len(texts) < 2:
        raise UsageError(f"{prompts} holds {len(texts)} prompts. Write two or more, one a line.")
    spec = CompareSpec(tuple(texts), budget, seeds, size, threads, price, target, steps)
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


COMMANDS = (bench, compare)
