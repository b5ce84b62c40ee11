"""Start-up time of `import segue` and of `segue render emoji "a red heart"`, each in fresh processes.

    python benchmarks/runtime/start.py

The results are the median and the range of seven runs; they go to benchmarks/results/start.json. The first render
also verifies the sha256 of the weights and remembers it, so it has its own line. The exit code is 1 if a median is
above its gate: 0.3 s for the import, 3 s for the render.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

RUNS = 7
GATES = {"import segue": 0.3, "render": 3.0}  # seconds


def main() -> int:
    options = common.make_parser(__doc__, "start").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        render = [sys.executable, "-m", "segue.cli", "render", "emoji", "a red heart", "-o", f"{folder}/heart.png"]
        first = seconds(render, environment)
        time.sleep(3)  # Segue does not remember a file as verified if it is too young for the clock
        results: dict[str, Any] = {
            "import segue": common.spread([in_process("import segue") for _ in range(RUNS)]),
            "render, first run": round(first, 3),
            "render": common.spread([seconds(render, environment) for _ in range(RUNS)]),
        }
    results["load average"] = os.getloadavg()[0]
    results |= common.header("segue", "onnxruntime", "numpy")
    common.report(options.out, results)
    return common.exit_code(
        *(common.Gate(f"{name} (s)", results[name]["median"], bound) for name, bound in GATES.items())
    )


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds of `command` as a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return time.perf_counter() - started


def in_process(statement: str) -> float:
    """Return the seconds of `statement` in a fresh interpreter, without the start of the interpreter."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
