"""Rendering under memory budgets, each in a fresh process: what it took beside its plan, and whether pictures differ.

    python benchmarks/budget.py emoji emoji-teacher emoji-motion [--sizes 64 128 256] [--frames 17 33 65]

For every bundle, size and, where it makes videos, length five budgets: none, the smallest that does, and three between.
Measured is the most resident memory of the process less that after `import segue`. Exits with 1 where a run takes more
than its budget or its plan, where the plan is above the measured by more than 10 % and 16 MiB, where a picture or
video of one size differs between budgets that do not cut it into tiles, or by more than 40 dB where they do, or where
one MiB less than the smallest budget is not refused within half a second, before anything is loaded. Writes
benchmarks/results/budget.json and, as a picture, docs/budget.svg.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20
CLOSE = 40.0  # dB
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
    plot(rows, Path(__file__).parent.parent / "docs/budget.svg")
    print(json.dumps(faults, indent=1))
    return 1 if faults else 0


def is_video(bundle: str) -> bool:
    """Return whether a bundle makes videos."""
    from segue.runtime.bundle.reader import read_manifest

    return read_manifest(bundle).video is not None


def cells(bundle: str, size: int, frames: int | None) -> list[dict[str, Any]]:
    """Return the five runs of a bundle at a size, and a length where it makes videos."""
    low, high = planned(bundle, size, frames, least=True), planned(bundle, size, frames)
    budgets = [None, *(low + (high - low) * part // 4 for part in (3, 2, 1)), low]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, budget in enumerate(budgets):
            asked = {"bundle": bundle, "size": size, "frames": frames, "budget": budget}
            place = str(Path(scratch) / f"{number}.bin")
            made = subprocess.run(
                [sys.executable, str(CHILD), json.dumps(asked | {"place": place})],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            row = asked | json.loads(made.stdout.splitlines()[-1])
            rows.append(row)
        for number, row in enumerate(rows):
            row["dB"] = close(*(str(Path(scratch) / f"{which}.bin") for which in (number, 1)))
    for row in rows:
        faults = []
        if row["budget"] == low:
            row["refused_seconds"] = refused(bundle, size, frames, low - MIB)
            if row["refused_seconds"] > 0.5:
                faults.append(f"was refused one MiB less in {row['refused_seconds']} s")
        if row["budget"] is not None:
            above = row["planned"] - row["measured"]
            if row["measured"] > min(row["budget"], row["planned"]):
                faults.append(f"took {row['measured'] / MIB:.1f} MiB")
            if above > max(0.1 * row["measured"], 16 * MIB):
                faults.append(f"was planned {above / MIB:.1f} MiB too high")
        if row["dB"] is not None and (row["dB"] < CLOSE if row["tiles"] else row["keep"] is not None):
            faults.append(f"is another picture, at {row['dB']} dB")
        row["faults"] = [f"{bundle} at {size} px, {frames}, within {row['budget']} {fault}" for fault in faults]
        amounts = (f"{row[k] / MIB:.1f}" if row[k] else "-" for k in ("budget", "planned", "measured"))
        print(
            bundle, size, frames or "", *amounts, row["seconds"], row["keep"], row["together"], row["tiles"], row["dB"],
            faults, flush=True,
        )  # fmt: skip
    return rows


def close(one: str, other: str) -> float | None:
    """Return how near two files of pixels are, in dB; None where they are equal."""
    import numpy as np

    from segue.runtime.differences import psnr

    ratio = psnr(*(np.fromfile(place, np.uint8) for place in (one, other)))
    return round(float(ratio), 1) if np.isfinite(ratio) else None


def refused(bundle: str, size: int, frames: int | None, budget: int) -> float:
    """Return the seconds, from the opened bundle on, in which a budget that does not do is refused."""
    import time

    import numpy as np

    import segue

    request: segue.Request | segue.AnimationRequest = segue.Request("red apple", size=size)
    if frames is not None:
        request = segue.AnimationRequest(np.zeros((size, size, 3), np.uint8), frames=frames, size=size)
    with segue.open(bundle, budget=budget) as model:
        started = time.perf_counter()
        try:
            model.frames(request) if isinstance(request, segue.AnimationRequest) else model.pictures(request)
        except segue.BudgetError:
            assert not model.ledger.loaded
            return round(time.perf_counter() - started, 3)
    raise AssertionError(f"{bundle} at {size} px takes {budget} bytes")


def plot(rows: list[dict[str, Any]], place: Path) -> None:
    """Draw what each run under a budget took, and what its plan said, as shares of the budget."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    kept = [row for row in rows if row["budget"] is not None]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    for number, bundle in enumerate(dict.fromkeys(row["bundle"] for row in kept)):
        own = [row for row in kept if row["bundle"] == bundle]
        budgets, colour = [row["budget"] / MIB for row in own], f"C{number}"
        axes.scatter(budgets, [row["planned"] / MIB for row in own], marker="_", s=90, color=colour)
        axes.scatter(budgets, [row["measured"] / MIB for row in own], s=16, color=colour, label=bundle)
    most = max(row["budget"] for row in kept) / MIB
    axes.plot([0, most], [0, most], color="black", linewidth=0.8, label="the budget")
    axes.set(xlabel="budget, MiB", ylabel="MiB: taken (dots) and planned (dashes)", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(place, metadata={"Date": None})
    pyplot.close(figure)


def planned(bundle: str, size: int, frames: int | None, least: bool = False) -> int:
    """Return the peak of the plan without a budget, or the smallest budget that does, in whole MiB."""
    from segue.errors import BudgetError
    from segue.runtime.bundle.reader import read_manifest
    from segue.runtime.planning.hardware import CPU, find_machine
    from segue.runtime.planning.pictures import Wanted, plan
    from segue.runtime.planning.videos import WantedVideo, plan_video

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
