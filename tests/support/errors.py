"""Catch the error of a mistake and return its message."""

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


def usage_error(capsys, arguments):
    """Run `segjax` with a mistake; return its one line on standard error."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("segjax: ")
    assert said.err.count("\n") == 1
    return said.err
