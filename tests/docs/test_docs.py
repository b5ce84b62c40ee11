"""The documents: their commands exist as written, their links lead somewhere, the site builds."""

import ast
import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from segue.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples/desktop/README.md"]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|&& |\| |`)((?:\w+=\S+ )*segue [a-z][^`|&#\n]*)", re.MULTILINE)


def examples_of(text):
    lines = re.split(r"Examples?:\n", text or "")[1:]
    return [line.strip().split(") ")[-1] for part in lines for line in part.splitlines() if "segue " in line]


def commands():
    found = {}
    for page in PAGES:
        for line in page.read_text().splitlines():
            for text in COMMAND.findall(line if line.startswith("    ") or "`" in line else ""):
                if "…" in text or len(text.split()) < 3:
                    continue  # named, not written out
                found.setdefault(text.strip(), f"{page.parent.name}/{page.stem}: {text.strip()}"[:80])
    return [pytest.param(text, id=name) for text, name in found.items()]


def test_the_program_of_the_guide_to_embedding_is_short():
    (program, *_) = [
        text for name, text in FENCED.findall((ROOT / "docs/guide/embed.md").read_text()) if name == "python"
    ]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("text", commands())
def test_commands_are_written_as_they_are(text):
    words = [word for word in shlex.split(text) if not re.fullmatch(r"[A-Z_]+=\S*", word)][1:]
    with click.Context(cli) as context:
        name, command, rest = cli.resolve_command(context, words)
        while isinstance(command, click.Group) and rest:
            name, command, rest = command.resolve_command(context, rest)
        assert command is not None
        with contextlib.suppress(click.MissingParameter):  # "segue export --precision fp16", in a sentence
            command.make_context(name, list(rest), parent=context)


def test_links_between_the_documents_lead_somewhere():
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if not (page.parent / target).exists():
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def test_paths_that_code_and_pages_name_are_there():
    named = re.compile(
        r"(?<![\w./-])(?:docs|tests|benchmarks|runtime|engines|export|training|commands|app)/[\w./-]*\w\.(?:md|py|svg|png|gif|txt|toml)"
    )
    wrong = []
    for path in sorted(p for kind in ("*.py", "*.md", "*.toml", "*.yml") for p in ROOT.rglob(kind)):
        inside = path.relative_to(ROOT).parts
        if (
            inside[0] in ("build", "runs", "CHANGELOG.md")
            or inside == ("tests", "conftest.py")
            or any(part.startswith(".") for part in inside)
        ):
            continue
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in named.findall(path.read_text("utf-8"))
            if not (ROOT / name).exists() and not re.search(r"NAME|FAMILY", name)
        ]
    assert not wrong


# What only code for a GPU calls, defines or imports
ON_GPU = {
    "pynvml", "cuda", "tensorrt", "driver", "on_gpu", "can_stay", "provider_options", "rtx_devices", "OrtResident",
    "TrtResident", "CudaGraph", "TensorRtEngine",
}  # fmt: skip


def names_in(path):
    """Return what a module defines (also as Class.method), and what it defines, calls, reads or imports."""
    tree = ast.parse(path.read_text())
    defined, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            defined.update(f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            used.add(node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        elif isinstance(node, ast.Attribute) and node.attr == "on_gpu":
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            used.update(part for alias in node.names for part in alias.name.split("."))
            if not getattr(node, "level", 0):  # engines/tensorrt/ is a folder of ours
                used.update((getattr(node, "module", "") or "").split("."))
    return defined, used | defined


def listed(heading):
    """Return the names that docs/evidence/status.md lists by module below a heading."""
    text = (ROOT / "docs/evidence/status.md").read_text().partition(heading)[2]
    found = {}
    for item in re.split(r"^- ", re.split(r"\n\n(?!- )", text, maxsplit=1)[0], flags=re.MULTILINE)[1:]:
        path, *names = re.findall(r"`([\w./]+)`", item)
        found[path] = names
    return found


def test_what_has_run_on_a_gpu_and_what_never_has_is_listed_by_names_that_the_code_has():
    run, never = listed("Has run on a GPU:\n\n"), listed("Has never run on a GPU:\n\n")
    assert {"engines/tensorrt/engine.py", "engines/tensorrt/cuda_graph.py"} <= set(never) - set(run)
    for path, names in [*run.items(), *never.items()]:
        assert names, path
        assert set(names) <= names_in(ROOT / path)[0], path
    asking = {
        str(path.relative_to(ROOT))
        for folder in ("engines", "runtime", "app")
        for path in (ROOT / folder).rglob("*.py")
        if ON_GPU & names_in(path)[1]
    }
    assert asking <= {*run, *never}


def test_the_programs_of_the_guides_pass_a_strict_type_check(tmp_path):
    (tmp_path / "segue").symlink_to(ROOT)
    programs = []
    for index, text in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/guide/embed.md").read_text(), re.M | re.S)
    ):
        programs.append(tmp_path / f"program_{index}.py")
        programs[-1].write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "c")]
    run = subprocess.run(
        [*command, *map(str, programs)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout


def test_every_command_has_examples_in_its_help():
    lacking = [name for name, command in cli.commands.items() if "Example" not in (command.help or "")]
    assert not lacking


@pytest.mark.parametrize("text", [line for command in cli.commands.values() for line in examples_of(command.help)])
def test_examples_of_the_help_are_commands(text):
    test_commands_are_written_as_they_are(text)
