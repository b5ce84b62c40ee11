"""Shared by several commands: option types, groups of options, and the opening of a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..engines.targets import DEFAULT, TARGETS
from ..errors import BudgetError, Cancelled, UsageError
from .console import Output

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import Manifest
    from ..runtime.bundle.shapes import SizeRange
    from ..runtime.pipeline import Model

PICTURES, VIDEOS = "emoji", "emoji-motion"  # the shipped bundles that commands use by default
COMPILED = tuple(name for name, target in TARGETS.items() if target.compiled)
LARGE = 10**8  # bytes; hashing less needs no progress bar
BESIDE = 64 * 2**20  # bytes of private memory that the libraries map and do not touch
STACK = 8 * 2**20  # bytes of a thread's stack, mostly untouched


class BundleName(click.ParamType):
    """The name of a shipped bundle, or a directory; with `planned` also the name of a plan."""

    name = "bundle"

    def __init__(self, planned: bool = False) -> None:
        self.planned = planned

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name unchanged. Opening the bundle checks it."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the shipped bundles that begin like `incomplete`; the shell adds directories."""
        from ..runtime.bundle.reader import plans, shipped

        known = [*shipped(), *(plans() if self.planned else ())]
        names = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="dir"), *names]  # bash drops the items before a directory


class Size(click.ParamType):
    """Pixels as "128" or "192x128" (width x height), to (height, width), the order of the Python API."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        from ..runtime.units import size_of

        try:
            return size_of(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType):
    """Memory as "8GiB", "512MiB", "6GB" or a number of bytes, to bytes."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, 1 or more."""
        from ..runtime.units import bytes_of

        try:
            return value if isinstance(value, int) else bytes_of(value)  # a default is a number
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Scaled(click.ParamType):
    """A file with a factor (default: 1), as "style.safetensors=0.8", to (path, factor)."""

    name = "FILE[=FACTOR]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, float]:
        """Return the path and the factor."""
        path, mark, factor = str(value).rpartition("=")
        try:
            return (Path(path), float(factor)) if mark else (Path(factor), 1.0)
        except ValueError:
            self.fail(f"{factor!r} in {value!r} is not a number. Write FILE=0.8.", param, ctx)


class Sigmas(click.ParamType):
    """Noise levels as "1,0.75,0.5", to numbers."""

    name = "S,S,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of noise levels. Write it as 1,0.75,0.5,0.25.", param, ctx)


BUNDLE = BundleName()

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
    """Return the memory that progress shows, in MiB: used now, and planned."""
    planned = model.ledger.planned
    figures = {"used_MiB": model.ledger.used / 2**20}
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


@contextmanager
def opened(
    show: Output, bundle: str, threads: int | None, target: str = DEFAULT, trust: bool = False,
    budget: int | None = None,
) -> Iterator[Model]:  # fmt: skip
    """Open a bundle and show its warnings as they come."""
    from ..engines.process import limit_data
    from ..engines.targets import find_target
    from ..runtime.pipeline import open_model

    with show.progress("hashing", "bytes") as update:
        report = lambda _, done, total: update(done, total) if total > LARGE else None  # noqa: E731
        model = open_model(bundle, threads, report, target, trust, budget)
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


class Sizes(click.ParamType):
    """Pixels as "128", "192x128" (width x height), or a range of these as "64..256" or "64..128..256"."""

    name = "SIZE[..SIZE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SizeRange:
        """Return the range. With two sizes, the larger one is also the usual one."""
        from ..runtime.bundle.shapes import SizeRange
        from ..runtime.units import size_of

        try:
            sizes = [size_of(part) for part in str(value).split("..")]
        except UsageError:
            sizes = []
        if not 1 <= len(sizes) <= 3:
            self.fail(f"{value!r} is not a size or range. Write 128, 192x128 or 64..256.", param, ctx)
        return SizeRange(sizes[0], sizes[len(sizes) // 2], sizes[-1])


class Capability(click.ParamType):
    """A compute capability as 89, or the name of a GPU in `hardware.json`."""

    name = "89|rtx4090"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the capability times ten."""
        from ..runtime.planning.hardware import published

        if str(value).isdecimal():
            return int(value)
        if (machine := published().get(str(value))) is None:
            self.fail(
                f"{value!r} is not a known GPU. Choose {', '.join(published())}, or a number such as 89.", param, ctx
            )
        return machine.capability


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
    click.option("--guidance", is_flag=True, help="Build for guidance even if the bundle uses none by default."),
    click.option("--budget", type=Bytes(), help="Most device memory for each engine's weights and scratch, as 8GiB."),
    click.option("--into-bundle", is_flag=True, help="Also put the engines into the bundle."),
)


def building(command: Any) -> Any:
    """Add the options of BUILD to a command."""
    for option in reversed(BUILD):
        command = option(command)
    return command
