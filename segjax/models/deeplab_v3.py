"""DeepLab v3: Chen, Papandreou, Schroff, Adam, "Rethinking atrous convolution", arXiv 1706.05587.

A ResNet whose last blocks are dilated, then atrous spatial pyramid pooling (ASPP) with batch
normalization and the average of the whole map, or nothing (`head="none"`) for section 3.2 of the
paper, "going deeper": `blocks` is up to 7, of which 5 to 7 are copies of block 4. Names and what
the paper leaves open from the authors' code (tensorflow/models, `deeplab/model.py`).

`output_stride` is 2^(blocks + 1) without atrous convolution; at less than that, the blocks that
would pass it are dilated. `multi_grid` multiplies the rates of the units of blocks 4 to 7. The
rates of ASPP are those of output stride 16: at 8 they are doubled, at 32 halved.

Deviations:

- The first unit of a dilated block has half its rate, because the trunk is that of torchvision's
  weights (`segjax.models.resnet`); in the authors' networks a block's last unit has the stride.
  ResNet-18, whose blocks have two units, has the first two rates of `multi_grid`; the paper has
  ResNet-50 and 101.
- The head starts as He et al.'s, the authors' by Xavier's uniform; blocks 5 to 7 as He et al.'s.
- Logits are interpolated between the scores' own pixels, and the last score is repeated up to the
  border. At sides of k output_stride + 1 pixels, as in the paper, that is the authors' upsampling.
- Dropout of 0.1 before the scores is that of the authors' code.
- The second stage of training, at output stride 8 with fixed batch statistics, is left out.
- `width` and `aspp_width` scale the layers; the paper's networks have 64 and 256.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import resnet
from segjax.models.layers import Conv, ConvBlock, Dropout
from segjax.models.options import Positive, Positives, Probability
from segjax.ops.concatenation import concatenate
from segjax.ops.upsampling import bilinear_from_grid


class DeepLabV3(nn.Module):
    """DeepLab v3: image (B, H, W, C) to float32 logits (B, H, W, K).

    58,038,091 parameters at 11 classes. Parameters: trunk, aspp0 (1x1), aspp1 to aspp3,
    image_pooling, concat_projection and logits.
    """

    num_classes: int
    trunk: resnet.Trunk = "resnet101"
    output_stride: Literal[8, 16, 32, 64, 128, 256] = 16  # pixels of the image between two scores
    blocks: Literal[4, 5, 6, 7] = 4
    multi_grid: resnet.MultiGrid = (1, 2, 4)
    head: Literal["aspp", "none"] = "aspp"
    rates: Positives = (6, 12, 18)  # of ASPP, in scores of output stride 16
    image_pooling: bool = True  # in ASPP
    width: Positive = resnet.WIDTH  # features of conv1
    aspp_width: Positive = 256  # features of each branch of ASPP
    dropout: Probability = 0.1  # after ASPP
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        *_, x = resnet.ResNet(
            self.trunk,
            blocks=self.blocks,
            output_stride=self.output_stride,
            multi_grid=self.multi_grid,
            width=self.width,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="trunk",
        )(image, train=train)
        if self.head == "aspp":
            x = self._aspp(x, train)
        x = Conv(
            self.num_classes,
            1,
            kernel_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="logits",
        )(x)
        return bilinear_from_grid(x.astype(jnp.float32), self.output_stride, image.shape)

    def _aspp(self, x, train):
        def block(x, kernel_size, dilation, name):
            return ConvBlock(
                self.aspp_width,
                kernel_size,
                dilation=dilation,
                use_bias=False,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)

        branches = [block(x, 1, 1, "aspp0")]
        for n, rate in enumerate(self.rates, start=1):
            dilation = resnet.rescaled(rate, 16, self.output_stride)
            branches.append(block(x, 3, dilation, f"aspp{n}"))
        if self.image_pooling:
            pooled = block(jnp.mean(x, (1, 2), keepdims=True), 1, 1, "image_pooling")
            branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = block(concatenate(branches), 1, 1, "concat_projection")
        return Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)
