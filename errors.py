"""The closed set of errors that Segue raises on purpose.

Every message says what happened, names the offending value and ends with the next thing to do. The command line prints
the message without a traceback and exits with `exit_code`. A program catches `SegueError` or one of its subclasses.
"""

from collections.abc import Sequence


class SegueError(Exception):
    """Base of every error that Segue raises on purpose.

    `advice` is the last part of the text: the next thing to do. `what` is the text before it. Code reads these fields
    and never parses the text.
    """

    exit_code = 1

    def __init__(self, message: str = "", advice: str = "") -> None:
        super().__init__(f"{message} {advice}" if advice else message)
        self.advice = advice

    @property
    def what(self) -> str:
        """Return what happened, without the advice."""
        return str(self).removesuffix(self.advice).rstrip()


class UsageError(SegueError):
    """A request that cannot be met: a wrong size, a negative number of steps, an unknown name."""

    exit_code = 2


class BundleError(SegueError):
    """A bundle that is absent, damaged, altered, unsafe or of a newer schema."""

    exit_code = 3


class CheckpointError(SegueError):
    """A checkpoint that cannot be read or exported."""

    exit_code = 4


class ParityError(SegueError):
    """An exported component differs from PyTorch by more than the gate."""

    exit_code = 5


class OutputError(SegueError):
    """A file or directory that cannot be written."""

    exit_code = 6


class MissingDependencyError(SegueError):
    """An optional package that is needed and not installed."""

    exit_code = 7


class TrainingError(SegueError):
    """A recipe, data set or training run that cannot continue."""

    exit_code = 8


class EngineError(SegueError):
    """An engine that cannot be built, is absent, was altered, or was made for another machine or version.

    `log` holds the output of the builder before it failed, one line an item.
    """

    exit_code = 9

    def __init__(self, message: str = "", advice: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(message, advice)
        self.log = tuple(log)


class BudgetError(SegueError):
    """A request that does not fit into the allowed memory.

    `needed` is the smallest budget that is enough, in bytes; None if it is unknown.
    """

    exit_code = 10

    def __init__(self, message: str = "", advice: str = "", needed: int | None = None) -> None:
        super().__init__(message, advice)
        self.needed = needed


class BusyError(SegueError):
    """A model or a queue that accepts no more requests now."""

    exit_code = 11


class Cancelled(SegueError):
    """The caller stopped the work (Ctrl-C, or `cancel` returned true)."""

    exit_code = 130
