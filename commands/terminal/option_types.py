"""The types of options: how their texts are read, and what the shell completes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ...errors import UsageError

if TYPE_CHECKING:
    from ...runtime.bundle.shapes import SizeRange


COMPONENT = re.compile(r"[a-z]\w+")


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
        from ...runtime.bundle.reader import plans, shipped

        known = [*shipped(), *(plans() if self.planned else ())]
        names = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="dir"), *names]  # bash drops the items before a directory


class Known(click.ParamType):
    """A text that the shell completes from a list; `names` returns it. The command checks the text."""

    name = "name"

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text unchanged."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin like `incomplete`."""
        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]


class Size(click.ParamType):
    """Pixels as "128" or "192x128" (width x height), to (height, width), the order of the Python API."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (height, width)."""
        from ...runtime.units import size_of

        try:
            return size_of(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType):
    """Memory as "8GiB", "512MiB", "6GB" or a number of bytes, to bytes."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, 1 or more."""
        from ...runtime.units import bytes_of

        try:
            return value if isinstance(value, int) else bytes_of(value)  # a default is a number
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Scaled(click.ParamType):
    """A file with a factor (default: 1), as "style.safetensors=0.8", to (path, factor, component).

    A component may stand before the file, as "transformer_2:style.safetensors"; it is empty otherwise.
    """

    name = "[COMPONENT:]FILE[=FACTOR]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Path, float, str]:
        """Return the path, the factor and the component."""
        if isinstance(value, tuple):
            return value
        text, mark, factor = str(value).rpartition("=")
        component, colon, path = (text if mark else factor).partition(":")
        if not colon or not COMPONENT.fullmatch(component):  # one letter is a drive of Windows
            component, path = "", text if mark else factor
        try:
            return Path(path), float(factor) if mark else 1.0, component
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


class Sizes(click.ParamType):
    """Pixels as "128", "192x128" (width x height), or a range of these as "64..256" or "64..128..256"."""

    name = "SIZE[..SIZE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SizeRange:
        """Return the range. With two sizes, the larger one is also the usual one."""
        from ...runtime.bundle.shapes import SizeRange
        from ...runtime.units import size_of

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
        from ...runtime.planning.hardware import published

        if str(value).isdecimal():
            return int(value)
        if (machine := published().get(str(value))) is None:
            self.fail(
                f"{value!r} is not a known GPU. Choose {', '.join(published())}, or a number such as 89.", param, ctx
            )
        return machine.capability

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the known GPUs that begin like `incomplete`."""
        from ...runtime.planning.hardware import published

        return [CompletionItem(name) for name in published() if name.startswith(incomplete)]
