"""Hash what 20 picture requests and 2 clips give, so that two commits can be compared byte by byte.

    python benchmarks/runtime/same_bytes.py record hashes.json     # at the old commit
    python benchmarks/runtime/same_bytes.py compare hashes.json    # at the new commit; exit code 1 if a byte differs

The script uses only the public API, so the same file runs at both commits. One thread and one machine: the bytes of a
picture depend on the processor's kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import segue

MIB = 2**20
# bundle, budget in bytes, arguments of segue.Request
PICTURES: tuple[tuple[str, int | None, dict[str, Any]], ...] = (
    ("emoji", None, {"prompt": "a red heart", "seed": 7}),
    ("emoji", None, {"prompt": "a red heart", "seed": 7, "noise": "torch"}),
    ("emoji", None, {"prompt": "pizza", "size": 64}),
    ("emoji", None, {"prompt": "rocket", "size": (96, 160), "seed": 2**63}),
    ("emoji", None, {"prompt": "grinning cat", "count": 3}),
    ("emoji", None, {"prompt": ["pizza", "rocket"], "count": 2, "noise": "torch"}),
    ("emoji", None, {"prompt": "", "seed": 1}),
    ("emoji", None, {"prompt": "snowman, noto", "steps": 1}),
    ("emoji", None, {"prompt": "snowman, noto", "steps": 7}),
    ("emoji", None, {"prompt": "pizza", "sigmas": (1.0, 0.7, 0.4, 0.1)}),
    ("emoji", None, {"prompt": "pizza", "guidance": 2.0, "negative": "a red heart"}),
    ("emoji", 256 * MIB, {"prompt": "a red heart", "seed": 7}),
    ("emoji", 140 * MIB, {"prompt": "a red heart", "seed": 7}),
    ("emoji", 140 * MIB, {"prompt": "pizza", "size": 64, "count": 2}),
    ("emoji", 200 * MIB, {"prompt": "rocket", "guidance": 3.0}),
    ("emoji-teacher", None, {"prompt": "rocket", "steps": 6, "guidance": 4.0}),
    ("emoji-teacher", None, {"prompt": "rocket", "steps": 6, "guidance": 4.0, "negative": "pizza", "count": 2}),
    ("emoji-teacher", None, {"prompt": "pizza", "steps": 4, "guidance": 1.0, "noise": "torch"}),
    ("emoji-teacher", 160 * MIB, {"prompt": "pizza", "steps": 4, "guidance": 4.0, "size": (64, 96)}),
    ("emoji-teacher", None, {"prompt": "grinning cat", "steps": 3, "guidance": 4.0, "size": 192}),
)
CLIPS: tuple[tuple[str, int | None, dict[str, Any]], ...] = (
    ("emoji-motion", None, {"prompt": "red heart", "frames": 17, "seed": 3}),
    ("emoji-motion", 512 * MIB, {"prompt": "red heart", "frames": 33, "size": 64}),
)


def digest(*arrays: np.ndarray) -> str:
    """Return the sha256 of the bytes, shapes and dtypes of `arrays`."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def picture(size: int) -> np.ndarray:
    """Return the first frame of the clips, uint8 [size, size, 3]: colour ramps with a disc."""
    rows, columns = np.mgrid[:size, :size]
    image = np.stack([255 * rows // size, 255 * columns // size, np.full_like(rows, 96)], -1).astype(np.uint8)
    image[(rows - size // 2) ** 2 + (columns - size // 2) ** 2 < (size // 4) ** 2] = (220, 40, 60)
    return image


def hashes() -> dict[str, str]:
    """Return the hash of every request, by a line that describes it."""
    found = {}
    for name, budget, arguments in (*PICTURES, *CLIPS):
        label = f"{name} budget={budget} {arguments}"
        try:
            with segue.open(name, threads=1, budget=budget) as model:
                if name == "emoji-motion":
                    frames = list(model.animate(picture(128), **arguments))
                    found[label] = digest(np.concatenate(frames))
                else:
                    result = model.render(segue.Request(**arguments))
                    found[label] = digest(result.images, result.latents)
        except segue.SegueError as error:
            found[label] = f"{type(error).__name__}"
        print(found[label][:16], label, flush=True)
    return found


def main() -> int:
    """Record or compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    found = hashes()
    if options.action == "record":
        options.file.write_text(json.dumps(found, indent=1))
        return 0
    before = json.loads(options.file.read_text())
    wrong = [label for label in before if before[label] != found.get(label)]
    print(f"{len(found)} requests, {len(found) - len(wrong)} equal")
    for label in wrong:
        print(f"differs: {label}")
    return 1 if wrong or found.keys() != before.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
