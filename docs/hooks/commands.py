"""The page of commands, read from click at every build: what `segue --help` and `segue COMMAND --help` show."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click

MARK = "<!-- commands -->"
CODE = re.compile(r"(`[^`]*`)")


def on_page_markdown(markdown: str, **_: Any) -> str | None:
    """Put the commands where a page has the mark."""
    if MARK not in markdown:
        return None
    from segue.cli import cli

    with click.Context(cli, info_name="segue") as context:
        return markdown.replace(MARK, "\n\n".join(sections(cli, context)))


def sections(group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield the Markdown of each command below a group that is not hidden, and of the exit codes."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        with click.Context(command, info_name=name, parent=context) as own:
            yield f"## {own.command_path}"
            yield from described(command, own)
            if isinstance(command, click.Group):
                yield from sections(command, own)
    if group.epilog and (codes := re.findall(r"(\d+) ([^;.]+)", group.epilog)):
        yield "## Exit codes"
        yield "\n".join(["| code | meaning |", "|---|---|", *(f"| {code} | {escaped(what)} |" for code, what in codes)])


def described(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command's help, usage, options and examples."""
    examples = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("\b"):  # click's mark of lines that stay as they are
            examples += [line.strip() for line in part.splitlines()[1:] if not line.strip().endswith(":")]
        else:
            yield escaped(" ".join(part.split()))
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```"
    records = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    if records:
        rows = [f"| `{names}` | {escaped(text).replace('|', '&#124;')} |" for names, text in records]
        yield "\n".join(["| option | what it does |", "|---|---|", *rows])
    if examples:
        yield "```sh\n" + "\n".join(examples) + "\n```"


def escaped(text: str) -> str:
    """Return plain text as Markdown; what stands in backquotes stays as it is."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else re.sub(r"([\\*_<>\[\]])", r"\\\1", part) for i, part in enumerate(parts))
