"""DeepLab on VGG16: Chen, Papandreou, Kokkinos, Murphy, Yuille, arXiv 1412.7062 and 1606.00915.

`deeplab_largefov` is the first paper's network of the largest field of view, `deeplab_aspp` the
second's with atrous spatial pyramid pooling (ASPP-L on VGG16). Layer lists from the authors' Caffe
files. The scores have an eighth of the resolution and are interpolated: the strides of the last two
pools are replaced by dilation, so that the kernels of VGG16 see what they were trained on.

`output_stride` makes that trade-off an option. At 16 pool4 keeps its stride of 2, at 32 pool5 does
as well, and the convolutions after them are dilated less: conv5 by 2 at stride 8 and by 1
otherwise, fc6 by rate * 8 / output_stride, rounded half up. The taps of a kernel are then as many
image pixels apart at all three strides, and the field of view is the same but for the pools: those
without a stride keep their 3x3 windows undilated, as in the authors' files. `deeplab_largefov` sees
435 pixels at stride 8, 467 at 16 and 499 at 32.

Deviations:

- The loss is taken at the labels' own size, of logits interpolated as at inference; the authors
  train on every eighth label.
- fc6 and fc7 start as He et al.'s, and so does the trunk without `model.pretrained`; the authors
  start them from VGG16's, cut down from 7x7 and from 4096 units.
- The fully connected CRF is not a part of the network.
- `width` and `fc_width` scale the layers; the papers' networks have 64 and 1024. `batch_norm`,
  after every convolution but the scores', is not the authors' but that of the SegNet paper's
  benchmark.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import resnet, vgg
from segjax.models.layers import Conv, ConvBlock, Dropout
from segjax.models.options import Positive, Positives, Probability
from segjax.ops.pooling import max_pool
from segjax.ops.upsampling import bilinear_conv_transpose

OutputStride = Literal[32, 16, 8]


class DeepLab(nn.Module):
    """The layers and options that both networks share."""

    num_classes: int
    output_stride: OutputStride = 8  # pixels of the image between two scores
    width: Positive = vgg.WIDTH  # features of stage 1; stages 2 to 5 have 2, 4, 8 and 8 times that
    fc_width: Positive = 1024  # features of each fc6 and fc7
    dropout: Probability = 0.5  # after fc6 and fc7
    batch_norm: bool = False  # after every convolution but the scores'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def trunk(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Apply conv1_1 to pool5: VGG16 with pools of 3x3, at the output stride."""

        def block(x, multiple, name):
            dilation = 2 if name.startswith("conv5") and self.output_stride == 8 else 1
            return self._block(x, multiple * self.width, 3, dilation, name, train)

        x = image.astype(self.dtype)
        for number in range(1, 6):
            x = vgg.stage(x, number, block)
            x = _max_pool(x, stride=2 if 2**number <= self.output_stride else 1)
        return x

    def scores(self, x: jax.Array, rate: int, branch: str, *, train: bool) -> jax.Array:
        """Apply fc6, dilated, fc7 and fc8: float32 (B, h, w, K)."""
        rate = resnet.rescaled(rate, 8, self.output_stride)
        for name, kernel_size, dilation in (("fc6", 3, rate), ("fc7", 1, 1)):
            x = self._block(x, self.fc_width, kernel_size, dilation, f"{name}{branch}", train)
            x = Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)
        x = Conv(
            self.num_classes,
            1,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name=f"fc8{branch}",
        )(x)
        return x.astype(jnp.float32)

    def _block(self, x, features, kernel_size, dilation, name, train):
        return ConvBlock(
            features,
            kernel_size,
            dilation=dilation,
            batch_norm=self.batch_norm,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name,
        )(x, train=train)


class DeepLabLargeFOV(DeepLab):
    """DeepLab-LargeFOV: image (B, H, W, C) to float32 logits (B, H, W, K).

    20,495,179 parameters at 11 classes. Parameters: conv{stage}_{n}, fc6, fc7 and fc8, as in the
    authors' files.
    """

    rate: Positive = 12  # dilation of fc6, in scores of output stride 8

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        x = _average_pool(self.trunk(image, train=train))  # pool5a
        x = self.scores(x, self.rate, "", train=train)
        return _upsample(x, self.output_stride, image.shape)


class DeepLabASPP(DeepLab):
    """DeepLab-ASPP-L: four fields of view side by side, their scores summed.

    Image (B, H, W, C) to float32 logits (B, H, W, K). 37,836,652 parameters at 11 classes.
    Parameters: conv{stage}_{n}, fc6_{branch}, fc7_{branch} and fc8_{branch}, as in the authors'
    files.
    """

    rates: Positives = (6, 12, 18, 24)  # dilation of each fc6, in scores of output stride 8

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        x = self.trunk(image, train=train)
        branches = [
            self.scores(x, rate, f"_{branch}", train=train)
            for branch, rate in enumerate(self.rates, start=1)
        ]
        return _upsample(sum(branches[1:], branches[0]), self.output_stride, image.shape)


def _max_pool(x, stride):
    """Pool 3x3 around every stride-th pixel, from the first to one at or beyond the border."""
    # Caffe rounds up: an even side takes one window more, whose first row alone is inside.
    rows, columns = ((1, 1 + (stride == 2 and side % 2 == 0)) for side in x.shape[1:3])
    return max_pool(x, 3, stride, (rows, columns))


def _average_pool(x):
    """Average 3x3 around every pixel, counting the zeros beyond the border, as Caffe does."""
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).astype(jnp.float32)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9).astype(x.dtype)


def _upsample(scores, stride, shape):
    """Interpolate between the scores, which are at pixels 0, stride, 2 stride and so on."""
    full = bilinear_conv_transpose(scores, size=2 * stride - 1, stride=stride, padding=stride - 1)
    return full[:, : shape[1], : shape[2]]
