"""Shared by several commands: option types, groups of options, and the opening of a bundle."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.targets import DEFAULT, TARGETS
from ..errors import BudgetError, Cancelled, SegueError, UsageError
from ..runtime.units import mebibytes
from .console import Output
from .terminal.option_types import BundleName, Bytes, Capability, Known, Sizes

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import Manifest
    from ..runtime.components import OnCall
    from ..runtime.pipeline import Model
    from ..runtime.plan_prepared import Asked
    from ..runtime.planning.pictures import Plan

PICTURES, VIDEOS = "emoji", "emoji-motion"  # the shipped bundles that commands use by default
COMPILED = tuple(name for name, target in TARGETS.items() if target.compiled)
LARGE = 10**8  # bytes; hashing less needs no progress bar
BESIDE = 64 * 2**20  # bytes of private memory that the libraries map and do not touch
STACK = 8 * 2**20  # bytes of a thread's stack, mostly untouched
FAR = 4  # times the pixels of the largest trained size: above it a command asks first


def devices() -> list[str]:
    """Return the names of devices that segue plan takes."""
    from ..runtime.planning.hardware import published

    return ["this", "cpu", *published()]


BUNDLE = BundleName()
DEVICE = Known(devices)
SEED = click.option(
    "--seed", type=int, show_default="random", help="Seed of the noise, 0 to 2^64 - 1. The same one repeats the result."
)
YES = click.option("--yes", is_flag=True, help="Do not ask before a size far above the trained ones.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Also show stages and memory while it works.")

TARGET = click.option(
    "--target", type=click.Choice(list(TARGETS)), default=DEFAULT, show_default=True,
    help=f"Engine that runs the graphs. {' and '.join(COMPILED)} need segue build first.",
)  # fmt: skip
TRUST = click.option(
    "--trust-engines", is_flag=True, help="Also run the engines inside the bundle. They are code of its maker."
)


def signing(command: Any) -> Any:
    """Add the options for metadata and signature; the command gets `metadata` and `certificate`."""
    import functools

    @click.option("--metadata/--no-metadata", default=True, show_default=True, help="Write the request into the file.")
    @click.option(
        "--certificate", "chain", type=click.Path(path_type=Path), help="Sign the file (C2PA) with this PEM chain."
    )
    @click.option("--key", type=click.Path(path_type=Path), help="PEM key of --certificate.")
    @click.option("--algorithm", default="es256", show_default=True, help="Algorithm of the signature.")
    @functools.wraps(command)
    def wrapped(*args: Any, chain: Path | None, key: Path | None, algorithm: str, **options: Any) -> Any:
        from ..runtime.media.provenance import Certificate

        if (chain is None) != (key is None):
            raise UsageError("--certificate and --key belong together. Give both or neither.")
        certificate = None if chain is None or key is None else Certificate(chain, key, algorithm)
        return command(*args, certificate=certificate, **options)

    return wrapped


def memory_of(model: Model) -> dict[str, float]:
    """Return the memory that progress shows, in MiB: used now, the peak so far, and planned."""
    planned = model.ledger.planned
    figures = {"used_MiB": model.ledger.used / 2**20, "peak_MiB": model.ledger.peak / 2**20}
    return figures if planned is None else figures | {"planned_MiB": planned / 2**20}


@contextmanager
def stopped_with(hint: str, kept: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Add `hint` to the message if Ctrl-C stops the block, or if memory runs out and work is `kept`."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled):
        raise Cancelled(hint) from None
    except BudgetError as error:
        if kept():
            raise BudgetError(str(error), hint, error.needed) from error
        raise


def plan_of(model: Model, request: Any) -> Plan | None:
    """Return the plan of a request. None if it cannot be planned: running it then raises the error."""
    try:
        return model.plan(request)
    except SegueError:
        return None


def argument_missing(command: str, bundle: str, what: str, usual: str, sample: str) -> UsageError:
    """Return the error for a command that got one argument, `bundle`, which may be the other one.

    `what` is the name of the second argument and `sample` one of its kind; `usual` is the bundle to suggest.
    """
    from ..runtime.bundle.reader import shipped

    if bundle in shipped() or Path(bundle).is_dir():
        return UsageError(f"{what} is missing. Write: segue {command} {bundle} {sample}")
    quoted = f'"{bundle}"' if " " in bundle else bundle
    return UsageError(f"a bundle and {what} are needed, got only {bundle!r}. Write: segue {command} {usual} {quoted}")


def confirmed(show: Output, model: Model, prepared: Asked, yes: bool) -> None:
    """Ask before a request with far more pixels than the model was trained at; `yes` answers it.

    Raises UsageError if there is no terminal to ask on, Cancelled if the answer is no, and the errors of `Model.plan`.
    """
    ready = model.prepare(prepared)
    height, width = max(model.sizes, key=lambda size: size[0] * size[1])
    times = ready.height * ready.width / (height * width)
    if times <= FAR or yes:
        return
    plan = model.plan(ready)
    told = (
        f"{ready.width}x{ready.height} has {times:.3g} times the pixels of {width}x{height}, the largest size that "
        f"{model.name} is made for. It takes about {duration(plan.seconds)} and {mebibytes(plan.peak)} MiB of memory."
    )
    sure(show, told, yes, ", or choose a smaller --size")


def sure(show: Output, told: str, yes: bool, instead: str = "") -> None:
    """Ask whether to go on, after the sentence `told`; `yes` answers it. `instead` is another way out.

    Raises UsageError if there is no terminal to ask on, Cancelled if the answer is no.
    """
    if yes:
        return
    if show.as_json or sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(told, f"Add --yes if you want it{instead}.")
    if not click.confirm(f"{told} Go on?", err=True):
        raise Cancelled("Nothing was done.")


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use, such as "0.45 s" or "12 min"."""
    unit, name = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    value = seconds / unit
    return f"{value:.2g} {name}" if value < 9.5 else f"{value:.0f} {name}"


