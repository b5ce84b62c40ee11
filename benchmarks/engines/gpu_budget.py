"""Rendering by ort-cuda under budgets of a GPU's memory, each in a fresh process: what it took beside its plan.

    python benchmarks/gpu_budget.py emoji [--size 128] [--frames 17] [--budgets none 2GiB 900MiB]

Without --budgets there are five: none, the smallest that does, and three between. Each process renders a picture, then
another one of another prompt, or one video twice. Taken is the most that the driver said was in use on the GPU, asked
every 2 ms, less what was in use before the process made its context; host is the most resident memory less that after
`import segue`. Exits with 1 where a run takes more than its budget, or a picture or video differs by more than 40 dB
from that without a budget. Writes an entry for bundle, size, length and card into benchmarks/results/gpu_budget.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20
TARGET = "ort-cuda"
RESULTS = Path(__file__).parent / "results/gpu_budget.json"
PROMPTS = ("red apple", "pizza")
CLOSE = 40.0  # dB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--budgets", nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(options.bundle, options.size, options.frames, options.budgets[0], options.child)))
        return 0
    import numpy as np

    from segue.engines.devices import driver
    from segue.runtime.bundle.reader import read_manifest
    from segue.runtime.differences import psnr

    budgets = options.budgets or budgets_of(options.bundle, options.size, options.frames)
    rows, faults, whole = [], [], None
    with tempfile.TemporaryDirectory() as scratch:
        for budget in budgets:
            place = Path(scratch) / f"{budget}.npy"
            command = [sys.executable, __file__, options.bundle, "--size", str(options.size), "--child", str(place)]
            command += [] if options.frames is None else ["--frames", str(options.frames)]
            done = subprocess.run([*command, "--budgets", budget], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                faults.append(f"{budget}: ended with {done.returncode}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            made = np.load(place)
            whole = made if whole is None else whole
            ratio = psnr(made, whole)
            row["dB to the first"] = round(float(ratio), 1) if np.isfinite(ratio) else None
            if row["budget"] is not None and row["taken"] > row["budget"]:
                faults.append(f"{budget}: took {row['taken'] / MIB:.0f} MiB")
            if ratio < CLOSE:
                faults.append(f"{budget}: {ratio:.1f} dB to the first")
            rows.append(row)
            print(json.dumps(row), flush=True)
    found = driver()
    entry = {
        "bundle": read_manifest(options.bundle).name, "size": options.size, "frames": options.frames,
        "rows": rows, "faults": faults,
        "GPU": found.gpus[0].name, "driver": found.version,
        "versions": {name: version(name) for name in ("segue", "onnxruntime-gpu")},
    }  # fmt: skip
    kept = json.loads(options.out.read_text()) if options.out.is_file() else []
    same = ("bundle", "size", "frames", "GPU")
    kept = [one for one in kept if any(one[key] != entry[key] for key in same)]
    options.out.write_text(json.dumps([*kept, entry], indent=1) + "\n")
    print(json.dumps(faults))
    return 1 if faults else 0


def budgets_of(bundle: str, size: int, frames: int | None) -> list[str]:
    """Return "none", the smallest budget that does, and three between."""
    from segue.errors import BudgetError
    from segue.runtime.bundle.reader import read_manifest
    from segue.runtime.planning.hardware import gpu_here
    from segue.runtime.planning.pictures import Wanted, plan, unbounded_plan
    from segue.runtime.planning.videos import WantedVideo, plan_video, unbounded_video_plan

    content, machine = read_manifest(bundle), gpu_here()
    try:
        if frames is None:
            of = Wanted(size, size, content.sampler.steps, content.sampler.guidance > 1)
            most = unbounded_plan(content, of, machine).peak
            plan(content, of, machine, MIB)
        else:
            video = WantedVideo(size, size, frames)
            most = unbounded_video_plan(content, video, machine).peak
            plan_video(content, video, machine, MIB)
    except BudgetError as error:
        least = int(str(error).split("smallest budget that does is ")[1].split(" ")[0])
        between = [least + (most // MIB - least) * part // 4 for part in (3, 2, 1)]
        return ["none", *(f"{amount}MiB" for amount in dict.fromkeys((*between, least)))]
    raise AssertionError("a budget of one MiB did")


def measured(bundle: str, size: int, frames: int | None, budget: str, place: Path) -> dict[str, Any]:
    """Render twice, write what the second time gave, and return what it took."""
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
                shown = [model.render(request).images] if frames is None else list(model.frames(request))
                seconds.append(round(time.perf_counter() - started, 3))
            way, left = model.plan(request), model.ledger.used
    finally:
        over.set()
        watching.join()
    np.save(place, np.concatenate(shown))
    return {
        "budget": model.budget, "planned": way.peak, "taken": most[0] - before, "by the ledger, at the end": left,
        "host": peak_resident() - idle, "seconds": seconds, "keep": way.keep, "streamed": way.streamed,
        "tiles": None if way.tiling is None else [way.tiling.side, way.tiling.columns],
        "phases": {phase.component: [phase.own, phase.peak] for phase in way.phases},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
