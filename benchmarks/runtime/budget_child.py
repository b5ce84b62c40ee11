"""One run of budget.py in a process of its own, with nothing imported before that is not the run's."""

import json
import sys
from pathlib import Path


def child(bundle: str, size: int, frames: int | None, budget: int | None, place: str) -> None:
    """Render one picture, after another one, or one video, tell what it took, and write its pixels."""
    import segue

    idle = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    with segue.open(bundle, budget=budget) as model:
        import time  # not before: what a run imports is part of what is measured

        import numpy as np

        request: segue.Request | segue.AnimationRequest
        if frames is None:
            request = segue.Request("red apple", seed=1, size=size)
            model.render(segue.Request("pizza", negative="a dog", seed=0, size=size))
            started = time.perf_counter()
            Path(place).write_bytes(model.render(request).images.tobytes())
        else:
            image = (np.indices((size, size, 3)).sum(0) * 5 % 256).astype(np.uint8)
            request = segue.AnimationRequest(image, "red apple", frames=frames, size=size)
            started = time.perf_counter()
            with Path(place).open("wb") as out:
                for new in model.frames(request):
                    out.write(new.tobytes())
        seconds = time.perf_counter() - started
        way = None if budget is None else model.plan(request)
    told = {
        "measured": resident("VmHWM") - idle,
        "planned": None if way is None else way.peak,
        "keep": None if way is None else len(way.keep),
        "together": None if way is None else way.together,
        "tiles": None if way is None or way.tiling is None else way.tiling.side,
        "seconds": round(seconds, 3),
    }
    print(json.dumps(told))


def resident(what: str) -> int:
    """Return the bytes of a line of the kernel's account of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{what}:"))


if __name__ == "__main__":
    child(**json.loads(sys.argv[1]))
