"""Dilation8: Yu, Koltun, "Multi-scale context aggregation by dilated convolutions" (1511.07122).

A front end, VGG16 without its last two pools and with dilated kernels instead, and a context module
that widens the field of view on the maps of scores at full resolution. Layer lists from
the authors' files (`network.py`, `dilation8_camvid_deploy.prototxt`): no layer of the front end
pads, the image is mirrored by 186 pixels on each side instead, so that 360x480 enters as 732x852
and leaves as 45x60.

Deviations:

- Odd sizes: pools round up, as Caffe's, and the interpolated scores are cropped at the bottom and
  the right.
- Scores are interpolated between the centers of their fields of view, at 8k + 3.5 pixels, by the
  fixed deconvolution of the authors' `--up` option. Their CamVid network is tested by interpolating
  the softmax between the pixels 8k.
- The loss is taken at the labels' own size, of scores interpolated as at inference; the authors
  train the front end on every eighth label.
- The authors train the front end alone, and then both together. Here that is `context = "none"`
  and `context = "basic"`; together they train from the start, where the context module is
  the identity.
- Without `model.pretrained` all kernels of the front end but `final` start as He et al.'s.
- `noise` around the identity has a standard deviation of 0.01, in the large module divided by the
  layer's multiple of maps, as in the authors' code; in the paper the basic module has none. The
  large module needs it, to tell its copies of a class apart.
- `width` and `fc_width` scale the front end; the paper's network has 64 and 4096.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import vgg
from segjax.models.layers import Conv, ConvBlock, Dropout
from segjax.models.options import NotNegative, Positive, Probability
from segjax.ops.padding import mirror
from segjax.ops.pooling import max_pool_with_indices
from segjax.ops.upsampling import bilinear_conv_transpose

MARGIN = 186  # pixels that the layers of the front end take from each side

# Name, dilation and features as a multiple of the classes: the paper's table 1.
CONTEXT = (
    ("ctx_conv1_1", 1, 2),
    ("ctx_conv1_2", 1, 2),
    ("ctx_conv2_1", 2, 4),
    ("ctx_conv3_1", 4, 8),
    ("ctx_conv4_1", 8, 16),
    ("ctx_conv5_1", 16, 32),
    ("ctx_fc1", 1, 32),
)


class Dilation8(nn.Module):
    """Front end and context module: image (B, H, W, C) to float32 logits (B, H, W, K).

    134,313,443 parameters at 11 classes. Parameters: conv{stage}_{n}, fc6, fc7, final and the names
    of `CONTEXT` and ctx_final, as in the authors' files.
    """

    num_classes: int
    # basic: as many maps as classes; large: up to 32 times that; none: the front end alone
    context: Literal["none", "basic", "large"] = "basic"
    noise: NotNegative = 0.01  # standard deviation around the identity, the context's first value
    width: Positive = vgg.WIDTH  # features of stage 1; stages 2 to 5 have 2, 4, 8 and 8 times that
    fc_width: Positive = 4096  # features of fc6 and fc7
    dropout: Probability = 0.5  # after fc6 and fc7
    batch_norm: bool = False  # after the convolutions of the front end; not the authors'
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        scores = self._front_end(mirror(image.astype(self.dtype), MARGIN, MARGIN), train)
        if self.context != "none":
            scores = self._context(scores)
        scores = scores.astype(jnp.float32)
        full = bilinear_conv_transpose(scores, size=16, stride=8, padding=4)
        return full[:, : image.shape[1], : image.shape[2]]

    def _front_end(self, x, train):
        def block(x, features, name, kernel_size=3, dilation=1):
            return ConvBlock(
                features,
                kernel_size,
                dilation=dilation,
                padding=0,
                batch_norm=self.batch_norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)

        def trunk(x, multiple, name):
            dilation = 2 if name.startswith("conv5") else 1
            return block(x, multiple * self.width, name, dilation=dilation)

        for number in range(1, 6):
            x = vgg.stage(x, number, trunk)
            if number <= 3:
                x, _ = max_pool_with_indices(x)
        for name, kernel_size, dilation in (("fc6", 7, 4), ("fc7", 1, 1)):
            x = block(x, self.fc_width, name, kernel_size, dilation)
            x = Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)
        return self._conv(x, 1, 1, 1, nn.initializers.normal(0.001), "final")

    def _context(self, x):
        large = self.context == "large"
        for name, dilation, multiple in CONTEXT:
            features = multiple if large else 1
            init = identity(self.num_classes, self.noise / features)
            x = self._conv(x, features, 3, dilation, init, name, relu=True)
        return self._conv(x, 1, 1, 1, identity(self.num_classes, self.noise), "ctx_final")

    def _conv(self, x, multiple, kernel_size, dilation, init, name, relu=False):
        return Conv(
            multiple * self.num_classes,
            kernel_size,
            dilation=dilation,
            relu=relu,
            kernel_init=init,
            dtype=self.dtype,
            name=name,
        )(x)


def identity(num_classes: int, noise: float) -> nn.initializers.Initializer:
    """Return an initializer of a context layer as the identity (the paper's equations 4 and 5).

    Map a of c_in belongs to class floor(a K / c_in), and b of c_out likewise. The center of the
    kernel from a to b is K / c_out where both are of one class, so that the sum over the maps of
    each class is kept; everything else is N(0, noise^2).

    Args:
      num_classes: K; both numbers of maps are multiples of it.
      noise: standard deviation.
    """

    def init(key, shape, dtype=jnp.float32):
        rows, columns, c_in, c_out = shape
        of_input = jnp.arange(c_in) * num_classes // c_in
        of_output = jnp.arange(c_out) * num_classes // c_out
        same = of_input[:, None] == of_output[None, :]
        kernel = noise * jax.random.normal(key, shape, dtype)
        center = kernel[rows // 2, columns // 2]
        kept = jnp.asarray(num_classes / c_out, dtype)
        return kernel.at[rows // 2, columns // 2].set(jnp.where(same, kept, center))

    return init
