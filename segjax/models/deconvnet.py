"""DeconvNet: Noh, Hong, Han, arXiv 1505.04366 (ICCV 2015).

Layer list from the authors' Caffe files (`training/*/`, `DeconvNet_inference_deploy.prototxt`).
VGG16 down to a map of 7x7, through fc6 and fc7 to a single pixel, and the whole way back by
unpooling and transposed convolutions, batch normalization after every layer but the last.

Deviations:

- Larger images than the authors' 224x224 are taken whole, with no object proposals, so that fc6
  and its inverse slide over the map of pool5 (12x15 for 360x480).
- Sides that do not halve: pooling rounds up, and unpooling crops to the size before the pool.
- The normalization's epsilon is 1e-5 and not 1e-9, its shift starts at 0 and not 0.001, and it
  keeps running averages (momentum 0.9) beside the recomputation over the training set.
- Weight decay is of kernels alone; the authors' also of the normalizations' scales and shifts.
- Without weights of VGG16, the kernels of the encoder are He et al.'s.
- `width` and `fc_width` scale the layers; the paper's network has 64 and 4096, that of the SegNet
  paper's benchmark 64 and 1024. `fc_kernel` makes room for images below 193x193.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models import vgg
from segjax.models.layers import BatchNorm, Conv, ConvBlock, ConvTranspose
from segjax.models.options import Positive
from segjax.ops.pooling import max_pool_with_indices, max_unpool

gaussian = nn.initializers.normal(0.01)


class DeconvBlock(nn.Module):
    """Transposed convolution of stride 1, batch normalization and a ReLU.

    (B, h, w, C) to (B, h + kernel_size - 1 - 2 padding, and w likewise, features) of the compute
    dtype. Parameters: deconv and bn.
    """

    features: int
    kernel_size: int  # pixels
    padding: int  # rows and columns taken from each side
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = ConvTranspose(
            self.features,
            self.kernel_size,
            padding=self.padding,
            kernel_init=gaussian,
            dtype=self.dtype,
            name="deconv",
        )(x)
        return BatchNorm(self.dtype, self.axis_name, name="bn")(x, train=train, relu=True)


class DeconvNet(nn.Module):
    """DeconvNet: image (B, H, W, C) to float32 logits (B, H, W, K).

    251,805,003 parameters at 11 classes, 81,917,259 with fc_width 1024. Parameters, as in the
    authors' files: conv{stage}_{n}, fc6, fc7, fc6-deconv, deconv{stage}_{n}, and seg-score.

    Raises:
      UserError: the image is smaller than 32 (fc_kernel - 1) + 1 pixels: 193 at fc_kernel 7.
    """

    num_classes: int
    width: Positive = vgg.WIDTH  # features of stage 1; stages 2 to 5 have 2, 4, 8 and 8 times that
    fc_width: Positive = 4096  # features of fc6 and fc7
    fc_kernel: Positive = 7  # side of fc6's kernel and its inverse's, in pixels of stride 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        least = 32 * (self.fc_kernel - 1) + 1
        height, width = image.shape[1:3]
        if min(height, width) < least:
            raise UserError(
                f"an image of {height}x{width} is too small for deconvnet, which needs "
                f"{least}x{least} with fc_kernel {self.fc_kernel}"
            )
        common: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}

        def conv(x, multiple, name):
            return ConvBlock(multiple * self.width, 3, name=name, **common)(x, train=train)

        def deconv(x, multiple, name):
            return DeconvBlock(multiple * self.width, 3, 1, name=name, **common)(x, train=train)

        x, pools = image.astype(self.dtype), []
        for number in range(1, 6):
            x = vgg.stage(x, number, conv)
            shape = x.shape
            x, indices = max_pool_with_indices(x)
            pools.append((indices, shape))

        features = x.shape[-1]
        x = ConvBlock(self.fc_width, self.fc_kernel, padding=0, name="fc6", **common)(
            x, train=train
        )
        x = ConvBlock(self.fc_width, 1, name="fc7", **common)(x, train=train)
        x = DeconvBlock(features, self.fc_kernel, 0, name="fc6-deconv", **common)(x, train=train)

        for number in range(5, 0, -1):
            depth, multiple = vgg.STAGES[number - 1]
            x = max_unpool(x, *pools[number - 1])
            for n in range(1, depth):
                x = deconv(x, multiple, f"deconv{number}_{n}")
            # The last of a stage narrows to the stage above it.
            x = deconv(x, vgg.STAGES[max(number - 2, 0)][1], f"deconv{number}_{depth}")
        x = Conv(self.num_classes, 1, kernel_init=gaussian, dtype=self.dtype, name="seg-score")(x)
        return x.astype(jnp.float32)
