"""The platform that operations will run on, known when they are traced."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_shapes_alone = ContextVar("shapes alone", default=False)


def on_cpu() -> bool:
    """Return whether what is traced now will run on a CPU; this initializes the devices."""
    return not _shapes_alone.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Trace operations as they are defined, for counting, without initializing a device."""
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)
