"""What an operation may know of where it will run."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_shapes_alone = ContextVar("shapes alone", default=False)


def on_cpu() -> bool:
    """Whether what is traced now will run on the CPU, which asks what devices there are."""
    return not _shapes_alone.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it no device is asked for, nor taken, and operations are as they are defined.

    For what is traced to be counted.
    """
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)
