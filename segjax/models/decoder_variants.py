"""Decoders for the encoder of SegNet-Basic: Table 1 of Badrinarayanan, Kendall, Cipolla.

arXiv 1511.00561v3, section 3.1. SegNet-Basic itself is in `segnet.py`; these variants show how much
it owes to the indices, to the width of the decoder, and to the encoder's maps. The authors
published no files of the variants, and where the paper is silent we chose:

- The deviations of SegNet-Basic in `segnet.py` hold here.
- Convolutions have biases, as in the authors' file of SegNet-Basic; the paper has none.
- EncoderAddition adds the encoder's maps of a level, as they were before the pool, to what the
  decoder's convolution and its batch normalization make of that level.
- SingleChannelDecoder normalizes after each of its 7x7 convolutions, as SegNet-Basic does.
- Bilinear-Interpolation classifies the encoder's deepest map and doubles the scores four times: 1x1
  convolution and interpolation commute, and eleven maps cost less than sixty-four. Edges are
  repeated, where Caffe's deconvolution would fade to zero.
- The upsampling of the FCN-Basic networks has stride 2 and padding 3, which doubles a map, no bias,
  and nothing after it: no normalization and no ReLU. Rows and columns beyond the level above are
  cropped at the bottom and the right.
- It starts as Caffe's bilinear filler, which at side 8 is a tent of factor 4, divided by the 4 that
  it sums to at stride 2: it smooths a little more than interpolation, and keeps the mean.
- The networks without reduction classify at the end, at the size of the image.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models.layers import ConvTranspose, bilinear_diagonal
from segjax.models.segnet import Basic
from segjax.ops.pooling import max_unpool
from segjax.ops.upsampling import bilinear

SIDE, STRIDE = 8, 2  # of the learned upsampling, in pixels


class SegNetBasicEncoderAddition(Basic):
    """SegNet-Basic whose decoder adds the encoder's 64 maps at every level.

    Image (B, H, W, C) to float32 logits (B, H, W, K), as all here. 1,416,587 parameters at 11
    classes, those of SegNet-Basic.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        levels = self.encode(image, train=train)
        x = levels[-1].pooled
        for number in range(4, 0, -1):
            encoded, _, indices = levels[number - 1]
            x = max_unpool(x, indices, encoded.shape)
            x = self.block(x, f"conv_decode{number}", train=train, relu=False) + encoded
        return self.classify(x).astype(jnp.float32)


class SegNetBasicSingleChannelDecoder(Basic):
    """SegNet-Basic whose decoder convolves each channel by itself.

    626,315 parameters at 11 classes, named as those of SegNet-Basic.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        levels = self.encode(image, train=train)
        x = levels[-1].pooled
        for number in range(4, 0, -1):
            encoded, _, indices = levels[number - 1]
            x = max_unpool(x, indices, encoded.shape)
            name = f"conv_decode{number}"
            x = self.block(x, name, train=train, relu=False, groups=self.width)
        return self.classify(x).astype(jnp.float32)


class BilinearInterpolation(Basic):
    """No decoder: the classes of the deepest map, enlarged by bilinear interpolation.

    613,003 parameters at 11 classes: the encoder's, and conv_classifier.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        levels = self.encode(image, train=train)
        x = self.classify(levels[-1].pooled)
        for level in reversed(levels):
            _, height, width, _ = level.encoded.shape
            x = bilinear(x, (height, width))
        return x.astype(jnp.float32)


class FCNBasic(Basic):
    """Upsampling by learned 8x8 kernels, and the encoder's maps added after each.

    646,124 parameters at 11 classes. Parameters: conv{level}, conv_reduce{level} (64 to K channels
    of the level's pooled map), upsample{level} and, where nothing is reduced, conv_classifier.
    """

    ADDITION: ClassVar[bool] = True  # of the pooled maps of the levels above the deepest
    REDUCTION: ClassVar[bool] = True  # of every map to K channels

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        levels = self.encode(image, train=train)

        def pooled(number):
            x = levels[number - 1].pooled
            return self.classify(x, f"conv_reduce{number}") if self.REDUCTION else x

        x = pooled(4)
        for number in range(4, 0, -1):
            height, width = levels[number - 1].encoded.shape[1:3]
            x = ConvTranspose(
                x.shape[-1],
                SIDE,
                stride=STRIDE,
                padding=(SIDE - STRIDE) // 2,
                use_bias=False,
                kernel_init=interpolating,
                dtype=self.dtype,
                name=f"upsample{number}",
            )(x)[:, :height, :width]
            if self.ADDITION and number > 1:
                x = x + pooled(number - 1)
        return (x if self.REDUCTION else self.classify(x)).astype(jnp.float32)


class FCNBasicNoAddition(FCNBasic):
    """FCN-Basic that upsamples the deepest map alone: 643,979 parameters at 11 classes."""

    ADDITION: ClassVar[bool] = False


class FCNBasicNoDimReduction(FCNBasic):
    """FCN-Basic of 64 channels throughout: 1,661,579 parameters at 11 classes."""

    REDUCTION: ClassVar[bool] = False


class FCNBasicNoAdditionNoDimReduction(FCNBasic):
    """The deepest map upsampled with its 64 channels: 1,661,579 parameters at 11 classes."""

    ADDITION: ClassVar[bool] = False
    REDUCTION: ClassVar[bool] = False


def interpolating(
    key: jax.Array, shape: tuple[int, int, int, int], dtype: Any = jnp.float32
) -> jax.Array:
    """Initialize a (k, k, C, C) upsampling kernel: each channel to itself, means kept."""
    return bilinear_diagonal(key, shape, dtype) / 4  # what the tent sums to at its stride
