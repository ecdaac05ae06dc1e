"""Catch the error of a mistake, in Python or on the command line, and return its message."""

import pytest

from segjax.cli.main import main
from segjax.errors import UserError


def refusal(call, *arguments, **options):
    """Return the one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def command_refusal(capsys, arguments):
    """Return the one line that `segjax` with these arguments prints as it exits with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("segjax: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error.removeprefix("segjax: ").rstrip("\n")
