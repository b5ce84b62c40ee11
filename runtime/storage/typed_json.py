"""Turn a table of JSON or TOML into a frozen dataclass, and check every field and type."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any


class Malformed(ValueError):
    """A value that is not of the expected kind.

    `where` is the place, with ":" before each key and the index of a list in brackets. `kind` is the expected type, or
    its description. `missing` and `unknown` are the keys that are wrong in a table.
    """

    def __init__(
        self, where: str, kind: Any, value: Any, missing: tuple[str, ...] = (), unknown: tuple[str, ...] = ()
    ) -> None:
        self.where, self.kind, self.value, self.missing, self.unknown = where, kind, value, missing, unknown
        super().__init__(f"{where} should be {self.expected}, found {str(value)[:80]!r}")

    @property
    def expected(self) -> str:
        """Return the name of the expected type."""
        return self.kind if isinstance(self.kind, str) else getattr(self.kind, "__name__", str(self.kind))


def read(data: bytes) -> Any:
    """Return what `data` holds; raises ValueError for invalid JSON, NaN and infinities, RecursionError if too deep."""
    return json.loads(data, parse_constant=_no_constant)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def build(kind: Any, value: Any, where: str) -> Any:
    """Turn a parsed value into `kind`: a dataclass, a tuple, a dict, a union or a scalar. Check every type.

    Raises Malformed, which names the place below `where`, for unknown, missing and ill-typed fields.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        required = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if not isinstance(value, dict) or not required <= value.keys() <= hints.keys():
            missing, unknown = (
                (sorted(required - value.keys()), sorted(value.keys() - hints.keys()))
                if isinstance(value, dict)
                else ([], [])
            )
            wrong = sorted(missing + unknown) if isinstance(value, dict) else value
            raise Malformed(where, kind, wrong, tuple(missing), tuple(unknown))
        return kind(**{name: build(hints[name], item, f"{where}:{name}") for name, item in value.items()})  # type: ignore[operator]
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise Malformed(where, list, value)
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise Malformed(where, "object", value)
        return {key: build(arguments[1], item, f"{where}:{key}") for key, item in value.items()}
    inner = next((a for a in arguments if dataclasses.is_dataclass(a) or typing.get_origin(a) is tuple), None)
    if origin is types.UnionType and inner is not None:
        return None if value is None and types.NoneType in arguments else build(inner, value, where)
    accepted = arguments if origin is types.UnionType else (kind,)
    takes_float = float in accepted
    if takes_float:
        accepted = (*accepted, int)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise Malformed(where, kind, value)
    if not takes_float or value is None:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):  # json reads 1e999 as infinity
        raise Malformed(where, "a finite float", value)
    return number
