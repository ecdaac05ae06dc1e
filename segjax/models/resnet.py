"""ResNet, the trunk of DeepLab v2, v3 and `unet_resnet`: He, Zhang, Ren, Sun, arXiv 1512.03385.

ResNet-18, 34, 50 and 101 without their classifier: Table 1 of the paper. Block n is its conv{n+1}_x
and torchvision's layer{n}, and consists of units.

Parameter names are torchvision's and timm's by one rule, by which `segjax.models.pretrained` fills
them: a dot before a number becomes an underscore and every other dot a level, so that
layer1.0.downsample.0.weight is layer1_0/downsample_0/kernel. A weight of four axes is a kernel
(OIHW there, HWIO here), one of one axis a scale; running_mean and running_var are mean and var of
the batch statistics.

Where a block's stride would pass `output_stride`, it is 1 and the kernels after it have twice the
dilation: where both networks have values, they are those of the network with the stride.

Deviations:

- The stride of a bottleneck is in its 3x3 convolution, as in torchvision (and timm, whose weights
  this fits), where it is called v1.5; the paper has it in the first 1x1 convolution. So the first
  unit of a block without its stride keeps the dilation of the block before: its first 3x3
  convolution sees the map before the stride.
- The pool rounds odd sizes down, as in torchvision; in the authors' Caffe files it rounds up.
- Blocks 5 to 7 are DeepLab v3's (arXiv 1706.05587): copies of block 4. Their shortcuts are the
  identity, without the values between the strides, as in that paper's code: so the parameters do
  not depend on the output stride.
- `width` scales every layer; the paper's networks have 64.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models.layers import BatchNorm, Conv
from segjax.models.options import Constraint, Positive
from segjax.ops.pooling import max_pool

Trunk = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
UNITS = {  # of blocks 1 to 4
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
# DeepLab v3's rates of the units of blocks 4 to 7, as multiples of the block's own.
MultiGrid = Annotated[
    tuple[Positive, ...],
    Constraint("a tuple of three integers of at least 1", lambda x: len(x) == 3),
]
WIDTH = 64


class ResNet(nn.Module):
    """ResNet: image (B, H, W, C) to the maps after conv1 and after each block.

    The map after conv1 has the stride 2, that after block n 2^(n + 1) but at most `output_stride`:
    (B, ceil(H / stride), ceil(W / stride), features), whose values are at the pixels 0, stride,
    2 stride and so on. Parameters: conv1, bn1, layer{block}_{unit}.
    """

    trunk: Trunk
    blocks: int = 4
    output_stride: int = 32  # pixels of the image between two of the last map; a power of 2 above 2
    multi_grid: tuple[int, ...] = (1, 1, 1)
    width: int = WIDTH  # features of conv1
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> list[jax.Array]:
        coarsest = 2 ** (self.blocks + 1)
        if self.output_stride > coarsest:
            raise UserError(
                f"output_stride is {self.output_stride}, but {self.blocks} blocks have {coarsest} "
                "without atrous convolution, expected at most that"
            )

        x = Conv(self.width, 7, stride=2, use_bias=False, dtype=self.dtype, name="conv1")(
            image.astype(self.dtype)
        )
        x = BatchNorm(self.dtype, self.axis_name, name="bn1")(x, train=train, relu=True)
        maps = [x]
        x = max_pool(x, 3, 2, ((1, 1), (1, 1)))

        reached, rate = 4, 1
        units = UNITS[self.trunk]
        for block in range(1, self.blocks + 1):
            stride, before = 1 if block == 1 else 2, rate
            if reached * stride > self.output_stride:
                stride, rate = 1, rate * stride
            reached *= stride
            for unit in range(units[min(block, 4) - 1]):
                grid = self.multi_grid[unit] if block >= 4 else 1
                x = Unit(
                    2 ** (min(block, 4) - 1) * self.width,
                    bottleneck=self.trunk in ("resnet50", "resnet101"),
                    stride=stride if unit == 0 else 1,
                    dilations=(grid * (before if unit == 0 else rate), grid * rate),
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"layer{block}_{unit}",
                )(x, train=train)
            maps.append(x)
        return maps


class Unit(nn.Module):
    """A residual unit: (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), D).

    Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, added to the shortcut. The shortcut
    is a convolution where C and D differ. Parameters: conv{n}, bn{n}, downsample_0, downsample_1.
    """

    features: int  # of the 3x3 convolutions; D is this, or four times this with a bottleneck
    bottleneck: bool
    stride: int = 1  # of the first 3x3 convolution, in pixels
    dilations: tuple[int, int] = (1, 1)  # of the first and the second 3x3 convolution
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def conv(x, features, kernel_size, stride, dilation, name):
            return Conv(
                features,
                kernel_size,
                stride=stride,
                dilation=dilation,
                use_bias=False,
                dtype=self.dtype,
                name=name,
            )(x)

        def norm(x, name, relu):
            return BatchNorm(self.dtype, self.axis_name, name=name)(x, train=train, relu=relu)

        first, second = self.dilations
        features, out = self.features, 4 * self.features if self.bottleneck else self.features
        # Features, side of the kernel, stride, dilation.
        layers = [(features, 3, self.stride, first), (features, 3, 1, second)]
        if self.bottleneck:
            layers = [(features, 1, 1, 1), layers[0], (out, 1, 1, 1)]
        y = x
        for n, layer in enumerate(layers, start=1):
            y = norm(conv(y, *layer, f"conv{n}"), f"bn{n}", relu=n < len(layers))
        if x.shape[-1] == out:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = conv(x, out, 1, self.stride, 1, "downsample_0")
            shortcut = norm(shortcut, "downsample_1", relu=False)
        return nn.relu(y + shortcut)


def rescaled(rate: int, given: int, output_stride: int) -> int:
    """Return a rate at an output stride, rounded half up, from the one at the stride `given`."""
    return max(1, (2 * rate * given + output_stride) // (2 * output_stride))
