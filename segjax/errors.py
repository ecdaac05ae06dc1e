"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can put right, in one line: its name, what was found, what was expected.

    The command line prints the line alone and exits with status 2.
    """


def line(error: Exception) -> str:
    """What a person is told: an OSError by its file and its cause, any other by its words."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
