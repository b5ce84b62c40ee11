"""Rendering by ort-cuda under budgets of a GPU's memory, each in a fresh process: the memory taken and the plan.

    python benchmarks/engines/gpu_budget.py emoji [--size 128] [--frames 17] [--budgets none 2GiB 900MiB]

Without --budgets there are five: none, the smallest that suffices, and three between. Each process renders two
pictures of different prompts, or one video twice. The script asks the driver every 2 ms for the GPU memory in use.

- "taken" is the peak of that figure minus its value before the process made its context.
- "host" is the peak of resident memory minus that after `import segue`.

The exit code is 1 if a run takes more than its budget, or fails, or if its PSNR to the first run is below 40 dB. The
script writes one entry per bundle, size, length and card to benchmarks/results/gpu_budget.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

MIB = 2**20
TARGET = "ort-cuda"
PROMPTS = ("red apple", "pizza")
CLOSE = 40.0  # dB


def main() -> int:
    parser = common.make_parser(__doc__, "gpu_budget")
    parser.add_argument("bundle")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--budgets", nargs="+")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.bundle, options.size, options.frames, options.budgets[0], options.child)))
        return 0
    import numpy as np

    from segue.engines.devices import driver
    from segue.runtime.bundle.reader import read_manifest
    from segue.runtime.diagnostics.difference import psnr

    budgets = options.budgets or budgets_of(options.bundle, options.size, options.frames)
    rows, faults, whole = [], [], None
    with tempfile.TemporaryDirectory() as scratch:
        for budget in budgets:
            path = Path(scratch) / f"{budget}.npy"
            length = [] if options.frames is None else ["--frames", options.frames]
            case = [options.bundle, "--size", options.size, "--child", path, *length, "--budgets", budget]
            try:
                row = common.child(__file__, *case)
            except subprocess.CalledProcessError as error:
                faults.append(f"{budget}: exit code {error.returncode}")
                continue
            made = np.load(path)
            whole = made if whole is None else whole
            ratio = psnr(made, whole)
            row["dB to the first"] = round(float(ratio), 1) if np.isfinite(ratio) else None
            if row["budget"] is not None and row["taken"] > row["budget"]:
                faults.append(f"{budget}: took {row['taken'] / MIB:.0f} MiB")
            if ratio < CLOSE:
                faults.append(f"{budget}: {ratio:.1f} dB to the first")
            rows.append(row)
            print(json.dumps(row), flush=True)
    entry = {
        "bundle": read_manifest(options.bundle).name,
        "size": options.size,
        "frames": options.frames,
        "rows": rows,
        "faults": faults,
        "GPU": driver().gpus[0].name,
        **common.header("segue", "onnxruntime-gpu"),
    }
    common.merge(options.out, entry, same=("bundle", "size", "frames", "GPU"))
    for fault in faults:
        print(fault)
    return common.exit_code(common.Gate("faults", len(faults), 0))


def budgets_of(bundle: str, size: int, frames: int | None) -> list[str]:
    """Return "none", the smallest budget that suffices, and three between."""
    from segue.runtime.bundle.reader import read_manifest
    from segue.runtime.planning.hardware import gpu_here
    from segue.runtime.planning.pictures import Wanted, plan, unbounded_plan
    from segue.runtime.planning.videos import WantedVideo, plan_video, unbounded_video_plan

    content, machine = read_manifest(bundle), gpu_here()
    if frames is None:
        picture = Wanted(size, size, content.sampler.steps, content.sampler.guidance > 1)
        most = unbounded_plan(content, picture, machine).peak
        least = common.smallest_budget(lambda: plan(content, picture, machine, MIB))
    else:
        video = WantedVideo(size, size, frames)
        most = unbounded_video_plan(content, video, machine).peak
        least = common.smallest_budget(lambda: plan_video(content, video, machine, MIB))
    between = [least + (most // MIB - least) * part // 4 for part in (3, 2, 1)]
    return ["none", *(f"{amount}MiB" for amount in dict.fromkeys((*between, least)))]


def measured(bundle: str, size: int, frames: int | None, budget: str, path: Path) -> dict[str, Any]:
    """Render twice, write the output of the second time to `path`, and return the memory that it took."""
    import numpy as np
    import pynvml

    import segue
    from segue.engines.process import peak_resident, resident

    idle = resident()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    used = lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)  # noqa: E731
    before, most, over = used(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], used())

    watching = threading.Thread(target=watch)
    watching.start()
    seconds = []
    try:
        with segue.open(bundle, target=TARGET, budget=None if budget == "none" else budget) as model:
            for prompt in PROMPTS:
                request: Any = segue.Request(prompt, seed=1, size=size)
                if frames is not None:
                    image = (np.indices((size, size, 3)).sum(0) * 5 % 256).astype(np.uint8)
                    request = segue.AnimationRequest(image, prompt, frames=frames, size=size)
                started = time.perf_counter()
                output = [model.render(request).images] if frames is None else list(model.frames(request))
                seconds.append(round(time.perf_counter() - started, 3))
            chosen, left = model.plan(request), model.ledger.used
    finally:
        over.set()
        watching.join()
    np.save(path, np.concatenate(output))
    return {
        "budget": model.budget, "planned": chosen.peak, "taken": most[0] - before, "by the ledger, at the end": left,
        "host": peak_resident() - idle, "seconds": seconds, "keep": chosen.keep, "streamed": chosen.streamed,
        "tiles": None if chosen.tiling is None else [chosen.tiling.side, chosen.tiling.columns],
        "phases": {phase.component: [phase.own, phase.peak] for phase in chosen.phases},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
