"""The closed set of errors that Segue raises on purpose.

Every message says what happened, names the offending value and ends with the next thing to do. The command line prints
the message without a traceback and leaves with `exit_code`; a program catches `SegueError` or one of its kinds.
"""

from collections.abc import Sequence


class SegueError(Exception):
    """Base of every error that Segue raises on purpose."""

    exit_code = 1


class UsageError(SegueError):
    """A request that cannot be met as asked: a wrong size, a negative number of steps, an unknown name."""

    exit_code = 2


class BundleError(SegueError):
    """A bundle that is absent, damaged, altered, unsafe or of a newer schema."""

    exit_code = 3


class CheckpointError(SegueError):
    """A checkpoint that cannot be read or exported."""

    exit_code = 4


class ParityError(SegueError):
    """An exported component whose outputs differ from PyTorch's by more than the gate."""

    exit_code = 5


class OutputError(SegueError):
    """A place that cannot be written to."""

    exit_code = 6


class MissingDependencyError(SegueError):
    """An optional package that this command needs and that is not installed."""

    exit_code = 7


class TrainingError(SegueError):
    """A recipe, data set or training run that cannot go on."""

    exit_code = 8


class EngineError(SegueError):
    """An engine that cannot be built, is absent, was altered, or was made for another machine or version.

    `log` is what its builder said before it gave up, a line each.
    """

    exit_code = 9

    def __init__(self, *text: object, log: Sequence[str] = ()) -> None:
        super().__init__(*text)
        self.log = tuple(log)


class BudgetError(SegueError):
    """A request that does not fit into the memory that it may take."""

    exit_code = 10


class BusyError(SegueError):
    """A model or a queue that takes no more requests now."""

    exit_code = 11


class Cancelled(SegueError):
    """The caller asked to stop (Ctrl-C, or `cancel` returned true)."""

    exit_code = 130
