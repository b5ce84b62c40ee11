"""One run of budget.py in its own process; it imports nothing before the run that the run itself does not import."""

import json
import sys
from pathlib import Path


def child(bundle: str, size: int, frames: int | None, budget: int | None, path: str) -> None:
    """Render a picture after another one, or one video; print what it took and write its pixels to `path`."""
    import segue

    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with segue.open(bundle, budget=budget) as model:
        import time  # not earlier: the imports of a run are part of the figure

        import numpy as np

        request: segue.Request | segue.AnimationRequest
        if frames is None:
            request = segue.Request("red apple", seed=1, size=size)
            model.render(segue.Request("pizza", negative="a dog", seed=0, size=size))
            started = time.perf_counter()
            Path(path).write_bytes(model.render(request).images.tobytes())
        else:
            image = (np.indices((size, size, 3)).sum(0) * 5 % 256).astype(np.uint8)
            request = segue.AnimationRequest(image, "red apple", frames=frames, size=size)
            started = time.perf_counter()
            with Path(path).open("wb") as out:
                for new in model.frames(request):
                    out.write(new.tobytes())
        seconds = time.perf_counter() - started
        plan = None if budget is None else model.plan(request)
    report = {
        "measured": resident("VmHWM") - idle,
        "planned": None if plan is None else plan.peak,
        "keep": None if plan is None else len(plan.keep),
        "together": None if plan is None else plan.together,
        "tiles": None if plan is None or plan.tiling is None else plan.tiling.side,
        "seconds": round(seconds, 3),
    }
    print(json.dumps(report))


def resident(key: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{key}:"))


if __name__ == "__main__":
    child(**json.loads(sys.argv[1]))
