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
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name of this machine, as a container's; repeatable.",
)
@click.option("--token", envvar="SEGUE_TOKEN", help="Secret that every request must send. Other machines need it.")
@click.option("--queue", type=click.IntRange(1), default=16, show_default=True, help="Most jobs that wait or run.")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of jobs (default: in the user's data).")
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory of each bundle, as 512MiB.")
@click.option(
    "--lora-dir", "loras", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of the LoRA files that jobs may name.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Show each request and each job on standard error.")
@click.option("--access-log", type=click.Path(path_type=Path), help="Append each request to this file.")
@signing
@JSON
def serve(
    bundles: tuple[str, ...], host: str, port: int, hosts: tuple[str, ...], token: str | None, queue: int,
    data: Path | None, threads: int | None, budget: int | None, loras: Path | None, verbose: bool,
    access_log: Path | None,
    metadata: bool, certificate: Certificate | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve BUNDLES (directories, or names of shipped bundles; default: emoji and emoji-motion) over HTTP.

    The server takes jobs and sends their progress as server-sent events. It also has OpenAI's /v1/images/generations,
    a web page at /, and /docs tells of its endpoints. Only this machine can reach it. Another --host needs a --token.

    \b
    Examples:
      segue serve
      segue serve emoji ./my-bundle --port 9000
      segue serve --allow-host host.docker.internal
      SEGUE_TOKEN=$(openssl rand -hex 16) segue serve --host 0.0.0.0
    """
    need("fastapi", "app")
    need("uvicorn", "app")
    need("fastapi_swagger", "app")
    import os
    import signal
    import socket
    import warnings

    import uvicorn

    from ..app.addresses import addresses
    from ..app.guards import LOOPBACK
    from ..app.logs import log_config
    from ..app.private import prepare_folder
    from ..app.runner import Runner
    from ..app.server import create_app
    from ..runtime.media.provenance import check_certificate
    from ..runtime.pipeline import open_model
    from ..runtime.storage.files import check_writable

    show = Output(as_json)
    if token == "":
        raise UsageError("the token is empty and protects nothing. Give a secret, or leave --token out.")
    if host not in LOOPBACK and token is None:
        raise UsageError(f"--host {host} lets other machines in. Give a secret with --token, or leave --host out.")
    if certificate is not None:
        check_certificate(certificate)  # now, not after the first job
    if access_log is not None:
        check_writable(access_log)
    folder = data or _data_directory()
    prepare_folder(folder, owned=data is None)
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
    os.umask(0o077)  # only this user may read what the server writes
    warnings.simplefilter("ignore", UserWarning)  # the answers hold what a model warns of
    with listening, Runner(models, folder, queue, metadata, certificate, loras) as runner:
        reached = addresses(host, listening.getsockname()[1])
        verb = "serves" if len(reached) == 1 else "serve"
        show.line(
            f"{' and '.join(reached)} {verb} {', '.join(models)}; jobs are kept in {folder}. Stop it with Ctrl-C."
        )
        show.event("serving", address=reached[0], bundles=list(models), data=str(folder))
        # the timeout: a stream to an open page must not delay the end
        config = uvicorn.Config(
            create_app(runner, token, local=host in LOOPBACK, hosts=hosts), timeout_graceful_shutdown=2,
            log_config=log_config(verbose, access_log), access_log=verbose or access_log is not None,
        )  # fmt: skip
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
    """Render each line of the file JOBS once: a prompt, or a job as a JSON object.

    A job holds the options of render or animate: {"id": "heart", "prompt": "a red heart", "seed": 7}. A job without a
    seed gets a random one. The output directory gets the files and results.jsonl, with a line for each job. After a
    stop, run the same command to continue. It also tries failed jobs again.

    \b
    Examples:
      segue batch prompts.txt -o out
      segue batch jobs.jsonl -o out --bundle ./my-bundle --workers 4
      segue batch jobs.jsonl -o out --ray auto
    """
    from ..runtime.batch.job_file import read_jobs
    from ..runtime.batch.jobs import RESULTS, Ledger
    from ..runtime.batch.workers import LocalWorkers, RayWorkers, Workers, run_batch
    from ..runtime.bundle.prompts import read_prompts
    from ..runtime.bundle.reader import read

    show = Output(as_json)
    if ray is not None and workers != 1:
        raise UsageError("--workers are processes of this machine, but --ray uses a cluster. Leave one of them out.")
    opened = read(bundle)
    wanted = read_jobs(jobs, opened.manifest, opened.digest, metadata, certificate, read_prompts(opened))
    ledger = Ledger(output, certificate)
    used: Workers
    if ray is None:
        used = LocalWorkers(bundle, opened.digest, workers, threads, target)
    else:
        used = RayWorkers(ray, bundle, opened.digest, threads or 1, target)
    work = show.work("pictures" if opened.manifest.video is None else "videos", len(wanted))
    # The workers end inside `stoppable`: a second Ctrl-C must not wait for them
    with stopped_with("Run the same command to continue."), show.stoppable("job") as stop, work:
        try:
            left = [ledger.seeded(job) for job in wanted if not ledger.has(job)]
            before = count = len(wanted) - len(left)
            work.count(before, len(wanted))
            work.begin(before / len(wanted))

            def report(row: dict) -> None:
                nonlocal count
                count += 1
                work.count(count, len(wanted))
                work.reach(count, len(wanted))
                show.event("progress", task="rendering", done=count, total=len(wanted))
                show.event("result", **row)
                if row["state"] == "failed":
                    show.warning(f"{row['id']}: {row['error']}")
                for text in row.get("warnings", ()):
                    show.warning(f"{row['id']}: {text}")

            counts = run_batch(left, ledger, used, report, stop)
        finally:
            used.close()
            ledger.close()
    also = f", {before} done before" if before else ""
    drawn = f"; the seeds are in {output / RESULTS}" if any("seed" not in job.arguments for job in wanted) else ""
    show.line(f"{output}: {counts['done']} done, {counts['failed']} failed{also}{drawn}")
    show.event("batch", path=str(output), done=counts["done"], failed=counts["failed"], before=before)
    if counts["failed"]:
        raise SegueError(f"{counts['failed']} of {len(wanted)} jobs failed. See {output / RESULTS}.")


COMMANDS = (serve, batch)
