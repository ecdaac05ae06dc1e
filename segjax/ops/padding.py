"""Padding of images."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Sides = tuple[tuple[int, int], tuple[int, int]]  # above and below, left and right


def mirror(x: jax.Array, before: int | tuple[int, int], after: int | tuple[int, int]) -> jax.Array:
    """Pad by mirroring, without repeating the edge, as np.pad(mode="reflect") does.

    A side shorter than its margin is mirrored repeatedly; a single pixel is repeated.

    Args:
      x: (..., H, W, C).
      before: rows and columns added at the top and the left; one number for both.
      after: rows and columns added at the bottom and the right, likewise.

    Returns:
      (..., before + H + after, before + W + after, C), dtype of x.
    """
    margins = zip(np.broadcast_to(before, 2), np.broadcast_to(after, 2), strict=True)
    for axis, margin in zip((-3, -2), margins, strict=True):
        source = np.pad(np.arange(x.shape[axis]), margin, mode="reflect")
        x = jnp.take(x, source, axis)
    return x


def padded(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Pad rows and columns with zeros before and after; negative numbers crop."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
