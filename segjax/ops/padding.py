"""Padding of images."""

import jax
import jax.numpy as jnp
import numpy as np


def mirror(x: jax.Array, before: int | tuple[int, int], after: int | tuple[int, int]) -> jax.Array:
    """Mirror the borders, the edge itself not repeated, as np.pad(mode="reflect").

    A side shorter than its margin is mirrored repeatedly; a side of one pixel is repeated.

    Args:
      x: (..., H, W, C).
      before: rows and columns added at the top and the left; one number for both.
      after: at the bottom and the right.

    Returns:
      (..., before + H + after, before + W + after, C), dtype of x.
    """
    margins = zip(np.broadcast_to(before, 2), np.broadcast_to(after, 2), strict=True)
    for axis, margin in zip((-3, -2), margins, strict=True):
        source = np.pad(np.arange(x.shape[axis]), margin, mode="reflect")
        x = jnp.take(x, source, axis)
    return x
