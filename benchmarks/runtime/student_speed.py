"""How much faster the student renders a picture than its teacher, by the same runtime: both in turns, in one run.

    python benchmarks/student_speed.py emoji emoji-teacher [--rounds 15]

Both models are open and warm, and draw the same prompt and seed at their own default settings. Prints the ratio
teacher / student of each round with its spread; exits with 1 where the median is below 6. Writes
benchmarks/results/student_speed.json.
"""

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import segue

GATE = 6.0
PROMPT = "red apple"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"student": [], "teacher": []}
    with segue.open(options.student) as student, segue.open(options.teacher) as teacher:
        sides = [("student", student), ("teacher", teacher)]
        for turn in range(options.rounds + 1):
            for name, model in sides if turn % 2 else reversed(sides):
                started = time.perf_counter()
                model.generate(PROMPT, seed=turn)
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        samplers = {name: model.bundle.manifest.sampler for name, model in sides}
    ratios = [b / a for a, b in zip(seconds["student"], seconds["teacher"], strict=True)]
    results = {
        "teacher / student, median": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "rounds": options.rounds,
        **{f"{name}, median (s)": round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "calls": {name: s.steps * (2 if s.guidance > 1 else 1) for name, s in samplers.items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("segue", "onnxruntime")},
    }
    print(json.dumps(results, indent=1))
    (Path(__file__).parent / "results/student_speed.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0 if results["teacher / student, median"] >= GATE else 1


if __name__ == "__main__":
    sys.exit(main())
