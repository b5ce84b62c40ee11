"""The commands that run many jobs: serve (jobs over HTTP; needs the app extra) and batch (jobs of a file)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import SegueError, UsageError
from .console import JSON, Output, need
from .options import BUNDLE, PICTURES, TARGET, VIDEOS, Bytes, signing, stopped_with

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate


@click.command()
@click.argument("bundles", type=BUNDLE, nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8421, show_default=True, help="0: any free port.")
@click.option("--token", envvar="SEGUE_TOKEN", help="Secret that every request must send. Other machines need it.")
@click.option("--queue", type=click.IntRange(1), default=16, show_default=True, help="Most jobs that wait or run.")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of jobs (default: in the user's data).")
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory of each bundle, as 512MiB.")
@signing
@JSON
def serve(
    bundles: tuple[str, ...], host: str, port: int, token: str | None, queue: int, data: Path | None,
    threads: int | None, budget: int | None, metadata: bool, certificate: Certificate | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve BUNDLES (directories, or names of shipped bundles; default: emoji and emoji-motion) over HTTP.

    The server takes jobs and sends their progress as server-sent events. It also has OpenAI's /v1/images/generations,
    a web page at / and the schema at /openapi.json. Only this machine can reach it. Another --host needs a --token.

    \b
    Examples:
      segue serve
      segue serve emoji ./my-bundle --port 9000
      SEGUE_TOKEN=$(openssl rand -hex 16) segue serve --host 0.0.0.0
    """
    need("fastapi", "app")
    need("uvicorn", "app")
    import signal
    import socket

    import uvicorn

    from ..app.guards import LOOPBACK
    from ..app.runner import Runner
    from ..app.server import create_app
    from ..runtime.media.provenance import check_certificate
    from ..runtime.pipeline import open_model
    from ..runtime.storage.files import writing

    show = Output(as_json)
    if token == "":
        raise UsageError("the token is empty and protects nothing. Give a secret, or leave --token out.")
    if host not in LOOPBACK and token is None:
        raise UsageError(f"--host {host} lets other machines in. Give a secret with --token, or leave --host out.")
    if certificate is not None:
        check_certificate(certificate)  # now, not after the first job
    folder = data or _data_directory()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    models = {}
    for bundle in bundles or (PICTURES, VIDEOS):
        model = open_model(bundle, threads, budget=budget)
        name = model.bundle.manifest.name
        if name in models:
            raise UsageError(f"two bundles are called {name!r}. Leave one out.")
        models[name] = model
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise UsageError(f"{host} is not an address of this machine: {error.strerror}. Give another --host.") from None
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from None
    # asyncio sets it only for sockets that name their protocol; this one does not, so small answers would wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # uvicorn raises SIGTERM again after its end, which would kill the process before the jobs are queued again
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with listening, Runner(models, folder, queue, metadata, certificate) as runner:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        show.line(f"{address} serves {', '.join(models)}; jobs are kept in {folder}. Stop it with Ctrl-C.")
        show.event("serving", address=address, bundles=list(models), data=str(folder))
        # the timeout: a stream to an open page must not delay the end
        config = uvicorn.Config(
            create_app(runner, token, local=host in LOOPBACK), log_level="warning", timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run([listening])


def _data_directory() -> Path:
    from ..runtime.storage.paths import data_directory

    return data_directory() / "serve"


@click.command()
@click.argument("jobs", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory for files and results.")
@click.option("--bundle", type=BUNDLE, default=PICTURES, show_default=True, help="Directory, or name of a shipped one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--threads", type=int, help="CPU threads of each process (default: its share of the cores).")
@click.option("--ray", metavar="ADDRESS", help="Address of a Ray cluster to use, or auto. Needs the ray extra.")
@TARGET
@signing
@JSON
def batch(
    jobs: Path, output: Path, bundle: str, workers: int, threads: int | None, ray: str | None, target: str,
    metadata: bool, certificate: Certificate | None, as_json: bool,
) -> None:  # fmt: skip
    """Render each job of the file JOBS once. A job is one line: a JSON object.

    A job holds the options of render or animate: {"id": "heart", "prompt": "a red heart", "seed": 7}. The output
    directory gets the files and results.jsonl, with a line for each job. After a stop, run the same command to
    continue. It also tries failed jobs again.

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
        raise UsageError("--workers are processes of this machine, but --ray uses a cluster. Leave one of them out.")
    opened = read(bundle)
    wanted = read_jobs(jobs, opened.manifest, opened.digest, metadata, certificate)
    ledger = Ledger(output, certificate)
    used: Workers
    if ray is None:
        used = LocalWorkers(bundle, opened.digest, workers, threads, target)
    else:
        used = RayWorkers(ray, bundle, opened.digest, threads or 1, target)
    try:
        with stopped_with("Run the same command to continue."), show.progress("rendering", "jobs") as update:
            left = [job for job in wanted if not ledger.has(job)]
            before = count = len(wanted) - len(left)

            def report(row: dict) -> None:
                nonlocal count
                count += 1
                update(count, len(wanted))
                show.event("result", **row)
                if row["state"] == "failed":
                    show.warning(f"{row['id']}: {row['error']}")

            counts = run_batch(left, ledger, used, report)
    finally:
        used.close()
        ledger.close()
    also = f", {before} done before" if before else ""
    show.line(f"{output}: {counts['done']} done, {counts['failed']} failed{also}")
    show.event("batch", path=str(output), done=counts["done"], failed=counts["failed"], before=before)
    if counts["failed"]:
        raise SegueError(f"{counts['failed']} of {len(wanted)} jobs failed. See {output / 'results.jsonl'}.")


COMMANDS = (serve, batch)
