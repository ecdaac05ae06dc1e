"""U-Net's decoder on a ResNet: the design of the library segmentation_models.pytorch, its `Unet`.

No paper has it; it is what people use where U-Net is to start from ImageNet's weights. The skips
are the maps after conv1 and blocks 1 to 3 of the trunk (He et al., arXiv 1512.03385). On the way up
a map is doubled in size by repetition, the skip is concatenated after it, and two 3x3 convolutions
with batch normalization follow: 256, 128, 64, 32 and 16 features, the last without a skip.

Deviations from the library:

- Images of any size: a doubled map is cut to the size of the skip at the bottom and the right. The
  library accepts multiples of 32.
- All kernels start as He et al.'s, the library's scores as Glorot and Bengio's.
- `width` scales every layer; the library's network has 64.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import resnet
from segjax.models.layers import Conv, ConvBlock
from segjax.models.options import Positive
from segjax.ops.concatenation import concatenate
from segjax.ops.upsampling import nearest


class UNetResNet(nn.Module):
    """U-Net on a ResNet: image (B, H, W, C) to float32 logits (B, H, W, K).

    24,437,819 parameters at 11 classes. Parameters: trunk, up{stride}_{n} for the convolutions at
    1/16, 1/8, 1/4, 1/2 and 1/1 of the size, and score.
    """

    num_classes: int
    trunk: resnet.Trunk = "resnet34"
    width: Positive = resnet.WIDTH  # features of conv1; the decoder has 4 times that to a quarter
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        *skips, x = resnet.ResNet(
            self.trunk, width=self.width, dtype=self.dtype, axis_name=self.axis_name, name="trunk"
        )(image, train=train)

        def block(x, features, name):
            return ConvBlock(
                features,
                3,
                use_bias=False,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)

        features = 4 * self.width
        for stride in (16, 8, 4, 2, 1):
            height, width = skips[-1].shape[1:3] if skips else image.shape[1:3]
            x = nearest(x, (2 * x.shape[1], 2 * x.shape[2]))[:, :height, :width]
            if skips:
                x = concatenate([x, skips.pop()])
            x = block(x, features, f"up{stride}_1")
            x = block(x, features, f"up{stride}_2")
            features = max(1, features // 2)
        x = Conv(self.num_classes, 3, dtype=self.dtype, name="score")(x)
        return x.astype(jnp.float32)
