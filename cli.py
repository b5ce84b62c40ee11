"""The `segue` command: the click group and its commands.

With --json a failure is also an event: {"event": "error", "kind": class, "exit_code": number, "text": message}.
"""

from __future__ import annotations

import sys

import click

from .commands import animate, bench, engines, export, inspect, jobs, plan, render, train
from .commands.console import Output, guard

EXIT_CODES = (
    "Exit codes: 0 done; 1 another Segue error; 2 wrong usage; 3 a bad bundle; 4 a bad checkpoint; 5 parity missed; "
    "6 output not writable; 7 an optional package is missing; 8 training failed; 9 no engine fits; 10 the budget is "
    "too small; 11 busy; 70 a bug in Segue; 130 stopped by Ctrl-C; 141 standard output was closed."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="segue", message="segue %(version)s")
def cli() -> None:
    """Few-step diffusion: train, export, render."""


for module in (render, animate, jobs, bench, plan, export, inspect, engines, train):
    for command in module.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """Run the command line. It shows no traceback unless SEGUE_DEBUG is set."""
    sys.exit(guard(lambda: cli.main(standalone_mode=False), Output("--json" in sys.argv[1:])))


if __name__ == "__main__":
    main()
