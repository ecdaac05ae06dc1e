"""Batch normalization and local response normalization."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.onednn import kernels


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    axis_name: str | None = None,
    relu: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize each channel over the batch: scale (x - mean) / sqrt(var + epsilon) + bias.

    Ioffe and Szegedy, arXiv 1502.03167. The statistics are float32 for any dtype of x. The variance
    is computed as E[(x - E[x])^2], because E[x^2] - E[x]^2 is inexact for a mean far from zero.

    Args:
      x: (..., C), float32 or bfloat16.
      scale: (C,), computed with in float32.
      bias: (C,), likewise.
      epsilon: added to the variance.
      axis_name: mapped axis over devices, whose batches of equal size are normalized as one.
      relu: whether to apply a ReLU.

    Returns:
      y: shape and dtype of x.
      mean: float32 (C,); no gradient goes through it, nor through var.
      var: float32 (C,), the biased variance.

    Raises:
      ValueError: scale or bias is not (C,).
    """
    for name, values in (("scale", scale), ("bias", bias)):
        if values.shape != x.shape[-1:]:  # a kernel would read beyond its end
            raise ValueError(f"{name} has shape {values.shape}, expected {x.shape[-1:]}")
    scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
    if kernels.in_use(x):
        y, mean, var = _batch_norm(x, scale, bias, epsilon, axis_name, relu)
    else:
        axes = tuple(range(x.ndim - 1))
        mean = _mean(jnp.mean(x, axes, dtype=jnp.float32), axis_name)
        centered = x.astype(jnp.float32) - _by_channel(mean, x)
        var = _mean(jnp.mean(jnp.square(centered), axes), axis_name)
        y = normalize(x, mean, var, scale, bias, epsilon=epsilon, relu=relu)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    relu: bool = False,
) -> jax.Array:
    """Normalize by given statistics; arguments and result are those of `batch_norm`."""
    factor = scale * lax.rsqrt(var + epsilon)
    y = (x.astype(jnp.float32) - _by_channel(mean, x)) * _by_channel(factor, x)
    y = y + _by_channel(bias, x)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def _by_channel(values, x):
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _mean(values, axis_name):
    return lax.pmean(values, axis_name) if axis_name else values


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon, axis_name, relu):
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name, relu)[0]


def _batch_norm_forward(x, scale, bias, epsilon, axis_name, relu):
    own_mean, own_var = kernels.moments(x)
    mean = _mean(own_mean, axis_name)
    var = _mean(own_var + jnp.square(own_mean - mean), axis_name)
    deviation = lax.rsqrt(var + epsilon)
    y = kernels.affine(x, mean, scale * deviation, bias, relu)
    return (y, mean, var), (x, mean, deviation, scale, bias)


def _batch_norm_backward(epsilon, axis_name, relu, saved, gradients):
    x, mean, deviation, scale, bias = saved
    dy, _, _ = gradients
    factor = scale * deviation
    plain, centered = kernels.affine_sums(x, dy, mean, factor, bias, relu)
    share = 1 / (x.size // x.shape[-1])
    slope = -factor * jnp.square(deviation) * _mean(centered, axis_name) * share
    constant = -factor * _mean(plain, axis_name) * share
    dx = kernels.affine_gradient(x, dy, mean, factor, bias, slope, constant, relu)
    return dx, centered * deviation, plain


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def local_response_normalization(x: jax.Array) -> jax.Array:
    """Divide by the energy of neighboring channels: x / (1 + 1e-4 / 5 * sum x^2)^0.75.

    The sum is over the 5 channels centered on each (Caffe's LRN, ACROSS_CHANNELS, k = 1). It is the
    first layer of SegNet-Basic, which sees raw RGB values of 0 to 255. x: floating (..., C).
    """
    squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(2, 2)])
    channels = x.shape[-1]
    energy = sum(squares[..., k : k + channels] for k in range(5))
    return x / (1 + 1e-4 / 5 * energy) ** 0.75
