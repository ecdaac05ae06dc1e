"""Catch the error of a mistake and return its message."""

import pytest

from segjax.errors import UserError


def refusal(call, *arguments, **options):
    """Return the one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
