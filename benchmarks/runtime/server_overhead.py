"""What a picture takes more over HTTP than in Python: both in turn, in this process and against a server of its own.

    python benchmarks/server_overhead.py [BUNDLE]

Each round draws the same picture by `Model.render` and `encode_png`, and by a job: POST, events until "done", GET of
the file. Prints, and writes to benchmarks/results/server_overhead.json, quartiles of both and of their difference round
by round; ends with 1 where the median of the difference is above 20 ms.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import httpx

import segue
from segue.runtime.media.png import encode_png

GATE = 0.020  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="emoji")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    command = [sys.executable, "-m", "segue", "serve", options.bundle, "--port", "0", "--json", "--data"]
    with (
        tempfile.TemporaryDirectory() as folder,
        segue.open(options.bundle) as model,
        subprocess.Popen([*command, folder], stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        with httpx.Client(base_url=address, timeout=60) as client:
            pairs = [(bare(model, seed), served(client, seed)) for seed in range(options.rounds + 2)][2:]
        server.terminate()
    differences = [there - here for here, there in pairs]
    results = {
        "bundle": options.bundle,
        "rounds": options.rounds,
        "bare (ms)": quartiles([here for here, _ in pairs]),
        "served (ms)": quartiles([there for _, there in pairs]),
        "difference (ms)": quartiles(differences),
        "versions": {name: version(name) for name in ("segue", "fastapi", "uvicorn", "onnxruntime")},
    }
    print(json.dumps(results, indent=1))
    (Path(__file__).parent / "results/server_overhead.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if statistics.median(differences) <= GATE else 1


def bare(model: segue.Model, seed: int) -> float:
    """Return the seconds of a picture in this process."""
    started = time.perf_counter()
    result = model.render(segue.Request("a red heart", seed=seed))
    encode_png(result.images[0], result.metadata[0])
    return time.perf_counter() - started


def served(client: httpx.Client, seed: int) -> float:
    """Return the seconds of a picture as a job."""
    started = time.perf_counter()
    job = client.post("/v1/jobs", json={"kind": "picture", "prompt": "a red heart", "seed": seed}).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        for _ in events.iter_lines():
            pass
    client.get(f"/v1/jobs/{job['id']}/files/picture-1.png").raise_for_status()
    return time.perf_counter() - started


def quartiles(seconds: list[float]) -> list[float]:
    """Return the quartiles in ms."""
    return [round(1000 * value, 2) for value in statistics.quantiles(seconds, n=4)]


if __name__ == "__main__":
    sys.exit(main())
