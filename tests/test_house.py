"""The tree keeps its shape: no circle of imports, small modules, small folders, one table of families."""

import ast
import tomllib
from collections import Counter
from pathlib import Path

import grimp

import segue
from segue.runtime.bundle.families import _ROLES, FAMILIES

ROOT = Path(segue.__file__).parent
FOLDERS = ("app", "commands", "engines", "export", "runtime", "training")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")) + sorted(ROOT.glob("*.py"))
TABLE = ROOT / "runtime/bundle/families.py"


def circles(imports):
    """Return the modules that stand on a circle, or between two, of `imports`: module -> modules that it imports."""
    left = {name: set(targets) for name, targets in imports.items()}
    while True:
        ends = {name for name, targets in left.items() if not targets & left.keys()}
        starts = left.keys() - {target for targets in left.values() for target in targets}
        if not ends | starts:
            return sorted(left)
        left = {name: targets for name, targets in left.items() if name not in ends | starts}


def test_no_modules_import_each_other_in_a_circle():
    graph = grimp.build_graph("segue")  # also imports inside functions, and those for type checkers
    names = [
        name for name in graph.modules if name.split(".")[1:2] and name.split(".")[1] in (*FOLDERS, "cli", "errors")
    ]
    assert len(names) > 200
    assert circles({name: graph.find_modules_directly_imported_by(name) - {name} for name in names}) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_module_is_long():
    assert {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text("utf-8").splitlines())) > 320} == {}


def test_no_folder_has_many_modules():
    counted = Counter(str(path.parent.relative_to(ROOT)) for path in [*MODULES, *(ROOT / "benchmarks").rglob("*.py")])
    assert {folder: count for folder, count in counted.items() if count > 12} == {}


def test_an_installed_segue_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent for folder in (*FOLDERS, "bundles") for path in (ROOT / folder).rglob("__init__.py")}
    names = {".".join(("segue", *path.relative_to(ROOT).parts)) for path in found if "plans" not in path.parts}
    assert set(listed) == names | {"segue"}


def test_only_the_table_of_families_compares_their_names_and_those_of_components():
    named = {*FAMILIES, *_ROLES} - {"vae"}
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
                parts = node.args
            else:
                continue
            constants = [c.value for part in parts for c in ast.walk(part) if isinstance(c, ast.Constant)]
            if path != TABLE and named & {value for value in constants if isinstance(value, str)}:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
