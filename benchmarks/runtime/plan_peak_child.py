"""One case of plan_peak.py in its own process; it imports only what the run imports."""

import json
import sys
import tempfile
from pathlib import Path

ROUNDS = 3


def child(bundle: str, size: int, frames: int | None) -> None:
    """Make the same picture or video three times; print the plan and the peaks of the process, in bytes."""
    import segue

    peaks = []
    with segue.open(bundle) as model, tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS):
            if frames is None:
                request: segue.Request | segue.AnimationRequest = segue.Request("red apple", seed=number, size=size)
                picture = next(iter(model.pictures(request)))
                segue.write_png(Path(scratch) / "picture.png", picture.image, picture.metadata)
            else:
                import numpy as np

                from segue.runtime.film import film

                image = (np.indices((size, size, 3)).sum(0) * 5 % 256).astype(np.uint8)
                request = segue.AnimationRequest(image, "red apple", seed=number, frames=frames, size=size)
                film(model, request, Path(scratch) / f"{number}.mp4")
            peaks.append(peak())
        planned = model.plan(request).peak + model.ledger.idle
    print(json.dumps({"planned": planned, "idle": model.ledger.idle, "cold": peaks[0], "warm": peaks[-1]}))


def peak() -> int:
    """Return the most bytes that this process has held (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    child(**json.loads(sys.argv[1]))
