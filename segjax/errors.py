"""The exception for mistakes of the user, and errors in one line."""


class UserError(Exception):
    """A mistake that the user can correct, in one line: what, found, expected.

    The command line prints this line and exits with status 2.
    """


def line(error: Exception) -> str:
    """Return an error as one line: an OSError as its file and cause, another as its message."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
