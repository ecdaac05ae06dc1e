"""UserError, the exception for mistakes of the user, warnings, and one-line forms of both."""

import sys
from collections.abc import Collection


class UserError(Exception):
    """A mistake that the user can correct: one line with what is wrong, found and expected.

    The command line prints the message and exits with status 2.
    """


def line(error: Exception) -> str:
    """Return an error as one line: an OSError as its file and cause, another as its message."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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
