"""The child process of `footprint`: load each graph, call it at some shapes, and report the memory that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...engines import heap
from ...engines.json_child import answering
from ...engines.ort.engine import OrtEngine

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(what: str) -> int:
    """Return the bytes of a line of /proc/self/status: "VmRSS", or "VmHWM" for the peak so far."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(f"{what}:"))


def start_again() -> int:
    """Reset the peak to the memory that is resident now, and return that."""
    heap.trim()
    RESET.write_text("5")
    return resident("VmRSS")


def measure(graph: Path, shapes: list[dict[str, Any]], tell: Any) -> None:
    """Report the memory of loading, then of each call."""
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
    """Run a graph in parts at some shapes; report each part's memory, values between parts included."""
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
            with OrtEngine(graph, threads=1, pooled=False):  # the first session maps the library's own pages
                pass

        def answer(values: dict[str, Any], name: str = each["name"]) -> None:
            tell({"name": name, **values})

        measure(graph, each["shapes"], answer)
        measure_parts(each["parts"], each["outputs"], each["shapes"], answer)


if __name__ == "__main__":
    main()
