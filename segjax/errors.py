"""UserError, the exception for mistakes of the user, and the one-line form of an error."""


class UserError(Exception):
    """A mistake that the user can correct: one line with what is wrong, found and expected.

    The command line prints the message and exits with status 2.
    """


def line(error: Exception) -> str:
    """Return an error as one line: an OSError as its file and cause, another as its message."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
