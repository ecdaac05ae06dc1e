"""DeepLab v2 on ResNet: Chen, Papandreou, Kokkinos, Murphy, Yuille, arXiv 1606.00915.

A dilated ResNet-101 and atrous spatial pyramid pooling: 3x3 convolutions of several rates from the
last map to the scores, which are summed. Layer list from the authors' Caffe files
(`deeplabv2_resnet101`). `rates` (6, 12, 18, 24) is the paper's ASPP-L, (2, 4, 8, 12) its ASPP-S;
they are in scores of output stride 8 and shrink with a larger one, rounded half up. The network of
the same paper on VGG-16 is `deeplab_aspp`.

Deviations:

- The trunk is that of torchvision's weights (`segjax.models.resnet`): strides are in the 3x3
  convolutions, the first unit of a dilated block has half its rate, and the pool rounds odd sizes
  down, where Caffe's rounds up: at 360x480 the scores are 45x60, the authors' 46x61.
- Batch statistics are those of the batch in training; the authors keep ImageNet's. They also freeze
  the scales and shifts, which `experiments/deeplab_v2.py` does.
- One scale, not the maximum over the scores of three sizes of the image.
- The loss is taken at the labels' own size, of logits interpolated as at inference; the authors
  train on every eighth label.
- The fully connected CRF is not a part of the network.
- `width` scales the trunk; the paper's network has 64.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import resnet
from segjax.models.layers import Conv
from segjax.models.options import Positive, Positives
from segjax.ops.upsampling import bilinear_from_grid


class DeepLabV2(nn.Module):
    """DeepLab v2: image (B, H, W, C) to float32 logits (B, H, W, K).

    43,311,212 parameters at 11 classes. Parameters: trunk, fc1_c0, fc1_c1 and so on.
    """

    num_classes: int
    trunk: resnet.Trunk = "resnet101"
    output_stride: Literal[8, 16, 32] = 8  # pixels of the image between two scores
    rates: Positives = (6, 12, 18, 24)  # dilation of each branch, in scores of output stride 8
    width: Positive = resnet.WIDTH  # features of conv1
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        *_, x = resnet.ResNet(
            self.trunk,
            output_stride=self.output_stride,
            width=self.width,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="trunk",
        )(image, train=train)
        branches = [
            Conv(
                self.num_classes,
                3,
                dilation=resnet.rescaled(rate, 8, self.output_stride),
                kernel_init=nn.initializers.normal(0.01),
                dtype=self.dtype,
                name=f"fc1_c{branch}",
            )(x).astype(jnp.float32)
            for branch, rate in enumerate(self.rates)
        ]
        scores = sum(branches[1:], branches[0])
        return bilinear_from_grid(scores, self.output_stride, image.shape)
