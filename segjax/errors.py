"""The exceptions that end a command, warnings, and one-line forms of both."""

import signal
import sys
from collections.abc import Collection


class UserError(Exception):
    """A mistake that the user can correct: one line with what is wrong, found and expected.

    The command line prints the message and exits with status 2.
    """


class Stopped(Exception):
    """A signal asked the training to stop, and everything is saved.

    Attributes:
      status: exit status of the command, 128 plus the number of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, all is saved")
        self.status = 128 + number


class Diverged(Exception):
    """The loss or its gradient is not finite; the command exits with status 1."""


def line(error: Exception) -> str:
    """Return an error as one line: an OSError as its file and cause, another as its message."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def message(error: Exception) -> str:
    """Return an error's message as one line; those of other libraries may have several."""
    return " ".join(str(error).split())


def warn(text: str) -> None:
    """Print a warning of one line to standard error; `sweep.status` tells it from an error."""
    say(f"warning: {text}")


def say(text: str) -> None:
    """Print an error that does not end the command, in one line, to standard error."""
    print(f"segjax: {text}", file=sys.stderr)  # noqa: T201


def listing(names: Collection[object], most: int = 5) -> str:
    """Return names as one line that shows at most `most` of them: `a, b and 7 more`."""
    texts = map(str, list(names)[:most])
    shown = ", ".join(text if len(text) <= 200 else f"{text[:197]}..." for text in texts)
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
