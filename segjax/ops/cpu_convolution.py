"""Convolution on a CPU without oneDNN, arranged to be fast in XLA.

- The gradient of a kernel is one matrix product. XLA computes it as a convolution whose window is a
  whole map, which can take longer than the forward pass and the map's gradient together.
- A kernel with more taps than its map has pixels, in rows or columns, is one product with gathered
  pixels. XLA falls back to loops there, which take at least ten times as long.
- Taps that see only the zeros around the map are left out, such as those of a rate that is at least
  the map's side.

Alternatives that were measured are in experiments/speed/NOTES.md.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.platform import on_cpu

NHWC = ("NHWC", "HWIO", "NHWC")
LEAST_CHANNELS = 16  # in and out; for fewer, the copies cost more than the product saves

Sides = tuple[tuple[int, int], tuple[int, int]]  # above and below, left and right


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Convolve images as `lax.conv_general_dilated` does, but fast on a CPU.

    Calls `lax` where this does not help: on accelerators, and for strides, groups, kernels of one
    pixel, few channels, dtypes other than float32 and empty maps. Elsewhere the values agree to
    rounding for finite kernels, and only reverse-mode differentiation is supported.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C, D), dtype of x.
      window_strides: pixels between outputs, of rows and columns.
      padding: a name that `lax` knows, such as "SAME", or zeros added above and below, left and
        right.
      lhs_dilation: pixels between those of x, of rows and columns.
      rhs_dilation: pixels between the taps of the kernel, of rows and columns.
      dimension_numbers: layout of images, kernel and result, in any form that `lax` knows.
      feature_group_count: number of groups of channels, convolved separately.
      **options: other arguments of `lax.conv_general_dilated`.

    Returns:
      (B, h, w, D).
    """
    plain = (
        feature_group_count == 1
        and set(window_strides) == {1}
        and set(lhs_dilation) == {1}
        and all(value is None for value in options.values())
        and _order(x, kernel, dimension_numbers) == _order(x, kernel, NHWC)
    )
    pays = (
        x.dtype == kernel.dtype == jnp.float32
        and x.shape[3] == kernel.shape[2]
        and max(kernel.shape[:2]) > 1
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
        and on_cpu()
    )
    sides = _sides(x, kernel, padding, rhs_dilation) if plain and pays else None
    if sides is None:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )
    rates = (rhs_dilation[0], rhs_dilation[1])
    rows, above, below = _seen_taps(x.shape[1], kernel.shape[0], sides[0], rates[0])
    columns, left, right = _seen_taps(x.shape[2], kernel.shape[1], sides[1], rates[1])
    return _conv(x, kernel[rows, columns], ((above, below), (left, right)), rates)


def _order(x, kernel, dimension_numbers):
    return lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)


def _sides(x, kernel, padding, rates):
    """Return the padding as numbers; None if the result is empty."""
    reach = [(taps - 1) * rate for taps, rate in zip(kernel.shape[:2], rates, strict=True)]
    if isinstance(padding, str):
        extent = [each + 1 for each in reach]
        padding = lax.padtype_to_pads(x.shape[1:3], extent, (1, 1), padding)
    rows, columns = padding
    outputs = [size + sum(side) for size, side in zip(x.shape[1:3], (rows, columns), strict=True)]
    if any(size <= each for size, each in zip(outputs, reach, strict=True)):
        return None
    return tuple(rows), tuple(columns)


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


def _fast(x, kernel, padding, rates):
    """Convolve at stride 1, by a product where XLA's convolution would fall back to loops."""
    taps = kernel.shape[:2]
    if all(tap <= side for tap, side in zip(taps, x.shape[1:3], strict=True)):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), padding, rhs_dilation=rates, dimension_numbers=NHWC
        )
    x = padded(x, *padding)
    height, width = (
        side - (tap - 1) * rate for side, tap, rate in zip(x.shape[1:3], taps, rates, strict=True)
    )
    pixels = [
        x[:, i * rates[0] :][:, :height][:, :, j * rates[1] :][:, :, :width]
        for i, j in np.ndindex(taps)
    ]
    flat = kernel.reshape(-1, kernel.shape[3])
    return lax.dot_general(jnp.concatenate(pixels, -1), flat, (((3,), (0,)), ((), ())))


_conv = jax.custom_vjp(_fast, nondiff_argnums=(2, 3))


def _forward(x, kernel, padding, rates):
    return _conv(x, kernel, padding, rates), (x, kernel)


def _backward(padding, rates, saved, dy):
    x, kernel = saved
    taps = kernel.shape[:2]
    reach = [(tap - 1) * rate for tap, rate in zip(taps, rates, strict=True)]
    around = tuple((r - a, r - b) for r, (a, b) in zip(reach, padding, strict=True))
    dx = _fast(dy, lax.rev(kernel, (0, 1)).swapaxes(2, 3), around, rates)
    return dx, kernel_gradient(x, dy, taps, padding, rates)


_conv.defvjp(_forward, _backward)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: tuple[int, int], padding: Sides, rates: tuple[int, int]
) -> jax.Array:
    """Sum dL/dk[i, j] = x[b, h + ri - top, w + rj - left] dL/dy[b, h, w] over b, h and w.

    One product (kh C, B h W) x (B h W, kw D): the shifts of rows are copies of x, those of columns
    copies of dL/dy.

    Args:
      x: (B, H, W, C), the input of the convolution.
      dy: (B, h, w, D), dtype of x, the gradient of its output at stride 1.
      taps: (kh, kw) of the kernel.
      padding: zeros that the convolution added above and below, left and right.
      rates: pixels between the taps, of rows and columns.

    Returns:
      (kh, kw, C, D), dtype of x.
    """
    (_, _, width, channels), (_, height, _, features) = x.shape, dy.shape
    (top, bottom), (left, right) = padding
    reach = (taps[1] - 1) * rates[1]
    x = padded(x, (top, bottom), (0, 0))
    dy = padded(dy, (0, 0), (reach - left, reach - right))
    rows = [x[:, i * rates[0] :][:, :height] for i in range(taps[0])]
    columns = [dy[:, :, reach - j * rates[1] :][:, :, :width] for j in range(taps[1])]
    product = lax.dot_general(
        jnp.concatenate(rows, -1).reshape(-1, taps[0] * channels),
        jnp.concatenate(columns, -1).reshape(-1, taps[1] * features),
        (((0,), (0,)), ((), ())),
    )
    return product.reshape(taps[0], channels, taps[1], features).swapaxes(1, 2)


def with_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias (D,) to (B, h, w, D), in float32 so that its gradient is summed in float32."""
    if bias is None:
        return y
    shift = bias.astype(jnp.float32).reshape(1, 1, 1, -1)
    return (y.astype(jnp.float32) + shift).astype(y.dtype)


def padded(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Pad rows and columns with zeros before and after; negative numbers crop."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
