"""A server in this process, and one in a process of its own that can be killed."""

import json
import subprocess
import sys
from contextlib import contextmanager

import httpx
from fastapi.testclient import TestClient

import segue
from segue.app.runner import Runner
from segue.app.server import create_app


@contextmanager
def local(folder, *bundles, limit=16, token=None, **options):
    """Yield (client, runner) of a server in this process."""
    models = {}
    for bundle in bundles:
        model = segue.open(bundle)
        name = model.bundle.manifest.name
        models[name if name not in models else f"{name}-video"] = model
    with Runner(models, folder, limit) as runner:
        app = create_app(runner, token, **options)
        with TestClient(app, base_url="http://127.0.0.1:8421") as client:
            yield client, runner


@contextmanager
def served(folder, *bundles, queue=16, options=(), stderr=None):
    """Yield (client, process) of `segue serve` in a process of its own; it is killed at the end.

    `stderr` is a file for its standard error.
    """
    command = [
        sys.executable,
        "-m",
        "segue",
        "serve",
        *map(str, bundles),
        "--data",
        str(folder),
        "--port",
        "0",
        "--json",
    ]
    command += ["--queue", str(queue), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["event"] == "serving", said
        with httpx.Client(base_url=said["address"], timeout=120) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def wait(client, identifier):
    """Return a job when it is over, by following its events to the last."""
    with client.stream("GET", f"/v1/jobs/{identifier}/events") as answer:
        for _ in answer.iter_lines():
            pass
    return client.get(f"/v1/jobs/{identifier}").json()
