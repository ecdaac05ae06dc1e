"""The convolution block that the architectures share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# He et al.: Gaussian with variance 2 / fan-in, which Caffe calls "msra".
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

BATCH_NORM_MOMENTUM = 0.9  # of the running averages


class ConvBN(nn.Module):
    """Convolution at the map's own size, batch normalisation and, mostly, a ReLU.

    (..., H, W, C) to (..., H, W, features) of the compute dtype. The statistics of the
    normalisation are float32 whatever the compute dtype, and those of the whole batch over all
    devices when `axis_name` is set.
    """

    features: int
    kernel_size: int  # odd; pixels
    relu: bool = True
    dtype: Any = jnp.float32  # of the computation; parameters are float32
    axis_name: str | None = None  # the mapped axis over devices

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel = (self.kernel_size, self.kernel_size)
        x = nn.Conv(self.features, kernel, kernel_init=he_normal, dtype=self.dtype, name="conv")(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=BATCH_NORM_MOMENTUM,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="bn",
        )(x)
        return nn.relu(x) if self.relu else x
