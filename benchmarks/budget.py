"""Rendering under memory budgets, each in a fresh process: what it took beside its plan, and whether pictures differ.

    python benchmarks/budget.py emoji emoji-teacher emoji-motion [--sizes 64 128 256] [--frames 17 33 65]

For every bundle, size and, where it makes videos, length five budgets: none, the smallest that does, and three between.
Measured is the most resident memory of the process less that after `import segue`. Exits with 1 where a run takes more
than its budget or its plan, where the plan is above the measured by more than 10 % and 16 MiB, or where a picture or
video of one size differs between budgets that do not cut it into tiles. Writes benchmarks/results/budget.json.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20
CHILD = Path(__file__).with_name("budget_child.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/budget.json")
    options = parser.parse_args()
    asked = [
        (bundle, size, frames)
        for bundle in options.bundles
        for size in options.sizes
        for frames in (options.frames if is_video(bundle) else [None])
    ]
    rows = [row for each in asked for row in cells(*each)]
    faults = [fault for row in rows for fault in row["faults"]]
    results = {
        "rows": rows,
        "faults": faults,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("segue", "onnxruntime", "numpy", "tokenizers")},
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(faults, indent=1))
    return 1 if faults else 0


def is_video(bundle: str) -> bool:
    """Return whether a bundle makes videos."""
    from segue.runtime.bundle import read_manifest

    return read_manifest(bundle).video is not None


def cells(bundle: str, size: int, frames: int | None) -> list[dict[str, Any]]:
    """Return the five runs of a bundle at a size, and a length where it makes videos."""
    low, high = planned(bundle, size, frames, least=True), planned(bundle, size, frames)
    budgets = [None, *(low + (high - low) * part // 4 for part in (3, 2, 1)), low]
    rows = []
    for budget in budgets:
        asked = {"bundle": bundle, "size": size, "frames": frames, "budget": budget}
        made = subprocess.run(
            [sys.executable, str(CHILD), json.dumps(asked)], check=True, capture_output=True, text=True
        )
        rows.append(asked | json.loads(made.stdout.splitlines()[-1]))
    whole = rows[1]["sha256"]
    for row in rows:
        faults = []
        if row["budget"] is not None:
            above = row["planned"] - row["measured"]
            if row["measured"] > min(row["budget"], row["planned"]):
                faults.append(f"took {row['measured'] / MIB:.1f} MiB")
            if above > max(0.1 * row["measured"], 16 * MIB):
                faults.append(f"was planned {above / MIB:.1f} MiB too high")
        if row["sha256"] != whole and not row["tiles"]:
            faults.append("is another picture")
        row["faults"] = [f"{bundle} at {size} px, {frames}, within {row['budget']} {fault}" for fault in faults]
        amounts = (f"{row[k] / MIB:.1f}" if row[k] else "-" for k in ("budget", "planned", "measured"))
        print(
            bundle, size, frames or "", *amounts, row["seconds"], row["keep"], row["together"], row["tiles"],
            faults, flush=True,
        )  # fmt: skip
    return rows


def planned(bundle: str, size: int, frames: int | None, least: bool = False) -> int:
    """Return the peak of the plan without a budget, or the smallest budget that does, in whole MiB."""
    from segue.errors import BudgetError
    from segue.runtime.bundle import read_manifest
    from segue.runtime.hardware import CPU, find_machine
    from segue.runtime.plan import Wanted, plan
    from segue.runtime.plan_video import WantedVideo, plan_video

    content, machine = read_manifest(bundle), find_machine(CPU)

    def peak(budget: int | None) -> int:
        if frames is not None:
            return plan_video(content, WantedVideo(size, size, frames), machine, budget).peak
        return plan(
            content, Wanted(size, size, content.sampler.steps, content.sampler.guidance > 1), machine, budget
        ).peak

    if not least:
        return -(-peak(None) // MIB) * MIB
    try:
        peak(1)
    except BudgetError as error:
        return int(str(error).split("smallest budget that does is ")[1].split(" ")[0]) * MIB
    raise AssertionError("a budget of one byte did")


if __name__ == "__main__":
    sys.exit(main())
