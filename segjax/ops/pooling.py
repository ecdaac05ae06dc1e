"""Max pooling that returns where each maximum was, and unpooling with these indices.

SegNet (arXiv 1511.00561, section 3) upsamples by putting each value back where its maximum was. The
index is the row-major position in the pooling window, of the first of equal maxima: one byte for a
map of any size. Windows do not overlap, so both directions and their gradients are a reshape and a
comparison, without a scatter.

Where maxima that are equal in exact arithmetic differ by rounding, as in areas of one color, the
index follows from the rounding, and so from the device and the batch size.

The functions with indices take (..., H, W, C), `max_pool` (B, H, W, C). They work under jit, vmap,
grad and in bfloat16.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from segjax.ops.onednn import kernels
from segjax.ops.padding import Sides


def max_pool_with_indices(x: jax.Array, window: int = 2) -> tuple[jax.Array, jax.Array]:
    """Max-pool with window = stride, rounding sizes up as Caffe does; return values and indices.

    Args:
      x: floating (..., H, W, C).
      window: side of the square window, in pixels; at most 16, because an index is one byte.

    Returns:
      y: (..., ceil(H / window), ceil(W / window), C), dtype of x; NaN where the window has a NaN.
      indices: uint8 like y, row * window + column of the first maximum in its window; NaN counts
        as the greatest.

    The gradient of y reaches that position alone.
    """
    if not 1 <= window <= 16:
        raise ValueError(f"window must be from 1 to 16, found {window}")
    if kernels.in_use(x):
        *lead, height, width, channels = x.shape
        size = -(-height // window), -(-width // window)
        images = x.reshape(-1, height, width, channels)
        y, indices = kernels.max_pool(images, kernels.Pool(window, window, (0, 0)), size)
        return y.reshape(*lead, *size, channels), indices.reshape(*lead, *size, channels)
    return _max_pool(x, window)


def max_pool(
    x: jax.Array, window: int, stride: int, padding: Sides = ((0, 0), (0, 0))
) -> jax.Array:
    """Max-pool with any stride; windows may overlap, and padding is never the maximum.

    Args:
      x: floating (B, H, W, C).
      window: side of the square window, in pixels; at most 16.
      stride: pixels between windows.
      padding: rows above and below, columns left and right; every window must see a pixel.

    Returns:
      (B, h, w, C), dtype of x; h = (H + padding - window) // stride + 1 and w likewise. The
      gradient of each value reaches the first maximum of its window.

    Raises:
      ValueError: the window is too large, or one sees nothing but padding.
    """
    before, after = zip(*padding, strict=True)
    size = tuple(
        (n + a + b - window) // stride + 1
        for n, a, b in zip(x.shape[1:3], before, after, strict=True)
    )
    if not 1 <= window <= 16:
        raise ValueError(f"window must be from 1 to 16, found {window}")
    for n, count, a in zip(x.shape[1:3], size, before, strict=True):
        if count < 1 or a >= window or (count - 1) * stride - a >= n:
            raise ValueError(
                f"a window of {window} at stride {stride} sees no pixel of a {x.shape[1]}x"
                f"{x.shape[2]} map with padding {padding}"
            )
    if kernels.in_use(x):
        pooled, _ = kernels.max_pool(x, kernels.Pool(window, stride, before), size)
        return pooled
    return nn.max_pool(x, (window, window), (stride, stride), padding)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x, window):
    # Slices and pairwise comparisons fuse into one pass; a windowed argmax does not. A comparison
    # selects value and place together: finding the place by equality with the final maximum would
    # be wrong under jit, which may recompute either with a different rounding.
    slots = _slots(x, window, fill=-jnp.inf)
    y, indices = slots[0], jnp.zeros(slots[0].shape, jnp.uint8)
    for position, slot in enumerate(slots[1:], start=1):
        # The first NaN counts as the maximum, so that unpooling cannot put it into the padding.
        greater = (slot > y) | (jnp.isnan(slot) & ~jnp.isnan(y))
        y = jnp.where(greater, slot, y)
        indices = jnp.where(greater, jnp.uint8(position), indices)
    return y, indices


@_max_pool.defjvp
def _max_pool_jvp(window, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    y, indices = _max_pool(x, window)
    y_dot = jnp.zeros_like(y)
    for position, slot in enumerate(_slots(x_dot, window, fill=0)):
        y_dot = jnp.where(indices == position, slot, y_dot)
    return (y, indices), (y_dot, np.zeros(indices.shape, jax.dtypes.float0))


def _slots(x, window, fill):
    """Return the window**2 maps of the values at each position of the windows, row-major."""
    height, width = x.shape[-3:-1]
    bottom, right = -height % window, -width % window
    padding = [(0, 0, 0)] * (x.ndim - 3) + [(0, bottom, 0), (0, right, 0), (0, 0, 0)]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), padding)
    return [x[..., i::window, j::window, :] for i in range(window) for j in range(window)]


def max_unpool(
    y: jax.Array, indices: jax.Array, shape: Sequence[int], window: int = 2
) -> jax.Array:
    """Put each value at the position of its index, zeros elsewhere.

    Args:
      y: (..., h, w, C).
      indices: from `max_pool_with_indices`, of the shape of y or broadcast to it.
      shape: the size before pooling, (H, W) or the whole (..., H, W, C).
      window: window of the pooling.

    Returns:
      (..., H, W, C), dtype of y.

    Raises:
      ValueError: H or W does not pool to h or w.
    """
    height, width = shape if len(shape) == 2 else shape[-3:-1]
    h, w, channels = y.shape[-3:]
    if (-(-height // window), -(-width // window)) != (h, w):
        raise ValueError(
            f"a {height}x{width} map pools to {-(-height // window)}x{-(-width // window)} "
            f"with window {window}, but the map to unpool is {h}x{w}"
        )
    lead = y.shape[:-3]
    indices = jnp.broadcast_to(indices.astype(jnp.uint8), y.shape)
    if kernels.in_use(y):
        images, places = (x.reshape(-1, h, w, channels) for x in (y, indices))
        pool = kernels.Pool(window, window, (0, 0))
        return kernels.spread(images, places, pool, (height, width)).reshape(
            *lead, height, width, channels
        )
    position = jnp.arange(window**2, dtype=jnp.uint8).reshape(
        *(1,) * len(lead), 1, window, 1, window, 1
    )
    spread = partial(jnp.expand_dims, axis=(-4, -2))
    full = jnp.where(spread(indices) == position, spread(y), jnp.zeros((), y.dtype))
    return full.reshape(*lead, h * window, w * window, channels)[..., :height, :width, :]
