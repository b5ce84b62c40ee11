"""Find a recipe file, read it, and turn its tables into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ...errors import TrainingError
from ...runtime.storage import typed_json
from ...runtime.storage.files import read_text
from .. import recipes

T = TypeVar("T")


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.name.removesuffix(".toml") for path in _shipped().glob("*.toml"))


def find_recipe(name: str) -> Path:
    """Return the path of a recipe. `name` is a file or a shipped recipe ("emoji-teacher")."""
    for path in (Path(name), _shipped() / name, _shipped() / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(recipe_names())
    raise TrainingError(f"there is no recipe {name!r}. Shipped recipes: {known}. Name one of these, or a TOML file.")


def _shipped() -> Path:
    return Path(str(resources.files(recipes)))


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe's tables. Raises TrainingError if the file is not valid TOML."""
    try:
        recipe = tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} is not valid TOML: {error}. Correct that line, then run it again.") from None
    bare = sorted(name for name, table in recipe.items() if not isinstance(table, dict))
    if bare:
        raise TrainingError(f"{path} has {bare[0]!r} outside a table. Move it below [loop] or below the task's table.")
    return recipe


def fill(spec: type[T], table: dict[str, Any], where: str) -> T:
    """Make the frozen dataclass `spec` from the recipe's table `where`.

    A field that is a dataclass takes a nested table. Raises TrainingError for unknown, missing and ill-typed keys.
    """
    try:
        filled: T = typed_json.build(spec, table, where)
    except typed_json.Malformed as error:
        raise TrainingError(_message(error)) from None
    return filled


def _message(error: typed_json.Malformed) -> str:
    name = error.where.replace(":", ".")
    if error.unknown:
        known = ", ".join(field.name for field in dataclasses.fields(error.kind))
        return f"[{name}] has no key {error.unknown[0]!r}. Known keys: {known}. Correct the recipe."
    if error.missing:
        return f"[{name}] needs the key {error.missing[0]!r}. Add it to the recipe."
    table, _, key = name.rpartition(".")
    if dataclasses.is_dataclass(error.kind):
        return f"[{table}] {key} = {error.value!r} must be a table. Write it as [{name}]."
    return f"[{table}] {key} = {error.value!r} must be of type {error.expected}. Correct the recipe."
