"""Rendering under memory budgets, each in a fresh process: the memory taken compared with the plan, and the pictures.

    python benchmarks/runtime/budget.py emoji emoji-teacher emoji-motion [--sizes 64 128 256] [--frames 17 33 65]

Each bundle runs at every size, and a video bundle at every length. Each case has five budgets: none, the smallest
that suffices, and three between. The figure measured is the process's peak of resident memory minus that after
`import segue`. The exit code is 1 if one of these faults occurs:

- a run takes more than its budget or its plan;
- the plan is above the measured figure by more than 10 % and by more than 16 MiB;
- the same picture or video differs between budgets without tiles;
- it differs so much between budgets with tiles that its PSNR is below 40 dB;
- the bundle accepts one MiB less than the smallest budget, takes more than 0.5 s to refuse it, or loads anything first.

The results go to benchmarks/results/budget.json and, as a picture, to docs/images/budget.svg.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

MIB = 2**20
CLOSE = 40.0  # dB
CHILD = str(Path(__file__).with_name("budget_child.py"))


def main() -> int:
    parser = common.make_parser(__doc__, "budget")
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[17, 33, 65])
    parser.add_argument("--plot", type=Path, default=common.IMAGES / "budget.svg")
    options = parser.parse_args()
    cases = [
        (bundle, size, frames)
        for bundle in options.bundles
        for size in options.sizes
        for frames in (options.frames if is_video(bundle) else [None])
    ]
    rows = [row for case in cases for row in runs_of(*case)]
    faults = [fault for row in rows for fault in row["faults"]]
    results = {
        "rows": rows,
        "faults": faults,
        **common.header("segue", "onnxruntime", "numpy", "tokenizers"),
    }
    common.write(options.out, results)
    plot(rows, options.plot)
    for fault in faults:
        print(fault)
    return common.exit_code(common.Gate("faults", len(faults), 0))


def is_video(bundle: str) -> bool:
    """Return whether a bundle makes videos."""
    from segue.runtime.bundle.reader import read_manifest

    return read_manifest(bundle).video is not None


def runs_of(bundle: str, size: int, frames: int | None) -> list[dict[str, Any]]:
    """Return the five runs of a bundle at a size; `frames` is the length of a video."""
    low, high = planned(bundle, size, frames, least=True), planned(bundle, size, frames)
    budgets = [None, *(low + (high - low) * part // 4 for part in (3, 2, 1)), low]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{number}.bin" for number in range(len(budgets))]
        for path, budget in zip(paths, budgets, strict=True):
            case = {"bundle": bundle, "size": size, "frames": frames, "budget": budget}
            rows.append(case | common.child(CHILD, json.dumps(case | {"path": str(path)})))
        for path, row in zip(paths, rows, strict=True):
            row["dB"] = psnr_of(path, paths[1])
    for row in rows:
        faults = []
        if row["budget"] == low:
            row["refused_seconds"] = refused(bundle, size, frames, low - MIB)
            if row["refused_seconds"] > 0.5:
                faults.append(f"took {row['refused_seconds']} s to refuse one MiB less")
        if row["budget"] is not None:
            above = row["planned"] - row["measured"]
            if row["measured"] > min(row["budget"], row["planned"]):
                faults.append(f"took {row['measured'] / MIB:.1f} MiB")
            if above > max(0.1 * row["measured"], 16 * MIB):
                faults.append(f"was planned {above / MIB:.1f} MiB too high")
        if row["dB"] is not None and (row["dB"] < CLOSE if row["tiles"] else row["keep"] is not None):
            faults.append(f"gave another picture, {row['dB']} dB")
        row["faults"] = [f"{bundle} at {size} px, {frames}, within {row['budget']} {fault}" for fault in faults]
        amounts = (f"{row[k] / MIB:.1f}" if row[k] else "-" for k in ("budget", "planned", "measured"))
        print(
            bundle, size, frames or "", *amounts, row["seconds"], row["keep"], row["together"], row["tiles"], row["dB"],
            faults, flush=True,
        )  # fmt: skip
    return rows


def psnr_of(one: Path, other: Path) -> float | None:
    """Return the PSNR in dB of two files of pixels; None if they are equal."""
    import numpy as np

    from segue.runtime.diagnostics.difference import psnr

    ratio = psnr(np.fromfile(one, np.uint8), np.fromfile(other, np.uint8))
    return round(float(ratio), 1) if np.isfinite(ratio) else None


def refused(bundle: str, size: int, frames: int | None, budget: int) -> float:
    """Return the seconds that an opened bundle takes to refuse a budget that is too small."""
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
    raise AssertionError(f"{bundle} at {size} px accepts {budget} bytes")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the measured and the planned memory of each run over its budget."""
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
    axes.plot([0, most], [0, most], color="black", linewidth=0.8, label="budget")
    axes.set(xlabel="budget, MiB", ylabel="MiB: taken (dots) and planned (dashes)", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def planned(bundle: str, size: int, frames: int | None, least: bool = False) -> int:
    """Return the peak of the plan without a budget, or the smallest sufficient budget, as bytes of whole MiB."""
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

    if least:
        return common.smallest_budget(lambda: peak(1)) * MIB
    return -(-peak(None) // MIB) * MIB


if __name__ == "__main__":
    sys.exit(main())
