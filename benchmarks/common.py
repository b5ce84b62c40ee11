"""Code that the benchmarks share: options, machine and versions, child processes, results files, gates.

A script in benchmarks/*/ imports it as `benchmarks.common`, after it appended the repository root to `sys.path`.
The module imports only the standard library, so it adds little to measured start-up times and memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "benchmarks/configs/full_size.json"
IMAGES = ROOT / "docs/images"


def full_size(model: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the family of a published model, and its config.json files by folder.

    A model with a "base" in the file has that model's configs, with its own changes. A text in place of a config names
    the component that has the same, MODEL/FOLDER.
    """
    known = json.loads(CONFIGS.read_text())
    own = known[model]
    family = own.pop("base", model)
    base = known[family]
    configs = base | {folder: _same(known, c) or base.get(folder, {}) | c for folder, c in own.items()}
    return family, configs


def _same(known: dict[str, dict[str, Any]], config: dict[str, Any] | str) -> dict[str, Any] | None:
    """Return the config that a text names; None for a config."""
    if not isinstance(config, str):
        return None
    model, folder = config.split("/")
    return known[model][folder]


def full_size_components() -> list[str]:
    """Return MODEL/FOLDER of every component that a published model does not share with another."""
    known = json.loads(CONFIGS.read_text())
    return [
        f"{model}/{folder}"
        for model, folders in known.items()
        for folder in folders
        if isinstance(folders[folder], dict)
    ]


def make_parser(doc: str | None, results: str = "", rounds: int = 0) -> argparse.ArgumentParser:
    """Return a parser that shows `doc`, with `--out` (benchmarks/results/`results`.json) and `--rounds`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if results:
        path = ROOT / f"benchmarks/results/{results}.json"
        parser.add_argument("--out", type=Path, default=path, help="the results file (default: %(default)s)")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help="measured rounds (default: %(default)s)")
    return parser


def header(*packages: str) -> dict[str, Any]:
    """Return what every results file says about its run: date, machine, and versions of Python and `packages`."""
    from segue.engines.devices import driver

    found = driver()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "GPUs": [gpu.name for gpu in found.gpus],
        "driver": found.version,
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in packages},
    }


def processor() -> str:
    """Return the processor's model name on Linux, and its architecture on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """Return the version of an installed package, or of its build for GPUs (onnxruntime-gpu)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(f"{package}-gpu")


def child(script: str, *arguments: object) -> Any:
    """Run `script` in a fresh process and return the JSON of the last line that it prints."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def smallest_budget(plan: Callable[[], object]) -> int:
    """Return the smallest sufficient budget in whole MiB; `plan` must plan for a budget that is too small."""
    from segue.errors import BudgetError

    needed = None
    try:
        plan()
    except BudgetError as error:
        needed = error.needed
    if needed is None:
        raise AssertionError("the budget was enough, or the error does not state the smallest one")
    return -(-needed // 2**20)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return median, lowest and highest of some values."""
    figures: tuple[tuple[str, Callable[[Sequence[float]], float]], ...]
    figures = (("median", statistics.median), ("lowest", min), ("highest", max))
    return {name: round(figure(values), digits) for name, figure in figures}


def quartiles(values: Sequence[float], digits: int) -> list[float]:
    """Return the three quartiles of some values."""
    return [round(value, digits) for value in statistics.quantiles(values, n=4)]


def load(path: Path, default: Any) -> Any:
    """Return the content of a results file, or `default` if there is no file yet."""
    return json.loads(path.read_text()) if path.is_file() else default


def write(path: Path, results: Any) -> None:
    """Write a results file."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def report(path: Path, results: Any) -> None:
    """Print the results and write them to their file."""
    print(json.dumps(results, indent=1), flush=True)
    write(path, results)


def merge(path: Path, entry: dict[str, Any], same: Sequence[str]) -> None:
    """Add an entry to a results file that holds a list; it replaces an entry with equal values of the keys `same`."""
    kept = [one for one in load(path, []) if any(one[key] != entry[key] for key in same)]
    write(path, [*kept, entry])


@dataclass(frozen=True)
class Gate:
    """A bound of one figure: at most `bound`, or at least `bound` if `at_least` is set. NaN never passes."""

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def exit_code(*gates: Gate) -> int:
    """Print one line for each gate, and return 0 if all passed, else 1."""
    for gate in gates:
        bound = f"{'at least' if gate.at_least else 'at most'} {gate.bound:g}"
        print(f"{'passed' if gate.passed else 'FAILED'}: {gate.name} is {gate.value:.4g}, must be {bound}")
    return 0 if all(gate.passed for gate in gates) else 1
