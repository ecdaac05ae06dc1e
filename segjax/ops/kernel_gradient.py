"""Convolution whose gradient with respect to its kernel is one matrix product, for the CPU.

XLA computes that gradient as a convolution whose window is a whole map, which on a CPU can take
longer than the forward pass and the map's gradient together. What was tried instead, and measured,
is in experiments/speed/NOTES.md.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution import NHWC
from segjax.ops.platform import on_cpu

LEAST_CHANNELS = 16  # in and out; below, the copies cost more than the product saves

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
    """`lax.conv_general_dilated` of images, as Flax's convolutions call it, with that gradient.

    The values are those of `lax`, and so is the gradient wherever the product does not pay: on
    accelerators, and for strides, groups, kernels of one pixel, few channels, and dtypes other than
    float32. Where it does, only reverse-mode differentiation is there.

    Args:
      x: (B, H, W, C).
      kernel: (kh, kw, C, D), dtype of x.
      window_strides: pixels between outputs, of rows and columns.
      padding: "SAME", "VALID", or zeros added above and below, left and right.
      lhs_dilation: pixels between those of x, of rows and columns.
      rhs_dilation: pixels between the taps of the kernel, of rows and columns.
      dimension_numbers: NHWC, HWIO and NHWC, in any of the forms that `lax` knows.
      feature_group_count: groups of channels that are convolved apart.
      **options: what else `lax.conv_general_dilated` takes.

    Returns:
      (B, h, w, D).
    """
    plain = feature_group_count == 1 and set(window_strides) == {1} and set(lhs_dilation) == {1}
    pays = (
        x.dtype == jnp.float32
        and max(kernel.shape[:2]) > 1
        and min(kernel.shape[2:]) >= LEAST_CHANNELS
        and on_cpu()
    )
    if not (plain and pays):
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
    if isinstance(padding, str):
        extent = [(taps - 1) * rate + 1 for taps, rate in zip(kernel.shape[:2], rates, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:3], extent, (1, 1), padding)
    rows, columns = padding
    return _conv(x, kernel, (tuple(rows), tuple(columns)), rates)


def _plain(x, kernel, padding, rates):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, rhs_dilation=rates, dimension_numbers=NHWC
    )


_conv = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(x, kernel, padding, rates):
    return _conv(x, kernel, padding, rates), (x, kernel)


def _backward(padding, rates, saved, dy):
    x, kernel = saved
    of_map = jax.linear_transpose(lambda x: _plain(x, kernel, padding, rates), x)
    return *of_map(dy), kernel_gradient(x, dy, kernel.shape[:2], padding, rates)


_conv.defvjp(_forward, _backward)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: tuple[int, int], padding: Sides, rates: tuple[int, int]
) -> jax.Array:
    """dL/dk[i, j] = sum over b, h, w of x[b, h + ri - top, w + rj - left] dL/dy[b, h, w], outer.

    One product (kh C, B h W) x (B h W, kw D): the shifts of rows are copies of x, those of columns
    copies of dL/dy.

    Args:
      x: (B, H, W, C), what was convolved.
      dy: (B, h, w, D), dtype of x, the gradient of what came out at stride 1.
      taps: (kh, kw) of the kernel.
      padding: zeros that were added above and below, left and right.
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


def padded(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Zeros before and after the rows and the columns; fewer than none take away."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
