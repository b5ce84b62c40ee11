"""The child process of `footprint`: load graphs one after another, call each at some shapes, and say what that took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...engines import heap
from ...engines.json_child import answering
from ...engines.ort.engine import OrtEngine

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
        heap.trim()
        tell({"loading": loading, "loaded": resident("VmRSS") - before})
        for feeds in ({name: np.ones(*given) for name, given in each.items()} for each in shapes):
            at_rest = start_again() - sum(feed.nbytes for feed in feeds.values())
            engine.run(feeds)
            tell({"working": resident("VmHWM") - at_rest})


def measure_parts(parts: list[dict[str, Any]], outputs: list[str], shapes: list[dict[str, Any]], tell: Any) -> None:
    """Run a graph in parts at some shapes, and tell of each part in turn what its call takes, what crosses included."""
    for each in shapes:
        values: dict[str, np.ndarray] = {name: np.ones(*given) for name, given in each.items()}
        for number, part in enumerate(parts):
            with OrtEngine(Path(part["graph"]), threads=1, pooled=False) as engine:
                at_rest = start_again() - sum(value.nbytes for value in values.values())
                values |= engine.run({name: values[name] for name in part["inputs"]})
                tell({"working": resident("VmHWM") - at_rest})
            later = {*outputs, *(name for following in parts[number + 1 :] for name in following["inputs"])}
            values = {name: value for name, value in values.items() if name in later}


def main() -> None:
    """Answer one request."""
    request, tell = answering()
    heap.give_back()
    for number, each in enumerate(request["graphs"]):
        graph = Path(each["graph"])
        if not number:
            with OrtEngine(graph, threads=1, pooled=False):  # the library's own pages come with the first session
                pass

        def told(values: dict[str, Any], name: str = each["name"]) -> None:
            tell({"name": name, **values})

        measure(graph, each["shapes"], told)
        measure_parts(each["parts"], each["outputs"], each["shapes"], told)


if __name__ == "__main__":
    main()
