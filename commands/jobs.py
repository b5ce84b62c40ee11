"""The command of `segue` that serves bundles over HTTP. It needs the app extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .console import JSON, Output, need
from .options import BUNDLE, Bytes, signing

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate

SHIPPED = ("emoji", "emoji-motion")


@click.command()
@click.argument("bundles", type=BUNDLE, nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8421, show_default=True, help="0 takes a free one.")
@click.option("--token", envvar="SEGUE_TOKEN", help="Secret that every request has to send; needed beyond loopback.")
@click.option("--queue", type=click.IntRange(1), default=16, show_default=True, help="Jobs that wait or run at most.")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of jobs (default: below the user's data).")
@click.option("--threads", type=int, help="Processor threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="The most memory that each bundle may take.")
@signing
@JSON
def serve(
    bundles: tuple[str, ...], host: str, port: int, token: str | None, queue: int, data: Path | None,
    threads: int | None, budget: int | None, metadata: bool, certificate: Certificate | None, as_json: bool,
) -> None:  # fmt: skip
    """Serve BUNDLES (directories, or names of shipped ones; emoji and emoji-motion if left out) to this machine.

    Jobs over HTTP with progress as server-sent events, OpenAI's /v1/images/generations, and a web page at the root;
    the schema is at /openapi.json. Only this machine can reach it, unless --host says otherwise, which needs --token.

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
        raise UsageError("the token is empty, which protects nothing. Give a secret, or leave --token out.")
    if host not in LOOPBACK and token is None:
        raise UsageError(f"--host {host} lets other machines in. Give a secret with --token, or leave --host out.")
    if certificate is not None:
        check_certificate(certificate)  # not when the first job is done
    folder = data or _data_directory()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    models = {}
    for bundle in bundles or SHIPPED:
        model = open_model(bundle, threads, budget=budget)
        name = model.bundle.manifest.name
        if name in models:
            raise UsageError(f"two bundles are called {name!r}. Leave one out.")
        models[name] = model
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise UsageError(f"{host} is no address of this machine: {error.strerror}. Give another --host.") from None
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be listened at: {error.strerror}. Choose another --port.") from None
    # asyncio does it for sockets that name their protocol, which this one does not: small answers would wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # uvicorn ends on it and then raises it again, which would kill the process before its jobs are put back
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with listening, Runner(models, folder, queue, metadata, certificate) as runner:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        show.line(f"{address} serves {', '.join(models)}; jobs are kept in {folder}. Stop it with Ctrl-C.")
        show.event("serving", address=address, bundles=list(models), data=str(folder))
        # a stream to a page that stays open must not hold up the end
        config = uvicorn.Config(
            create_app(runner, token, local=host in LOOPBACK), log_level="warning", timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run([listening])


def _data_directory() -> Path:
    from ..runtime.storage.paths import data_directory

    return data_directory() / "serve"


COMMANDS = (serve,)
