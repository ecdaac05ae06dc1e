"""Upsampling, except unpooling, which is in `pooling`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops import cpu_convolution
from segjax.ops.onednn import kernels
from segjax.ops.padding import padded
from segjax.ops.platform import on_cpu


def nearest(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resize by nearest neighbor: y[i] = x[floor((i + 1/2) h / H)].

    Args:
      x: (..., h, w, C).
      shape: (H, W) of the result.

    Returns:
      (..., H, W, C), dtype of x.
    """
    for axis, (size, new) in zip((-3, -2), zip(x.shape[-3:-1], shape, strict=True), strict=True):
        source = ((2 * np.arange(new) + 1) * size) // (2 * new)
        x = jnp.take(x, source, axis)
    return x


def bed_of_nails(x: jax.Array, stride: int) -> jax.Array:
    """Put each value at the top left of its stride x stride square, zeros elsewhere.

    (..., h, w, C) to (..., stride h, stride w, C).
    """
    gaps = [(0, 0, 0)] * (x.ndim - 3) + [(0, stride - 1, stride - 1)] * 2 + [(0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), gaps)


def bilinear(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Interpolate bilinearly with half-pixel centers, edges repeated, no antialiasing.

    y[i] interpolates x at (i + 1/2) h / H - 1/2, like PyTorch's interpolate(align_corners=False).

    Args:
      x: (..., h, w, C).
      shape: (H, W) of the result.

    Returns:
      (..., H, W, C), dtype of x.
    """
    full = (*x.shape[:-3], *shape, x.shape[-1])
    return jax.image.resize(x, full, "bilinear", antialias=False)


def bilinear_kernel(size: int) -> np.ndarray:
    """Return Caffe's bilinear filler, float32 (size, size): the outer product of two tents.

    tent[i] = 1 - |i - c| / f with f = ceil(size / 2), and c = f - 1 for odd sizes, f - 1/2 for even
    (FCN, `surgery.py`). It upsamples by f at stride f.
    """
    return np.outer(_tent(size), _tent(size)).astype(np.float32)


def _tent(size):
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    return 1 - np.abs(np.arange(size) - center) / factor


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
    rate: int = 1,
) -> jax.Array:
    """Apply a transposed convolution, which is what `conv` with this kernel does to gradients.

    The sizes are those of Caffe's Deconvolution and PyTorch's ConvTranspose2d:
    H = (h - 1) stride - 2 padding + (k - 1) rate + 1 + output_padding.

    Args:
      x: (B, h, w, C).
      kernel: (k, k, D, C), the kernel of a convolution from D channels to C; rounded to the dtype
        of x.
      bias: (D,), added to each feature.
      stride: output pixels between two inputs.
      padding: rows and columns cropped from each side of the result.
      output_padding: rows and columns added at the bottom and the right, for an exact size.
      rate: pixels between the taps of the kernel.

    Returns:
      (B, H, W, D).

    Raises:
      ValueError: the bias is not (D,).
    """
    cpu_convolution.check_bias(bias, kernel.shape[-2])
    if kernels.in_use(x, kernel):
        y = _by_onednn(x, kernel, bias, stride, padding, output_padding, rate)
        if y is not None:
            return y
    kernel = kernel.astype(x.dtype)
    if rate == 1 and on_cpu():
        y = _by_phases(x, kernel, stride, padding, output_padding)
    else:
        y = _by_lax(x, kernel, stride, padding, output_padding, rate)
    return cpu_convolution.with_bias(y, bias)


def _by_lax(x, kernel, stride, padding, output_padding, rate):
    reach = [(size - 1) * rate - padding for size in kernel.shape[:2]]
    return lax.conv_transpose(
        x,
        kernel,
        strides=(stride, stride),
        padding=[(before, before + output_padding) for before in reach],
        rhs_dilation=(rate, rate),
        dimension_numbers=cpu_convolution.NHWC,
        transpose_kernel=True,
    )


def _by_onednn(x, kernel, bias, stride, padding, output_padding, rate):
    """Return the result, or None if a side would be empty or need negative padding."""
    reach = [(k - 1) * rate for k in kernel.shape[:2]]
    sizes = [
        (n - 1) * stride - 2 * padding + far + 1 + output_padding
        for n, far in zip(x.shape[1:3], reach, strict=True)
    ]
    if min(sizes) < 1 or output_padding > padding:
        return None
    sides = (padding, padding - output_padding)
    window = kernels.Window(stride, rate, (sides, sides), swapped=True)
    size = sizes[0], sizes[1]
    if (dtype := kernels.transposed_dtype_of(x, kernel, window, size)) is None:
        return None
    kernel = kernel if dtype == x.dtype else kernels.rounded(kernel, x.dtype)
    offset = jnp.zeros((0,)) if bias is None else bias.astype(jnp.float32)
    y = kernels.transposed_convolution(x.astype(dtype), kernel, offset, window, size)
    return y.astype(x.dtype)


def _by_phases(x, kernel, stride, padding, output_padding):
    """Compute each pixel of a stride x stride block as features of one convolution of stride 1.

    This avoids XLA's slow convolution with zeros between the pixels on a CPU.
    """
    *taps, features, channels = kernel.shape
    reach = [-(-k // stride) for k in taps]  # inputs that an output meets
    extra = [(0, m * stride - k) for m, k in zip(reach, taps, strict=True)]
    kernel = jnp.pad(kernel, [*extra, (0, 0), (0, 0)])
    kernel = kernel.reshape(reach[0], stride, reach[1], stride, features, channels)
    kernel = jnp.flip(kernel, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(*reach, channels, -1)
    # The convolution crops whole blocks; the rest is cropped after it.
    ends = [k - m * stride - padding + output_padding for m, k in zip(reach, taps, strict=True)]
    rows, columns = (
        (m - 1 - padding // stride, m - 1 + -(-end // stride))
        for m, end in zip(reach, ends, strict=True)
    )
    blocks = cpu_convolution.convolution(x, kernel, (rows, columns))
    batch, *size, _ = blocks.shape
    y = blocks.reshape(batch, *size, stride, stride, features).swapaxes(2, 3)
    y = y.reshape(batch, size[0] * stride, size[1] * stride, features)
    return padded(y, *((-(padding % stride), -(-end % stride)) for end in ends))


def bilinear_conv_transpose(x: jax.Array, *, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Apply Caffe's fixed bilinear deconvolution: `bilinear_kernel` from each channel to itself.

    (B, h, w, C) to (B, (h - 1) stride - 2 padding + size, and w likewise, C), dtype of x. Unlike
    `bilinear`, which repeats the edge, it sees zeros beyond the border.
    """
    # The kernel is separable, so two products with small matrices are enough. A convolution with
    # one group per channel takes thousands of times longer on a CPU.
    rows, columns = (
        jnp.asarray(_tent_matrix(length, size, stride, padding), x.dtype) for length in x.shape[1:3]
    )
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns)


def bilinear_from_grid(x: jax.Array, stride: int, shape: Sequence[int]) -> jax.Array:
    """Interpolate between values at the pixels 0, stride, 2 stride and so on; repeat the last.

    Args:
      x: (B, h, w, C).
      stride: pixels between two values.
      shape: the size of the result, (H, W) or the whole (B, H, W, ...), at most h stride, w stride.

    Returns:
      (B, H, W, C), dtype of x.
    """
    x = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], mode="edge")
    full = bilinear_conv_transpose(x, size=2 * stride - 1, stride=stride, padding=stride - 1)
    height, width = shape if len(shape) == 2 else shape[1:3]
    return full[:, :height, :width]


def _tent_matrix(length, size, stride, padding):
    """Return the transposed convolution of a line with the tent as a matrix, (outputs, length)."""
    place = np.arange((length - 1) * stride - 2 * padding + size)[:, None]
    tap = place + padding - stride * np.arange(length)
    return np.where((tap >= 0) & (tap < size), _tent(size)[tap.clip(0, size - 1)], 0)
