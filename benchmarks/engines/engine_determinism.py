"""Build the engines of a bundle several times, and count the bytes in which they differ.

    python benchmarks/engine_determinism.py [emoji] [--repeats 3] [--sm 89]

Each repetition is `segue build` with TensorRT-RTX into an empty cache: a new process for each component, no GPU. Writes
an entry for each bundle into benchmarks/results/engine_determinism.json: of each component the bytes of its engines,
how many different engines there were, and for each pair of repetitions how many bytes differ (null where the lengths
do).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results/engine_determinism.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="emoji")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sm", type=int, default=89)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        plans = built(options.bundle, options.sm, options.repeats)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[options.bundle] = {
        "capability": options.sm,
        "repeats": options.repeats,
        "components": {name: compared(of) for name, of in plans.items()},
        "versions": {"tensorrt-rtx": version("tensorrt-rtx")},
    }
    print(json.dumps(results[options.bundle], indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def built(name: str, capability: int, repeats: int) -> dict[str, list[bytes]]:
    """Return the bytes of every component's engines, in the order in which they were built."""
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
