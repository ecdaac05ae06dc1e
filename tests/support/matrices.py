"""Convolution as a matrix product, written out."""

import numpy as np


def conv_matrix(
    kernel: np.ndarray,
    length: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    rate: int = 1,
) -> np.ndarray:
    """Return the matrix M of a convolution: y = M x, and M^T y is the transposed convolution of y.

    Args:
      kernel: (k,), or (kh, kw) for images.
      length: of x, or (H, W) of an image, which is x row by row.
      stride: as `conv`.
      padding: as `conv`.
      rate: as `conv`.

    Returns:
      (outputs, inputs), dtype of the kernel.
    """
    kernel = np.asarray(kernel)
    lengths = (length,) if isinstance(length, int) else tuple(length)
    outputs = tuple(
        (n + 2 * padding - (k - 1) * rate - 1) // stride + 1
        for n, k in zip(lengths, kernel.shape, strict=True)
    )
    matrix = np.zeros(outputs + lengths, kernel.dtype)
    for place in np.ndindex(outputs):
        for tap in np.ndindex(kernel.shape):
            source = tuple(stride * i + rate * t - padding for i, t in zip(place, tap, strict=True))
            if all(0 <= s < n for s, n in zip(source, lengths, strict=True)):
                matrix[place + source] += kernel[tap]
    return matrix.reshape(np.prod(outputs), np.prod(lengths))
