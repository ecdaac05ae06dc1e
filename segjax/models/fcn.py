"""Fully convolutional networks: Long, Shelhamer, Darrell, CVPR 2015; Shelhamer et al., PAMI 2017.

Layer lists from the authors' `voc-fcn32s`, `voc-fcn16s`, `voc-fcn8s` and `voc-fcn8s-atonce/net.py`.
VGG16 with its fully connected layers as convolutions, and scores at strides 32, 16 and 8, whose sum
is upsampled to the next finer ones.

The border: with `padding="pad100"`, as published, 100 zeros around the image keep fc6, which is not
padded, from shrinking the map away, and every crop has the authors' offset, which aligns the
pixels. With "same" every convolution keeps its size and every crop is at the top left.

Deviations:

- `fcn4s`, with a skip from pool2, is ours, built like the others: its offsets align the pixels, and
  `at_once` scales pool2 by a hundredth of pool3's scale.
- `at_once` scales the pools as the authors do for Caffe's VGG16, which sees pixels of 0 to 255. The
  maps of torchvision's weights are hundreds of times smaller, so with them leave it off.
- Without weights of VGG16, the kernels of the trunk, fc6 and fc7 are He et al.'s.
- "nearest" and "bed_of_nails" are not the authors' but further choices of how to upsample, and so
  are `batch_norm`, which the SegNet paper's benchmark adds to every network, and the scaling by
  `width` and `fc_width`.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import vgg
from segjax.models.layers import Conv, ConvBlock, ConvTranspose, Dropout, bilinear_diagonal
from segjax.models.options import Positive, Probability
from segjax.ops.pooling import max_pool_with_indices
from segjax.ops.upsampling import bed_of_nails, bilinear_conv_transpose, nearest

# By the number of the pool whose scores are added: the upsampling before it, the offset of its
# crop with pad100, and its scale where all is trained at once.
SKIPS = {4: ("upscore2", 5, 1e-2), 3: ("upscore_pool4", 9, 1e-4), 2: ("upscore_pool3", 17, 1e-6)}
# By the stride of the finest scores: the offset of the last crop with pad100.
OFFSETS = {32: 19, 16: 27, 8: 31, 4: 33}


Padding = Literal["pad100", "same"]
Upsampling = Literal["bilinear", "learnt", "nearest", "bed_of_nails"]


class FCN(nn.Module):
    """The network that FCN-32s, 16s, 8s and 4s share."""

    num_classes: int
    padding: Padding = "pad100"  # pad100: as published; same: every convolution keeps its size
    # bilinear: fixed; learnt: the same kernels, dense and trained; nearest: repetition;
    # bed_of_nails: for each factor of 2, zeros between the pixels and a learned 3x3 convolution
    # without bias, bilinear at first.
    upsampling: Upsampling = "bilinear"
    batch_norm: bool = False  # after every convolution but the scores'
    dropout: Probability = 0.5  # after fc6 and fc7
    width: Positive = vgg.WIDTH  # features of stage 1; stages 2 to 5 have 2, 4, 8 and 8 times that
    fc_width: Positive = 4096  # features of fc6 and fc7
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def logits(
        self, image: jax.Array, *, train: bool, stride: int, at_once: bool = False
    ) -> jax.Array:
        """Return the scores with skips down to a stride, at the size of the image, in float32."""
        padded = self.padding == "pad100"

        def block(x, features, kernel_size, padding, name):
            return ConvBlock(
                features,
                kernel_size,
                padding=padding,
                batch_norm=self.batch_norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)

        def conv(x, multiple, name):
            padding = 100 if padded and name == "conv1_1" else None
            return block(x, multiple * self.width, 3, padding, name)

        def fully_connected(x, kernel_size, name):
            x = block(x, self.fc_width, kernel_size, 0 if padded else None, name)
            return Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)

        def score(x, name):
            zeros = nn.initializers.zeros
            return Conv(self.num_classes, 1, kernel_init=zeros, dtype=self.dtype, name=name)(x)

        x, pools = image.astype(self.dtype), {}
        for number in range(1, 6):
            x = vgg.stage(x, number, conv)
            x, _ = max_pool_with_indices(x)
            pools[number] = x
        x = fully_connected(x, 7, "fc6")
        x = fully_connected(x, 1, "fc7")
        x = score(x, "score_fr")
        for number, (name, offset, scale) in SKIPS.items():
            if 2**number < stride:
                break
            x = self._upsample(x, 2, name)
            skip = score(pools[number] * (scale if at_once else 1.0), f"score_pool{number}")
            x = x + _crop(skip, offset, x) if padded else _crop(x, 0, skip) + skip
        x = self._upsample(x, stride, f"upscore{stride}")
        return _crop(x, OFFSETS[stride] if padded else 0, image).astype(jnp.float32)

    def _upsample(self, x, factor, name):
        """Upsample by a factor; with pad100 by half of it more on each side, as Caffe's layer."""
        size, border = 2 * factor, factor // 2
        padding = 0 if self.padding == "pad100" else border
        if self.upsampling == "bilinear":
            return bilinear_conv_transpose(x, size=size, stride=factor, padding=padding)
        if self.upsampling == "learnt":
            return ConvTranspose(
                self.num_classes,
                size,
                factor,
                padding,
                use_bias=False,
                kernel_init=bilinear_diagonal,
                dtype=self.dtype,
                name=name,
            )(x)
        if self.upsampling == "nearest":
            x = nearest(x, (factor * x.shape[1], factor * x.shape[2]))
        else:
            for step in range(1, factor.bit_length()):
                x = Conv(
                    self.num_classes,
                    3,
                    use_bias=False,
                    kernel_init=bilinear_diagonal,
                    dtype=self.dtype,
                    name=f"{name}_{step}",
                )(bed_of_nails(x, 2))
        border -= padding
        return jnp.pad(x, [(0, 0), (border, border), (border, border), (0, 0)], mode="edge")


def _crop(x, offset, like):
    return x[:, offset : offset + like.shape[1], offset : offset + like.shape[2]]


class FCN32s(FCN):
    """FCN-32s: image (B, H, W, C) to float32 logits (B, H, W, K), all scores from fc7.

    134,305,611 parameters at 11 classes, 134,801,227 with learned upsampling. Parameters:
    conv{stage}_{n}, fc6, fc7 and score_fr; with learned upsampling, upscore32.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        return self.logits(image, train=train, stride=32)


class FCN16s(FCN):
    """FCN-16s: FCN-32s and score_pool4.

    134,311,254 parameters at 11 classes, 134,437,094 with learned upsampling.
    """

    STRIDE: ClassVar[int] = 16

    at_once: bool = False  # scales the pools before their scores, for Caffe's weights of VGG16

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        return self.logits(image, train=train, stride=self.STRIDE, at_once=self.at_once)


class FCN8s(FCN16s):
    """FCN-8s: FCN-16s and score_pool3.

    134,314,081 parameters at 11 classes, 134,348,929 with learned upsampling.
    """

    STRIDE: ClassVar[int] = 8


class FCN4s(FCN16s):
    """FCN-4s, not of the paper: FCN-8s and score_pool2. 134,315,500 parameters at 11 classes."""

    STRIDE: ClassVar[int] = 4
