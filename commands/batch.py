"""The command of `segue` that renders many requests from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import SegueError, UsageError
from .console import JSON, Output
from .options import BUNDLE, TARGET, signing, stopped_with

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate


@click.command()
@click.argument("jobs", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory for files and results.")
@click.option("--bundle", type=BUNDLE, default="emoji", show_default=True, help="A directory, or a shipped one's name.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes of this machine.")
@click.option("--threads", type=int, help="Processor threads of each (default: its share of the cores).")
@click.option("--ray", metavar="ADDRESS", help="Use a Ray cluster instead: its address, or auto. Needs the ray extra.")
@TARGET
@signing
@JSON
def batch(
    jobs: Path, output: Path, bundle: str, workers: int, threads: int | None, ray: str | None, target: str,
    metadata: bool, certificate: Certificate | None, as_json: bool,
) -> None:  # fmt: skip
    """Render the JOBS of a file with one JSON object a line, each once.

    A job holds the options of render or animate: {"id": "heart", "prompt": "a red heart", "seed": 7}. Files and
    results.jsonl, a line for each job, come into the output directory. A command that was stopped goes on when it is
    given again; jobs that failed are tried again.

    \b
    Examples:
      segue batch jobs.jsonl -o out
      segue batch jobs.jsonl -o out --bundle ./my-bundle --workers 4
      segue batch jobs.jsonl -o out --ray auto
    """
    from ..runtime.batch.jobs import Ledger, read_jobs
    from ..runtime.batch.workers import LocalWorkers, RayWorkers, Workers, run_batch
    from ..runtime.bundle.reader import read

    show = Output(as_json)
    if ray is not None and workers != 1:
        raise UsageError("--workers are processes of this machine; a cluster has its own. Leave one of them out.")
    opened = read(bundle)
    wanted = read_jobs(jobs, opened.manifest, opened.digest, metadata, certificate)
    ledger = Ledger(output, certificate)
    used: Workers
    if ray is None:
        used = LocalWorkers(bundle, opened.digest, workers, threads, target)
    else:
        used = RayWorkers(ray, bundle, opened.digest, threads or 1, target)
    try:
        with stopped_with("Run the same command to go on."), show.progress("rendering", "jobs") as update:
            left = [job for job in wanted if not ledger.has(job)]
            before = count = len(wanted) - len(left)

            def report(row: dict) -> None:
                nonlocal count
                count += 1
                update(count, len(wanted))
                show.event("result", **row)
                if row["state"] == "failed":
                    show.warning(f"{row['id']}: {row['error']}")

            told = run_batch(left, ledger, used, report)
    finally:
        used.close()
        ledger.close()
    also = f", {before} were there before" if before else ""
    show.line(f"{output}: {told['done']} done, {told['failed']} failed{also}")
    show.event("batch", path=str(output), done=told["done"], failed=told["failed"], before=before)
    if told["failed"]:
        raise SegueError(f"{told['failed']} of {len(wanted)} jobs failed. See {output / 'results.jsonl'}.")


COMMANDS = (batch,)
