"""Convolution with stride, padding and dilation; the kernel is not flipped, as in all networks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops import cpu_convolution
from segjax.ops.onednn import kernels
from segjax.ops.padding import Sides, padded


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int = 1,
    padding: int | None = 0,
    rate: int = 1,
    groups: int = 1,
    relu: bool = False,
) -> jax.Array:
    """Convolve, dilated where rate > 1: y[i] = sum_t a[t] x[stride i + rate t - padding] + bias.

    Along each axis, a kernel of side k at rate r covers (k - 1) r + 1 pixels with k weights
    (DeepLab, arXiv 1606.00915, calls it atrous; Yu and Koltun, arXiv 1511.07122, dilated). On a
    CPU, oneDNN computes it if installed (`segjax.ops.onednn`), else XLA in a form that is fast
    there (`segjax.ops.cpu_convolution`). oneDNN's has a gradient, but neither a forward-mode nor a
    second derivative; XLA's, which `SEGJAX_ONEDNN=off` selects, has both.

    Args:
      x: (B, H, W, C), float32 or bfloat16.
      kernel: (kh, kw, C / groups, D), rounded to the dtype of x.
      bias: (D,), added to each feature.
      stride: pixels between outputs.
      padding: zeros added on each side; None: as many as keep the size at stride 1.
      rate: pixels between the taps of the kernel.
      groups: number of groups of channels, convolved separately; divides C and D.
      relu: whether to apply a ReLU.

    Returns:
      (B, h, w, D), dtype of x; h = (H + 2 padding - (kh - 1) rate - 1) // stride + 1, w likewise.

    Raises:
      ValueError: the bias is not (D,).
    """
    cpu_convolution.check_bias(bias, kernel.shape[-1])
    sides = _sides(padding, kernel.shape[:2], rate)
    if kernels.in_use(x, kernel):
        # oneDNN has only a slow loop for the gradient of a kernel of which more than half lies
        # beyond the border.
        halves = [((k - 1) * rate + 1) // 2 for k in kernel.shape[:2]]
        x, sides = _moved_into_the_map(x, sides, halves)
        window = kernels.Window(stride, rate, sides, groups)
        if (dtype := kernels.dtype_of(x, kernel, window)) is not None:
            offset = jnp.zeros((0,)) if bias is None else bias.astype(jnp.float32)
            kernel = kernel if dtype == x.dtype else kernels.rounded(kernel, x.dtype)
            y = kernels.convolution(x.astype(dtype), kernel, offset, window, relu)
            return y.astype(x.dtype)
    y = cpu_convolution.convolution(
        x, kernel.astype(x.dtype), sides, stride=stride, rate=rate, groups=groups
    )
    y = cpu_convolution.with_bias(y, bias)
    return jax.nn.relu(y) if relu else y


def _sides(padding: int | None, taps: Sequence[int], rate: int) -> Sides:
    if padding is not None:
        return (padding, padding), (padding, padding)
    rows, columns = ((k - 1) * rate for k in taps)
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def _moved_into_the_map(
    x: jax.Array, sides: Sides, halves: Sequence[int]
) -> tuple[jax.Array, Sides]:
    """Pad the map with what exceeds the halves; return it and the padding left."""
    kept, moved = [], []
    for (before, after), far in zip(sides, halves, strict=True):
        inside = min(before, far), min(after, far)
        kept.append(inside)
        moved.append((before - inside[0], after - inside[1]))
    if any(map(any, moved)):
        x = padded(x, *moved)
    return x, (kept[0], kept[1])
