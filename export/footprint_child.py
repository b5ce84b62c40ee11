"""The child process of `footprint`: load graphs one after another, call each at some shapes, and say what that took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engines import heap
from ..engines.ort import OrtEngine
from .child import answering

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(what: str) -> int:
    """Return the bytes of a line of the kernel's account of this process: "VmRSS", or "VmHWM" for the most so far."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(f"{what}:"))


def start_again() -> int:
    """Have the most so far begin at what is resident now, and return that."""
    heap.trim()
    RESET.write_text("5")
    return resident("VmRSS")


def measure(graph: Path, shapes: list[dict[str, Any]], tell: Any) -> None:
    """Tell what loading takes, then what each call does."""
    before = start_again()
    with OrtEngine(graph, threads=1, pooled=False) as engine:
        loading = resident("VmHWM") - before
        tell({"loading": loading, "loaded": resident("VmRSS") - before})
        for feeds in ({name: np.ones(*given) for name, given in each.items()} for each in shapes):
            at_rest = start_again() - sum(feed.nbytes for feed in feeds.values())
            engine.run(feeds)
            tell({"working": resident("VmHWM") - at_rest})


def main() -> None:
    """Answer one request."""
    request, tell = answering()
    heap.give_back()
    for number, each in enumerate(request["graphs"]):
        graph = Path(each["graph"])
        if not number:
            with OrtEngine(graph, threads=1, pooled=False):  # the library's own pages come with the first session
                pass
        measure(graph, each["shapes"], lambda values, name=each["name"]: tell({"name": name, **values}))


if __name__ == "__main__":
    main()
