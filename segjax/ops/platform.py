"""The platform that operations will run on, as known when they are traced."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_shapes_only = ContextVar("shapes only", default=False)


def on_cpu() -> bool:
    """Return whether what is being traced will run on a CPU; this initializes the devices."""
    return not tracing_shapes() and jax.default_backend() == "cpu"


def tracing_shapes() -> bool:
    """Return whether the trace is inside `shapes_only`."""
    return _shapes_only.get()


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Trace operations in their form for no particular device, without initializing one."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)
