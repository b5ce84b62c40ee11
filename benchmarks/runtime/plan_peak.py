"""The plan without a budget compared with the peak of the process, cold and warm, each case in a fresh process.

    python benchmarks/runtime/plan_peak.py [--pictures emoji] [--videos emoji-motion] [--sizes 64 128 256]
        [--frames 17 33 65]

Pictures run at every size, and videos at every size and length. Each is written to a file, as the commands do. Cold is
the peak of resident memory after the first request, warm the peak after three. The plan counts the idle process too.
The exit code is 1 if a peak is above its plan, or more than 20 % below it. The results go to
benchmarks/results/plan_peak.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

MIB = 2**20
BELOW = 0.2  # share of the plan that a peak may be below it
CHILD = str(Path(__file__).with_name("plan_peak_child.py"))


def main() -> int:
    parser = common.make_parser(__doc__, "plan_peak")
    parser.add_argument("--pictures", nargs="*", default=["emoji"])
    parser.add_argument("--videos", nargs="*", default=["emoji-motion"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65])
    options = parser.parse_args()
    cases: list[dict[str, Any]] = [
        {"bundle": bundle, "size": size, "frames": None} for bundle in options.pictures for size in options.sizes
    ]
    cases += [
        {"bundle": bundle, "size": size, "frames": frames}
        for bundle in options.videos
        for size in options.sizes
        for frames in options.frames
    ]
    rows = []
    for case in cases:
        rows.append(case | common.child(CHILD, json.dumps(case)))
        amounts = (f"{name} {rows[-1][name] / MIB:.0f}" for name in ("planned", "idle", "cold", "warm"))
        print(case["bundle"], case["size"], case["frames"] or "", *amounts, flush=True)
    shares = [row[when] / row["planned"] for row in rows for when in ("cold", "warm")]
    results = {
        "rows": rows, "runs": len(shares), "shares": common.spread(shares, 3),
        **common.header("segue", "onnxruntime", "numpy", "tokenizers", "av"),
    }  # fmt: skip
    common.write(options.out, results)
    return common.exit_code(
        common.Gate("the highest peak as a share of its plan", max(shares), 1),
        common.Gate("the lowest peak as a share of its plan", min(shares), 1 - BELOW, at_least=True),
    )


if __name__ == "__main__":
    sys.exit(main())
