"""What several commands of `segue` share: option types, and an opened bundle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from .console import Output
from .engines.targets import DEFAULT, TARGETS

if TYPE_CHECKING:
    from .runtime.pipeline import Model

LARGE = 10**8  # bytes; less is hashed in a moment


class Size(click.ParamType):
    """Pixels as "128" or "192x128" (width x height), to (height, width), the order of the programming interface."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(value))
        if found is None:
            self.fail(f"{value!r} is no size. Write 128, or width x height as in 192x128.", param, ctx)
        return int(found[2] or found[1]), int(found[1])


class Bytes(click.ParamType):
    """An amount of memory as "8GiB", "512MiB", "6GB" or a number of bytes, to bytes."""

    name = "BYTES"
    UNITS = MappingProxyType(
        {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, 1 or more."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?(\w*)", str(value))
        size = int(float(found[1]) * self.UNITS[found[2]]) if found and found[2] in self.UNITS else 0
        if size < 1:
            self.fail(f"{value!r} is no amount of memory. Write it as 8GiB, 512MiB or in bytes.", param, ctx)
        if found and not found[2] and size < 2**20:  # "8" is a slip for 8GiB more often than it is 8 bytes
            self.fail(f"{value!r} would be {size} bytes. Write {value}GiB or {value}MiB, or {value}B.", param, ctx)
        return size


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


TARGET = click.option(
    "--target", type=click.Choice(list(TARGETS)), default=DEFAULT, show_default=True,
    help="What runs the graphs; tensorrt ones need segue build first.",
)  # fmt: skip
TRUST = click.option("--trust-engines", is_flag=True, help="Run engines that came with the bundle: its maker's code.")


@contextmanager
def opened(
    show: Output, bundle: str, threads: int | None, target: str = DEFAULT, trust: bool = False
) -> Iterator[Model]:
    """Open a bundle; warnings are told as they come."""
    from .runtime.pipeline import open_model

    with show.progress("hashing", "bytes") as update:
        report = lambda _, done, total: update(done, total) if total > LARGE else None  # noqa: E731
        model = open_model(bundle, threads, report, target, trust)
    with model, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
        yield model
