"""What several commands of `segue` share: option types, and an opened bundle."""

from __future__ import annotations

import re
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
    from ..runtime.bundle.shapes import SizeRange

if TYPE_CHECKING:
    from ..runtime.pipeline import Model

LARGE = 10**8  # bytes; less is hashed in a moment
BESIDE = 64 * 2**20  # bytes of private memory that the libraries map and do not touch
STACK = 8 * 2**20  # of a thread, of which little is touched


class BundleName(click.ParamType):
    """The name of a shipped bundle, or a directory; with `planned` also that of a plan."""

    name = "bundle"

    def __init__(self, planned: bool = False) -> None:
        self.planned = planned

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is; whether there is such a bundle is said when it is opened."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the shipped bundles that begin so, and have the shell add directories."""
        from ..runtime.bundle.reader import plans, shipped

        known = [*shipped(), *(plans() if self.planned else ())]
        names = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="dir"), *names]  # bash forgets what came before a directory


class Size(click.ParamType):
    """Pixels as "128" or "192x128" (width x height), to (height, width), the order of the programming interface."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        from ..runtime.units import size_of

        try:
            return size_of(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType):
    """An amount of memory as "8GiB", "512MiB", "6GB" or a number of bytes, to bytes."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, 1 or more."""
        from ..runtime.units import bytes_of

        try:
            return value if isinstance(value, int) else bytes_of(value)  # a default is a number
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Scaled(click.ParamType):
    """A file with a factor, as "style.safetensors=0.8" (1 where it is left out), to (path, factor)."""

    name = "FILE[=FACTOR]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, float]:
        """Return the path and the factor."""
        path, mark, factor = str(value).rpartition("=")
        try:
            return (Path(path), float(factor)) if mark else (Path(factor), 1.0)
        except ValueError:
            self.fail(f"{factor!r} in {value!r} is no number. Write FILE=0.8.", param, ctx)


class Sigmas(click.ParamType):
    """Noise levels as "1,0.75,0.5", to numbers."""

    name = "S,S,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of noise levels. Write them as 1,0.75,0.5,0.25.", param, ctx)


BUNDLE = BundleName()

TARGET = click.option(
    "--target", type=click.Choice(list(TARGETS)), default=DEFAULT, show_default=True,
    help="What runs the graphs; tensorrt ones need segue build first.",
)  # fmt: skip
TRUST = click.option("--trust-engines", is_flag=True, help="Run engines that came with the bundle: its maker's code.")


def signing(command: Any) -> Any:
    """Add the options of what a file says of itself; the command is given `metadata` and `certificate`."""
    import functools

    @click.option("--metadata/--no-metadata", default=True, show_default=True, help="Write into the file what made it.")
    @click.option("--certificate", "chain", type=click.Path(path_type=Path), help="Sign it (C2PA) with this PEM chain.")
    @click.option("--key", type=click.Path(path_type=Path), help="The PEM key of --certificate.")
    @click.option("--algorithm", default="es256", show_default=True, help="Of the signature.")
    @functools.wraps(command)
    def wrapped(*args: Any, chain: Path | None, key: Path | None, algorithm: str, **options: Any) -> Any:
        from ..runtime.media.provenance import Certificate

        if (chain is None) != (key is None):
            raise UsageError("--certificate and --key go together. Give both, or neither.")
        certificate = None if chain is None or key is None else Certificate(chain, key, algorithm)
        return command(*args, certificate=certificate, **options)

    return wrapped


def memory_of(model: Model) -> dict[str, float]:
    """Return what progress tells of memory, in MiB: what the model takes now, and what was planned."""
    planned = model.ledger.planned
    told = {"used_MiB": model.ledger.used / 2**20}
    return told if planned is None else told | {"planned_MiB": planned / 2**20}


@contextmanager
def stopped_with(hint: str, kept: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Have what stops on Ctrl-C say how to go on, and what stops for lack of memory where something is `kept` of it."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled):
        raise Cancelled(hint) from None
    except BudgetError as error:
        if kept():
            raise BudgetError(f"{error} {hint}") from error
        raise


@contextmanager
def opened(
    show: Output, bundle: str, threads: int | None, target: str = DEFAULT, trust: bool = False,
    budget: int | None = None,
) -> Iterator[Model]:  # fmt: skip
    """Open a bundle; warnings are told as they come."""
    from ..engines.process import limit_data
    from ..engines.targets import find_target
    from ..runtime.pipeline import open_model

    with show.progress("hashing", "bytes") as update:
        report = lambda _, done, total: update(done, total) if total > LARGE else None  # noqa: E731
        model = open_model(bundle, threads, report, target, trust, budget)
    if budget is not None and find_target(target).device == "cpu":
        # Should a plan be wrong, the kernel refuses what is far beyond it; a library must not, but this process is ours
        limit_data(budget + BESIDE + STACK * (model.threads + 1) * len(model.bundle.manifest.components))
    with model, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
        yield model


def megabytes(made: Any) -> str:
    return f"{sum(f.bytes for f in made.files.values()) / 1e6:.1f}"


COMPILED = ("tensorrt-rtx", "tensorrt")


class Sizes(click.ParamType):
    """Pixels as "128", "192x128" (width x height), or a range of these as "64..256" or "64..128..256"."""

    name = "SIZE[..SIZE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SizeRange:
        """Return the range; the usual size of a range of two is the largest one."""
        from ..runtime.bundle.shapes import SizeRange

        parts = str(value).split("..")
        found = [re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", part) for part in parts]
        if len(parts) > 3 or None in found:
            self.fail(f"{value!r} is no size or range. Write 128, 192x128, or 64..256.", param, ctx)
        sizes = [(int(match[2] or match[1]), int(match[1])) for match in found if match is not None]
        return SizeRange(sizes[0], sizes[len(sizes) // 2], sizes[-1])


class Capability(click.ParamType):
    """A compute capability as 89, or the name of a GPU in `hardware.json`."""

    name = "89|rtx4090"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the capability, tenfold."""
        from ..runtime.planning.hardware import published

        if str(value).isdecimal():
            return int(value)
        if (machine := published().get(str(value))) is None:
            self.fail(f"{value!r} is no capability and no GPU of {', '.join(published())}.", param, ctx)
        return machine.capability


BUILD = (
    click.option(
        "--sm",
        "--device",
        "sm",
        type=Capability(),
        multiple=True,
        help="What to build for: a compute capability, tenfold (89), or a GPU's name (rtx4090). Repeatable.",
    ),
    click.option(
        "--shapes", type=Sizes(), multiple=True, help="128, 192x128 or 64..256: one profile each. Repeatable."
    ),
    click.option("--guidance", is_flag=True, help="Room for guidance, where the bundle has none of its own."),
    click.option("--budget", type=Bytes(), help="Device memory for each engine's weights and scratch, as 8GiB."),
    click.option("--into-bundle", is_flag=True, help="Put the engines into the bundle as well."),
)


def building(command: Any) -> Any:
    """Add the options of BUILD to a command."""
    for option in reversed(BUILD):
        command = option(command)
    return command
