"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can put right, in one line: its name, what was found, what was expected.

    The command line prints the line alone and exits with status 2.
    """
