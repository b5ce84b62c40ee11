"""What several commands of `segue` share: option types, and an opened bundle."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .console import Output

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


class Sigmas(click.ParamType):
    """Noise levels as "1,0.75,0.5", to numbers."""

    name = "S,S,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of noise levels. Write them as 1,0.75,0.5,0.25.", param, ctx)


@contextmanager
def opened(show: Output, bundle: str, threads: int | None) -> Iterator[Model]:
    """Open a bundle; warnings are told as they come."""
    from .runtime.pipeline import open_model

    with show.progress("hashing", "bytes") as update:
        model = open_model(bundle, threads, lambda _, done, total: update(done, total) if total > LARGE else None)
    with model, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
        yield model
