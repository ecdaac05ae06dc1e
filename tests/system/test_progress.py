"""Progress bars print lines above them, and notice that their reader has gone."""

import os

import pytest

from segjax.system.progress import Terminal


def test_a_broken_pipe_is_pythons_exception_not_an_exit():
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), os.fdopen(writer, "w", buffering=1) as file:
        Terminal(file=file).print("text")
