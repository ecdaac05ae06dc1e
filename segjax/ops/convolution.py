"""Convolution with stride, padding and dilation, and the matrix that it is.

Convolution here is what networks call so: the kernel is not flipped.
"""

import jax
import numpy as np
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, rate: int = 1
) -> jax.Array:
    """Convolution, dilated where rate > 1: y[i] = sum_t a[t] x[stride i + rate t - padding].

    A kernel of side k at rate r sees (k - 1) r + 1 pixels with the weights of k (DeepLab, arXiv
    1606.00915, calls it atrous; Yu and Koltun, arXiv 1511.07122, dilated).

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C, D), dtype of x.
      stride: pixels between outputs.
      padding: zeros added on each side.
      rate: pixels between the taps of the kernel.

    Returns:
      (B, h, w, D), h = (H + 2 padding - (k - 1) rate - 1) // stride + 1 and w alike.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(rate, rate),
        dimension_numbers=NHWC,
    )


def conv_matrix(
    kernel: np.ndarray,
    length: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    rate: int = 1,
) -> np.ndarray:
    """The matrix M of a convolution: y = M x, and M^T y is the transposed convolution of y.

    Args:
      kernel: (k,), or (kh, kw) for images.
      length: of x, or (H, W) of an image, which is x row by row.
      stride: as `conv`.
      padding: as `conv`.
      rate: as `conv`.

    Returns:
      (outputs, inputs), dtype of the kernel.

    Raises:
      ValueError: the kernel has other dimensions than the length, or does not fit.
    """
    kernel = np.asarray(kernel)
    lengths = (length,) if isinstance(length, int) else tuple(length)
    if kernel.ndim != len(lengths):
        raise ValueError(f"a kernel of {kernel.ndim} dimensions does not fit a length {length}")
    outputs = tuple(
        (n + 2 * padding - (k - 1) * rate - 1) // stride + 1
        for n, k in zip(lengths, kernel.shape, strict=True)
    )
    if min(outputs) < 1:
        raise ValueError(f"a kernel of {kernel.shape} at rate {rate} is larger than {lengths}")
    matrix = np.zeros(outputs + lengths, kernel.dtype)
    for place in np.ndindex(outputs):
        for tap in np.ndindex(kernel.shape):
            source = tuple(stride * i + rate * t - padding for i, t in zip(place, tap, strict=True))
            if all(0 <= s < n for s, n in zip(source, lengths, strict=True)):
                matrix[place + source] += kernel[tap]
    return matrix.reshape(np.prod(outputs), np.prod(lengths))
