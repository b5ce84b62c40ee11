"""Recipe files: find one, read it, and turn its tables into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ...errors import TrainingError

T = TypeVar("T")


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a file, or the name of one that ships with Segue ("emoji-teacher.toml")."""
    shipped = Path(str(resources.files(f"{__package__}.recipes")))
    for path in (Path(name), shipped / name, shipped / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.name for p in shipped.glob("*.toml")))
    raise TrainingError(f"there is no recipe {name!r}. Shipped recipes: {known}. Name one of them, or a file.")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe's tables; raises TrainingError when the file is not valid TOML."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} is not valid TOML: {error}. Mend that line, then run it again.") from None
    bare = sorted(name for name, table in recipe.items() if not isinstance(table, dict))
    if bare:
        raise TrainingError(f"{path} has {bare[0]!r} outside a table. Put it below [loop] or below its task.")
    return recipe


def fill(spec: type[T], table: dict[str, Any], where: str) -> T:
    """Make the frozen dataclass `spec` from a table; unknown, missing and ill-typed keys are errors."""
    fields = {f.name: f for f in dataclasses.fields(spec)}  # type: ignore[arg-type]
    unknown = sorted(table.keys() - fields.keys())
    if unknown:
        raise TrainingError(f"[{where}] has no key {unknown[0]!r}. Known keys: {', '.join(fields)}. Mend the recipe.")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(required - table.keys())
    if missing:
        raise TrainingError(f"[{where}] needs the key {missing[0]!r}. Add it to the recipe.")
    values = {}
    for name, value in table.items():
        kind: Any = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(str(fields[name].type), list)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TrainingError(f"[{where}] {name} = {value!r} should be of type {fields[name].type}. Mend the recipe.")
        values[name] = tuple(value) if isinstance(value, list) else value
    return spec(**values)
