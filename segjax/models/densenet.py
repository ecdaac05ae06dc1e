"""FC-DenseNet: Jegou, Drozdzal, Vazquez, Romero, Bengio, "The one hundred layers tiramisu".

arXiv 1611.09326. Dense blocks, in which every layer sees all maps before it, on the way down and on
the way up; the way up takes only the new maps of a block. Layer lists from the authors' code
(`FC-DenseNet.py`, `config/FC-DenseNet103.py`).

Deviations:

- Batch normalization has running averages, and recomputed ones for the test. The authors normalize
  by the batch in testing too, so that their score depends on the batch size.
- Its epsilon is 1e-5; that of the authors' Lasagne is 1e-4.
- Weight decay is of kernels alone; the authors' also of the normalizations' scales.
- `growth` and `width` scale the layers; the papers' networks have 12 or 16, and 48.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models.layers import BatchNorm, Conv, ConvTranspose, Dropout
from segjax.models.options import Positive, Positives, Probability
from segjax.ops.concatenation import concatenate
from segjax.ops.pooling import max_pool

he_uniform = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
he_uniform_transposed = nn.initializers.variance_scaling(
    2.0, "fan_in", "uniform", in_axis=-1, out_axis=-2
)


class FCDenseNet56(nn.Module):
    """FC-DenseNet56: image (B, H, W, C) to float32 logits (B, H, W, K).

    1,376,795 parameters at 11 classes. Parameters: conv1, down{block}_{layer},
    transition_down{block}, bottleneck_{layer}, transition_up{block}, up{block}_{layer} and
    classifier; block 1 is the finest.
    """

    num_classes: int
    layers: Positives = (4, 4, 4, 4, 4, 4)  # of each dense block from the finest, going down
    growth: Positive = 12  # maps that a layer adds
    width: Positive = 48  # maps of the first convolution
    dropout: Probability = 0.2  # after each convolution of a dense block or transition down
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        depth = len(self.layers) - 1
        height, width = image.shape[1:3]
        if min(height, width) < 2**depth:
            raise UserError(
                f"an image of {height}x{width} is too small for {depth} pools, expected at least "
                f"{2**depth}x{2**depth}"
            )

        def layer(x, features, kernel_size, name):
            return PreActivation(
                features, kernel_size, self.dropout, self.dtype, self.axis_name, name=name
            )(x, train=train)

        def dense(x, count, name):
            """Return all maps of a dense block, and the new ones."""
            new: list[jax.Array] = []
            for n in range(1, count + 1):
                new.append(layer(x, self.growth, 3, f"{name}_{n}"))
                x = concatenate([x, new[-1]])
            return x, concatenate(new)

        x = image.astype(self.dtype)
        x = Conv(self.width, 3, kernel_init=he_uniform, dtype=self.dtype, name="conv1")(x)
        skips = []
        for block, count in enumerate(self.layers[:-1], start=1):
            x, _ = dense(x, count, f"down{block}")
            skips.append(x)
            x = layer(x, x.shape[-1], 1, f"transition_down{block}")
            x = max_pool(x, 2, 2)
        _, new = dense(x, self.layers[-1], "bottleneck")
        for block in range(depth, 0, -1):
            skip = skips[block - 1]
            up = ConvTranspose(
                new.shape[-1],
                3,
                stride=2,
                kernel_init=he_uniform_transposed,
                dtype=self.dtype,
                name=f"transition_up{block}",
            )(new)
            up = up[:, : skip.shape[1], : skip.shape[2]]  # it has a row more than twice as many
            x, new = dense(concatenate([up, skip]), self.layers[block - 1], f"up{block}")
        x = Conv(self.num_classes, 1, kernel_init=he_uniform, dtype=self.dtype, name="classifier")(
            x
        )
        return x.astype(jnp.float32)


class FCDenseNet67(FCDenseNet56):
    """FC-DenseNet67: 3,463,243 parameters at 11 classes."""

    layers: Positives = (5, 5, 5, 5, 5, 5)
    growth: Positive = 16


class FCDenseNet103(FCDenseNet56):
    """FC-DenseNet103: 9,322,091 parameters at 11 classes."""

    layers: Positives = (4, 5, 7, 10, 12, 15)
    growth: Positive = 16


class PreActivation(nn.Module):
    """Batch normalization, ReLU, convolution, dropout: (B, H, W, C) to (B, H, W, features)."""

    features: int
    kernel_size: int  # odd; pixels
    dropout: float  # probability
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = BatchNorm(self.dtype, self.axis_name, name="bn")(x, train=train, relu=True)
        x = Conv(
            self.features,
            self.kernel_size,
            kernel_init=he_uniform,
            dtype=self.dtype,
            name="conv",
        )(x)
        return Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)
