"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can put right: one line that names it, what was found and what was expected.

    The command line prints the line alone and exits with status 2.
    """
