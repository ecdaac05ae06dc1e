"""The convolution blocks that the architectures share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.ops.cpu_convolution import conv_general_dilated
from segjax.ops.upsampling import bilinear_kernel, conv_transpose

# He et al.: Gaussian with variance 2 / fan-in, which Caffe calls "msra".
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# The kernel of a transposed convolution is (k, k, out, in).
he_normal_transposed = nn.initializers.variance_scaling(
    2.0, "fan_in", "normal", in_axis=-1, out_axis=-2
)

BATCH_NORM_MOMENTUM = 0.9  # of the running averages


class ConvBlock(nn.Module):
    """Convolution and, mostly, batch normalisation and a ReLU.

    (..., H, W, C) to (..., h, w, features) of the compute dtype; the map's own size unless padding
    is given. The statistics of the normalisation are float32 whatever the compute dtype, and those
    of the whole batch over all devices when `axis_name` is set. Parameters: conv and bn.
    """

    features: int
    kernel_size: int  # odd; pixels
    relu: bool = True
    batch_norm: bool = True
    dilation: int = 1  # pixels between the taps of the kernel
    padding: int | None = None  # zeros on each side; none: as many as keep the size
    groups: int = 1  # of channels that are convolved apart; divides them
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = None  # the mapped axis over devices

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            kernel_dilation=self.dilation,
            padding="SAME" if self.padding is None else self.padding,
            feature_group_count=self.groups,
            kernel_init=he_normal,
            conv_general_dilated=conv_general_dilated,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.batch_norm:
            x = batch_norm(train, self.dtype, self.axis_name)(x)
        return nn.relu(x) if self.relu else x


def batch_norm(train: bool, dtype: Any, axis_name: str | None, name: str = "bn") -> nn.BatchNorm:
    """Flax's batch normalisation as all architectures here have it: epsilon 1e-5."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        dtype=dtype,
        axis_name=axis_name,
        name=name,
    )


def bilinear_diagonal(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: Any = jnp.float32
) -> jax.Array:
    """The bilinear kernel from each channel to itself, and zero from one to another."""
    size, _, channels, _ = shape
    diagonal = bilinear_kernel(size)[:, :, None, None] * np.eye(channels)[None, None]
    return jnp.asarray(diagonal, dtype)


class ConvTranspose(nn.Module):
    """Transposed convolution with the sizes of Caffe and PyTorch (`ops.upsampling`).

    (B, h, w, C) to (B, (h - 1) stride - 2 padding + kernel_size, and w alike, features) of the
    compute dtype. Parameters: kernel (k, k, features, C) and, mostly, bias.
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
        y = conv_transpose(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        return y
