"""Time per picture of the teacher compared with the student, by the same runtime, in turns.

    python benchmarks/runtime/student_speed.py emoji emoji-teacher [--rounds 15]

Both models are open and warm. They draw the same prompt and seed at their own default settings. The results are the
ratio teacher / student over the rounds (median, lowest, highest) and the seconds of both. They go to
benchmarks/results/student_speed.json. The exit code is 1 if the median ratio is below 6.
"""

import statistics
import sys
import time
from pathlib import Path

import segue

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

GATE = 6.0
PROMPT = "red apple"


def main() -> int:
    parser = common.make_parser(__doc__, "student_speed", rounds=15)
    parser.add_argument("student")
    parser.add_argument("teacher")
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
    spread = common.spread(ratios, 2)
    results = {
        "teacher / student, median": spread["median"],
        "lowest": spread["lowest"],
        "highest": spread["highest"],
        "rounds": options.rounds,
        **{f"{name}, median (s)": round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "calls": {name: s.steps * (2 if s.guidance > 1 else 1) for name, s in samplers.items()},
        **common.header("segue", "onnxruntime"),
    }
    common.report(options.out, results)
    return common.exit_code(common.Gate("teacher / student, median", spread["median"], GATE, at_least=True))


if __name__ == "__main__":
    sys.exit(main())