@contextmanager
def opened(
    show: Output, bundle: str, threads: int | None, target: str = DEFAULT, trust: bool = False,
    budget: int | None = None, on_call: OnCall | None = None,
) -> Iterator[Model]:  # fmt: skip
    """Open a bundle and show its warnings as they come; `on_call` runs after each network call."""
    from ..engines.process import limit_data
    from ..engines.targets import find_target
    from ..runtime.bundle.reader import read
    from ..runtime.pipeline import Model

    with show.progress("hashing", "bytes") as update:
        report = lambda _, done, total: update(done, total) if total > LARGE else None  # noqa: E731
        model = Model(read(bundle, progress=report), threads, target, on_call, trust, budget)
    if budget is not None and find_target(target).device == "cpu":
        # If a plan is wrong, the kernel refuses memory far above it. A library must not do this, a command may.
        limit_data(budget + BESIDE + STACK * (model.threads + 1) * len(model.bundle.manifest.components))
    with model, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
        yield model


def megabytes(made: Manifest) -> str:
    """Return the size of a bundle's files, in MB."""
    return f"{sum(f.bytes for f in made.files.values()) / 1e6:.1f}"


BUILD = (
    click.option(
        "--sm",
        "--device",
        "sm",
        type=Capability(),
        multiple=True,
        help="GPU to build for: compute capability times ten (89) or a name (rtx4090). Repeatable.",
    ),
    click.option(
        "--shapes",
        type=Sizes(),
        multiple=True,
        help="Size of a profile, in pixels: 128, 192x128 or 64..256. Repeatable.",
    ),
    click.option("--budget", type=Bytes(), help="Most device memory for each engine's weights and scratch, as 8GiB."),
    click.option("--into-bundle", is_flag=True, help="Also put the engines into the bundle."),
)


def building(command: Any) -> Any:
    """Add the options of BUILD, for engines, to a command."""
    for option in reversed(BUILD):
        command = option(command)
    return command
