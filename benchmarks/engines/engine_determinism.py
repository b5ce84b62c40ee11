"""Build the engines of a bundle several times, and count the bytes in which they differ.

    python benchmarks/engines/engine_determinism.py [emoji] [--repeats 3] [--sm 89]

Each repetition is `segue build` with TensorRT-RTX into an empty cache. Each component has a new process, and none
needs a GPU. The script writes one entry per bundle to benchmarks/results/engine_determinism.json. For each component
the entry holds the bytes of its engines and the number of different engines. For each pair of repetitions it holds
the number of bytes that differ, or null if the lengths differ.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> None:
    parser = common.make_parser(__doc__, "engine_determinism")
    parser.add_argument("bundle", nargs="?", default="emoji")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sm", type=int, default=89)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        plans = built(options.bundle, options.sm, options.repeats)
    results = common.load(options.out, {})
    results[options.bundle] = {
        "capability": options.sm,
        "repeats": options.repeats,
        "components": {name: compared(of) for name, of in plans.items()},
        **common.header("tensorrt-rtx"),
    }
    print(json.dumps(results[options.bundle], indent=1))
    common.write(options.out, results)


def built(name: str, capability: int, repeats: int) -> dict[str, list[bytes]]:
    """Return the bytes of every component's engines, one for each repetition."""
    from segue.runtime.bundle import reader
    from segue.runtime.engine_cache import build, upkeep

    opened = reader.read(name)
    plans: dict[str, list[bytes]] = {component: [] for component in opened.manifest.components}
    for _ in range(repeats):
        upkeep.clear()
        for made in build.build(opened, build.BuildRequest("tensorrt-rtx", (capability,))):
            assert made.fresh
            plans[made.component].append(made.entry.plan.read_bytes())
    return plans


def compared(plans: list[bytes]) -> dict[str, Any]:
    return {
        "bytes": [len(plan) for plan in plans],
        "different engines": len(set(plans)),
        "bytes that differ": [differing(a, b) for a, b in itertools.combinations(plans, 2)],
    }


def differing(a: bytes, b: bytes) -> int | None:
    if len(a) != len(b):
        return None
    return int(np.count_nonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)))


if __name__ == "__main__":
    main()
