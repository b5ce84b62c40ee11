"""Rendering under memory budgets, each in a fresh process: what it took beside its plan, and whether pictures differ.

    python benchmarks/budget.py emoji emoji-teacher [--sizes 64 128 256]

For every bundle and size five budgets: none, the smallest that does, and three between. Measured is the most resident
memory of the process less that after `import segue`. Exits with 1 where a run takes more than its budget or its plan,
where the plan is above the measured by more than 10 % and 16 MiB, or where a picture of one size differs between
budgets that do not cut it into tiles. Writes benchmarks/results/budget.json.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/budget.json")
    options = parser.parse_args()
    if options.child:
        return child(**json.loads(options.child))
    rows = [row for bundle in options.bundles for size in options.sizes for row in cells(bundle, size)]
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


def cells(bundle: str, size: int) -> list[dict[str, Any]]:
    """Return the five runs of a bundle at a size."""
    low, high = planned(bundle, size, None, least=True), planned(bundle, size, None)
    budgets = [None, *(low + (high - low) * part // 4 for part in (3, 2, 1)), low]
    rows = []
    for budget in budgets:
        asked = {"bundle": bundle, "size": size, "budget": budget}
        made = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(asked)], check=True, capture_output=True, text=True
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
        row["faults"] = [f"{bundle} at {size} px within {row['budget']} {fault}" for fault in faults]
        print(
            bundle, size, *(f"{row[k] / MIB:.1f}" if row[k] else "-" for k in ("budget", "planned", "measured")),
            row["seconds, second picture"], row["keep"], row["together"], row["tiles"], faults, flush=True,
        )  # fmt: skip
    return rows


def planned(bundle: str, size: int, budget: int | None, least: bool = False) -> int:
    """Return the peak of the plan, or of the one that needs least, in whole MiB."""
    from segue.errors import BudgetError
    from segue.runtime.bundle import read_manifest
    from segue.runtime.hardware import CPU, find_machine
    from segue.runtime.plan import Wanted, plan

    content = read_manifest(bundle)
    wanted = Wanted(size, size, content.sampler.steps, content.sampler.guidance > 1)
    if not least:
        return -(-plan(content, wanted, find_machine(CPU), budget).peak // MIB) * MIB
    try:
        plan(content, wanted, find_machine(CPU), 1)
    except BudgetError as error:
        return int(str(error).split("smallest budget that does is ")[1].split(" ")[0]) * MIB
    raise AssertionError("a budget of one byte did")


def child(bundle: str, size: int, budget: int | None) -> int:
    """Render one picture and tell what it took."""
    import segue

    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with segue.open(bundle, budget=budget) as model:
        request = segue.Request("red apple", seed=1, size=size)
        model.render(segue.Request("pizza", negative="a dog", seed=0, size=size))
        started = time.perf_counter()
        image = model.render(request).images[0]
        seconds = time.perf_counter() - started

        way = None if budget is None else model.plan(request)
    told = {
        "measured": resident("VmHWM") - idle,
        "planned": None if way is None else way.peak,
        "keep": None if way is None else len(way.keep),
        "together": None if way is None else way.together,
        "tiles": None if way is None or way.tiling is None else way.tiling.side,
        "seconds, second picture": round(seconds, 3),
        "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
    }
    print(json.dumps(told))
    return 0


def resident(what: str) -> int:
    """Return the bytes of a line of the kernel's account of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{what}:"))


if __name__ == "__main__":
    sys.exit(main())
