"""Convolution on a CPU without oneDNN, arranged to be fast in XLA.

- The gradient of a kernel is one matrix product. XLA computes it as a convolution whose window is a
  whole map, which can take longer than the forward pass and the map's gradient together.
- A kernel with more taps than its map has pixels, in rows or columns, is one product with gathered
  pixels. XLA falls back to loops there, which take at least ten times as long.
- Taps that see only the zeros around the map are left out, such as those of a rate that is at least
  the map's side.

Alternatives that were measured are in experiments/speed/NOTES.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.padding import Sides, padded
from segjax.ops.platform import on_cpu

NHWC = ("NHWC", "HWIO", "NHWC")
LEAST_CHANNELS = 16  # in and out; for fewer, the copies cost more than the product saves


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sides,
    *,
    stride: int = 1,
    rate: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolve images as `lax.conv_general_dilated` does, but fast on a CPU.

    Calls `lax` where this does not help: on accelerators, and for strides, groups, kernels of one
    pixel, few channels, dtypes other than float32 and empty results. Elsewhere the values agree to
    rounding for finite kernels, and only reverse-mode differentiation is supported.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C / groups, D), dtype of x.
      padding: zeros added on each side; negative to crop.
      stride: pixels between outputs.
      rate: pixels between the taps of the kernel.
      groups: number of groups of channels, convolved separately.

    Returns:
      (B, h, w, D).
    """
    outputs = [
        size + sum(side) - (taps - 1) * rate
        for size, side, taps in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
    ]
    pays = (
        stride == groups == 1
        and x.dtype == kernel.dtype == jnp.float32
        and max(kernel.shape[:2]) > 1
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
        and min(outputs) > 0
        and on_cpu()
    )
    if not pays:
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(rate, rate),
            dimension_numbers=NHWC,
            feature_group_count=groups,
        )
    rows, above, below = _seen_taps(x.shape[1], kernel.shape[0], padding[0], rate)
    columns, left, right = _seen_taps(x.shape[2], kernel.shape[1], padding[1], rate)
    return _conv(x, kernel[rows, columns], ((above, below), (left, right)), rate)


def _seen_taps(size, taps, padding, rate):
    """Return the taps that see a pixel of the map, and the padding that they need.

    If there are none, all taps are kept, and the result is zeros.
    """
    before, after = padding
    reach = (taps - 1) * rate
    outputs = size + before + after - reach
    seen = [tap for tap in range(taps) if before - outputs < tap * rate < before + size]
    first, last = (seen[0], seen[-1]) if seen else (0, taps - 1)
    return slice(first, last + 1), before - first * rate, after - reach + last * rate


def _fast(x, kernel, padding, rate):
    """Convolve at stride 1, by a product where XLA's convolution would fall back to loops."""
    taps = kernel.shape[:2]
    if all(tap <= side for tap, side in zip(taps, x.shape[1:3], strict=True)):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), padding, rhs_dilation=(rate, rate), dimension_numbers=NHWC
        )
    x = padded(x, *padding)
    height, width = (side - (tap - 1) * rate for side, tap in zip(x.shape[1:3], taps, strict=True))
    pixels = [
        x[:, i * rate :][:, :height][:, :, j * rate :][:, :, :width] for i, j in np.ndindex(taps)
    ]
    flat = kernel.reshape(-1, kernel.shape[3])
    return lax.dot_general(jnp.concatenate(pixels, -1), flat, (((3,), (0,)), ((), ())))


_conv = jax.custom_vjp(_fast, nondiff_argnums=(2, 3))


def _forward(x, kernel, padding, rate):
    return _conv(x, kernel, padding, rate), (x, kernel)


def _backward(padding, rate, saved, dy):
    x, kernel = saved
    taps = kernel.shape[:2]
    reach = [(tap - 1) * rate for tap in taps]
    around = tuple((r - a, r - b) for r, (a, b) in zip(reach, padding, strict=True))
    dx = _fast(dy, lax.rev(kernel, (0, 1)).swapaxes(2, 3), around, rate)
    return dx, kernel_gradient(x, dy, taps, padding, rate)


_conv.defvjp(_forward, _backward)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: tuple[int, int], padding: Sides, rate: int
) -> jax.Array:
    """Sum dL/dk[i, j] = x[b, h + ri - top, w + rj - left] dL/dy[b, h, w] over b, h and w.

    One product (kh C, B h W) x (B h W, kw D): the shifts of rows are copies of x, those of columns
    copies of dL/dy.

    Args:
      x: (B, H, W, C), the input of the convolution.
      dy: (B, h, w, D), dtype of x, the gradient of its output at stride 1.
      taps: (kh, kw) of the kernel.
      padding: zeros that the convolution added above and below, left and right.
      rate: pixels between the taps.

    Returns:
      (kh, kw, C, D), dtype of x.
    """
    (_, _, width, channels), (_, height, _, features) = x.shape, dy.shape
    (top, bottom), (left, right) = padding
    reach = (taps[1] - 1) * rate
    x = padded(x, (top, bottom), (0, 0))
    dy = padded(dy, (0, 0), (reach - left, reach - right))
    rows = [x[:, i * rate :][:, :height] for i in range(taps[0])]
    columns = [dy[:, :, reach - j * rate :][:, :, :width] for j in range(taps[1])]
    product = lax.dot_general(
        jnp.concatenate(rows, -1).reshape(-1, taps[0] * channels),
        jnp.concatenate(columns, -1).reshape(-1, taps[1] * features),
        (((0,), (0,)), ((), ())),
    )
    return product.reshape(taps[0], channels, taps[1], features).swapaxes(1, 2)


def check_bias(bias: jax.Array | None, features: int) -> None:
    """Raise a ValueError if a bias is not (D,), as a kernel would read beyond its end."""
    if bias is not None and bias.shape != (features,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({features},)")


def with_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias (D,) to (B, h, w, D), in float32 so that its gradient is summed in float32."""
    if bias is None:
        return y
    shift = bias.astype(jnp.float32).reshape(1, 1, 1, -1)
    return (y.astype(jnp.float32) + shift).astype(y.dtype)
