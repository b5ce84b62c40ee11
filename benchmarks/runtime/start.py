"""Start-up: `import segue`, and `segue render emoji "a red heart"` as a whole process, each in fresh processes.

    python benchmarks/start.py

Prints the median and the range of seven runs and writes benchmarks/results/start.json. The first run verifies the
weights' sha256 and remembers it; it is reported apart. Ends with 1 where a median is above its gate: 0.3 s to import,
3 s to render.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RUNS = 7
GATES = {"import segue": 0.3, "render": 3.0}  # seconds


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        render = [sys.executable, "-m", "segue.cli", "render", "emoji", "a red heart", "-o", f"{folder}/heart.png"]
        first = seconds(render, environment)
        time.sleep(3)  # a file younger than the clock's grain is not remembered as verified
        results = {
            "import segue": spread([in_process("import segue") for _ in range(RUNS)]),
            "render, first run": round(first, 3),
            "render": spread([seconds(render, environment) for _ in range(RUNS)]),
        }
    results["cores"] = os.cpu_count()
    results["load average"] = os.getloadavg()[0]
    results["versions"] = {name: version(name) for name in ("segue", "onnxruntime", "numpy")}
    print(json.dumps(results, indent=1))
    (Path(__file__).parent / "results/start.json").write_text(json.dumps(results, indent=1) + "\n")
    passed = all(results[name]["median"] <= gate for name, gate in GATES.items())  # type: ignore[index]
    print("within the gates" if passed else "OUTSIDE the gates")
    return 0 if passed else 1


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return how long `command` takes as a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return time.perf_counter() - started


def in_process(statement: str) -> float:
    """Return how long `statement` takes in a fresh interpreter, without the interpreter's own start."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest in seconds."""
    return {
        "median": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
