"""Convolution and batch normalization, the layers of the architectures."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from segjax.errors import UserError
from segjax.ops.convolution import conv
from segjax.ops.normalization import batch_norm, normalize
from segjax.ops.platform import tracing_shapes
from segjax.ops.upsampling import bilinear_kernel, conv_transpose

# He et al.: Gaussian with variance 2 / fan-in, which Caffe calls "msra".
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# The kernel of a transposed convolution is (k, k, out, in).
he_normal_transposed = nn.initializers.variance_scaling(
    2.0, "fan_in", "normal", in_axis=-1, out_axis=-2
)

BATCH_NORM_MOMENTUM = 0.9  # of the running averages
BATCH_NORM_EPSILON = 1e-5


class Conv(nn.Module):
    """Convolution: (..., H, W, C) to (..., h, w, features) of the compute dtype.

    Parameters: kernel (k, k, C / groups, features) and bias, those of `flax.linen.Conv`.
    """

    features: int
    kernel_size: int  # pixels
    stride: int = 1  # pixels between outputs
    dilation: int = 1  # pixels between the taps of the kernel
    padding: int | None = None  # zeros on each side; None keeps the size at stride 1
    groups: int = 1  # of channels, convolved separately; divides the channels
    use_bias: bool = True
    relu: bool = False  # after the convolution
    kernel_init: Any = he_normal
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, (*lead, height, width, channels) = self.kernel_size, x.shape
        shape = (side, side, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        y = conv(
            x.astype(self.dtype).reshape(-1, height, width, channels),
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            rate=self.dilation,
            groups=self.groups,
            relu=self.relu,
        )
        return y.reshape(*lead, *y.shape[1:])


class BatchNorm(nn.Module):
    """Batch normalization of (..., C) with running averages, optionally with a ReLU.

    In training by the statistics of the batch (of all devices if `axis_name` is set), else by the
    running averages. Statistics are float32 for any compute dtype. Parameters and
    statistics are those of `flax.linen.BatchNorm`: scale and bias, mean and var.

    Raises:
      UserError: in training a channel has a single value, which normalization would make 0.
    """

    dtype: Any = jnp.float32  # of the result
    axis_name: str | None = None  # the mapped axis over devices

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, relu: bool = False) -> jax.Array:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x, epsilon = x.astype(self.dtype), BATCH_NORM_EPSILON
        if not train:
            return normalize(x, mean.value, var.value, scale, bias, epsilon=epsilon, relu=relu)
        devices = lax.axis_size(self.axis_name) if self.axis_name else 1
        if devices * math.prod(x.shape[:-1]) == 1 and not tracing_shapes():
            raise UserError(
                f"the batch normalization {'/'.join(self.path)} has one value per channel in a "
                "training step, whose variance is 0; use a larger batch_size or fewer micro_batches"
            )
        y, *found = batch_norm(x, scale, bias, epsilon=epsilon, axis_name=self.axis_name, relu=relu)
        for average, new in zip((mean, var), found, strict=True):
            kept = BATCH_NORM_MOMENTUM * average.value
            average.value = kept + (1 - BATCH_NORM_MOMENTUM) * new
        return y


class Dropout(nn.Dropout):
    """Dropout whose mask follows from the image's index in the batch of all devices.

    (B, ...) to the same shape: each value is zeroed with probability `rate`, else divided by
    1 - rate. However many devices share a batch, each image has the same mask.
    """

    axis_name: str | None = None  # the mapped axis over devices

    @nn.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: jax.Array | None = None
    ) -> jax.Array:
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic or self.rate == 0:
            return inputs
        key = self.make_rng(self.rng_collection) if rng is None else rng
        first = lax.axis_index(self.axis_name) * len(inputs) if self.axis_name else 0
        places = first + jnp.arange(len(inputs), dtype=jnp.int32)
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        keep = 1 - self.rate
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, inputs.shape[1:]))(keys)
        return jnp.where(kept, inputs / keep, jnp.zeros_like(inputs))


class ConvBlock(nn.Module):
    """Convolution, by default with batch normalization and a ReLU.

    (..., H, W, C) to (..., h, w, features) of the compute dtype; the map's own size unless padding
    is given. Parameters: conv and bn.
    """

    features: int
    kernel_size: int  # odd; pixels
    relu: bool = True
    batch_norm: bool = True
    dilation: int = 1  # pixels between the taps of the kernel
    padding: int | None = None  # zeros on each side; None keeps the size
    groups: int = 1  # of channels, convolved separately; divides the channels
    use_bias: bool = True  # of the convolution
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = None  # the mapped axis over devices

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel_size,
            dilation=self.dilation,
            padding=self.padding,
            groups=self.groups,
            use_bias=self.use_bias,
            relu=self.relu and not self.batch_norm,
            dtype=self.dtype,
            name="conv",
        )(x)
        if not self.batch_norm:
            return x
        return BatchNorm(self.dtype, self.axis_name, name="bn")(x, train=train, relu=self.relu)


def bilinear_diagonal(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: Any = jnp.float32
) -> jax.Array:
    """Initialize a (k, k, C, C) kernel: bilinear from each channel to itself, else zero."""
    size, _, channels, _ = shape
    diagonal = bilinear_kernel(size)[:, :, None, None] * np.eye(channels)[None, None]
    return jnp.asarray(diagonal, dtype)


class ConvTranspose(nn.Module):
    """Transposed convolution with the sizes of Caffe and PyTorch (`ops.upsampling`).

    (B, h, w, C) to (B, (h - 1) stride - 2 padding + kernel_size, and w likewise, features) of the
    compute dtype. Parameters: kernel (k, k, features, C) and, by default, bias.
    """

    features: int
    kernel_size: int  # pixels
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Any = he_normal_transposed
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        return conv_transpose(
            x.astype(self.dtype), kernel, bias, stride=self.stride, padding=self.padding
        )
