"""Time that HTTP adds to a picture: the same picture in this process and from a server process, in turns.

    python benchmarks/runtime/server_overhead.py [BUNDLE]

Each round draws one picture by `Model.render` and `encode_png`. It draws the same picture by a job: POST, events until
"done", GET of the file. The results are the quartiles of both times and of their difference, round by round. They go
to benchmarks/results/server_overhead.json. The exit code is 1 if the median of the difference is above 20 ms.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

import segue
from segue.runtime.media.png import encode_png

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

GATE = 0.020  # seconds


def main() -> int:
    parser = common.make_parser(__doc__, "server_overhead", rounds=40)
    parser.add_argument("bundle", nargs="?", default="emoji")
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
        "bare (ms)": quartiles_ms([here for here, _ in pairs]),
        "served (ms)": quartiles_ms([there for _, there in pairs]),
        "difference (ms)": quartiles_ms(differences),
        **common.header("segue", "fastapi", "uvicorn", "onnxruntime"),
    }
    common.report(options.out, results)
    return common.exit_code(common.Gate("median difference (s)", statistics.median(differences), GATE))


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


def quartiles_ms(seconds: list[float]) -> list[float]:
    """Return the quartiles in ms."""
    return common.quartiles([1000 * value for value in seconds], 2)


if __name__ == "__main__":
    sys.exit(main())
