"""SegNet and SegNet-Basic: Badrinarayanan, Kendall, Cipolla, arXiv 1511.00561v3 (PAMI 2017).

Layer lists from the authors' Caffe files (`segnet_train.prototxt`, `segnet_basic_train.prototxt`).
The decoder upsamples by unpooling: values go back to where their maxima were in the encoder.

Deviations:

- Batch normalization keeps running averages (momentum 0.9) beside the authors' recomputation over
  the training set, which `segjax.inference.scoring.recompute_batch_norm` does after training.
- Its epsilon is 1e-5 and not 1e-9, below what float32 variances resolve.
- Its shift starts at 0 and not 0.001 (in the full Bayesian file it is 0).
- The local response normalization that opens SegNet-Basic is an input option of the loader
  (`data.normalization = "local_response"`) and not a layer, and sees RGB and not BGR.
- The decay of batch-normalization scales, and in SegNet-Basic of shifts, is left out:
  `segjax.training.optimizers` decays kernels alone.
- Images are normalized RGB; the authors' full SegNet sees BGR of 0 to 255.
- Pooling rounds odd sizes up, and unpooling crops to the size before the pool, at every level; the
  files say so only where 360x480 needs it.
- `width` scales every layer but the last; the papers' networks have 64.
- `upsampling` other than "unpool" is not the authors', but for ablations.

`dropout` makes them Bayesian SegNet and Bayesian SegNet-Basic: Kendall, Badrinarayanan, Cipolla,
arXiv 1511.02680, with dropout at the places of `bayesian_segnet_train.prototxt` and
`bayesian_segnet_basic_train.prototxt`. `segjax.inference.dropout` draws samples from them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.models import vgg
from segjax.models.layers import Conv, ConvBlock, ConvTranspose, Dropout, bilinear_diagonal
from segjax.models.options import Positive, Probability
from segjax.ops.pooling import max_pool_with_indices, max_unpool
from segjax.ops.upsampling import bed_of_nails, bilinear, nearest


class SegNet(nn.Module):
    """SegNet on the 13 convolutions of VGG16: image (B, H, W, C) to float32 logits (B, H, W, K).

    29,449,355 parameters at 11 classes. Parameters: conv{stage}_{n} and conv{stage}_{n}_D, as in
    the authors' files.
    """

    num_classes: int
    width: Positive = 64  # features of stage 1; stages 2 to 5 have 2, 4, 8 and 8 times that
    dropout: Probability = 0.0  # after pools 3 to 5, conv5_1_D, conv4_1_D and conv3_1_D
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        def block(x, multiple, name):
            return ConvBlock(
                multiple * self.width, 3, dtype=self.dtype, axis_name=self.axis_name, name=name
            )(x, train=train)

        x, pools = image.astype(self.dtype), []
        for number in range(1, 6):
            x = vgg.stage(x, number, block)
            shape = x.shape
            x, indices = max_pool_with_indices(x)
            pools.append((indices, shape))
            if number >= 3:
                x = Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)

        for number in range(5, 0, -1):
            depth, multiple = vgg.STAGES[number - 1]
            x = max_unpool(x, *pools[number - 1])
            for n in range(depth, 1, -1):
                x = block(x, multiple, f"conv{number}_{n}_D")
            if number > 1:  # the last convolution of a stage narrows to the stage above it
                x = block(x, vgg.STAGES[number - 2][1], f"conv{number}_1_D")
            if number >= 3:
                x = Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)
        x = Conv(self.num_classes, 3, dtype=self.dtype, name="conv1_1_D")(x)
        return x.astype(jnp.float32)


class BayesianSegNet(SegNet):
    """SegNet that drops half of its deeper features, in training and when it is sampled."""

    dropout: Probability = 0.5


class Level(NamedTuple):
    """The maps of one level of SegNet-Basic's encoder, for decoders to use."""

    encoded: jax.Array  # (B, H, W, width), before the pool
    pooled: jax.Array  # (B, ceil(H / 2), ceil(W / 2), width)
    indices: jax.Array  # of the maxima, uint8 like pooled


class Basic(nn.Module):
    """The encoder that the -Basic networks share: four levels of a 7x7 convolution and a 2x2 pool.

    Parameters: conv{level}, and those of what a decoder adds.
    """

    num_classes: int
    width: Positive = 64  # features of every level
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def encode(
        self, image: jax.Array, *, train: bool, drop: Callable[[jax.Array], jax.Array] | None = None
    ) -> list[Level]:
        """Return the levels from the image down; `drop` is applied after pools 3 and 4."""
        x, levels = image.astype(self.dtype), []
        for number in range(1, 5):
            x = encoded = self.block(x, f"conv{number}", train=train)
            x, indices = max_pool_with_indices(x)
            if drop and number >= 3:
                x = drop(x)
            levels.append(Level(encoded, x, indices))
        return levels

    def block(
        self, x: jax.Array, name: str, *, train: bool, relu: bool = True, groups: int = 1
    ) -> jax.Array:
        """Apply a 7x7 block of the network's width."""
        return ConvBlock(
            self.width,
            7,
            relu=relu,
            groups=groups,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name,
        )(x, train=train)

    def classify(self, x: jax.Array, name: str = "conv_classifier") -> jax.Array:
        """Apply a 1x1 convolution to the classes."""
        return Conv(self.num_classes, 1, dtype=self.dtype, name=name)(x)


Upsampling = Literal["unpool", "bed_of_nails", "nearest", "bilinear", "learnt"]


class SegNetBasic(Basic):
    """The small SegNet of the ablations: four 7x7 levels of equal width and a linear decoder.

    Image (B, H, W, C) to float32 logits (B, H, W, K). 1,416,587 parameters at 11 classes.
    Parameters: conv{level}, conv_decode{level} and conv_classifier, as in the authors' files.
    """

    dropout: Probability = 0.0  # after pools 3 and 4, conv_decode4 and conv_decode3
    # Of the decoder, before its convolutions. unpool: by the indices of the maxima; bed_of_nails:
    # at the top left of each window; nearest; bilinear; learnt: a learned transposed convolution of
    # 4x4 without bias, bilinear at first (upsample{level}).
    upsampling: Upsampling = "unpool"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        def drop(x):
            return Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)

        levels = self.encode(image, train=train, drop=drop)
        x = levels[-1].pooled
        for number in range(4, 0, -1):
            x = self._upsample(x, levels[number - 1], f"upsample{number}")
            x = self.block(x, f"conv_decode{number}", train=train, relu=False)
            if number >= 3:
                x = drop(x)
        return self.classify(x).astype(jnp.float32)

    def _upsample(self, x, level, name):
        shape = level.encoded.shape
        if self.upsampling == "unpool":
            return max_unpool(x, level.indices, shape)
        height, width = shape[1:3]
        if self.upsampling == "nearest":
            return nearest(x, (height, width))
        if self.upsampling == "bilinear":
            return bilinear(x, (height, width))
        if self.upsampling == "bed_of_nails":
            x = bed_of_nails(x, 2)
        else:
            x = ConvTranspose(
                self.width,
                kernel_size=4,
                stride=2,
                padding=1,
                use_bias=False,
                kernel_init=bilinear_diagonal,
                dtype=self.dtype,
                name=name,
            )(x)
        return x[:, :height, :width]  # an odd side has grown by one


class BayesianSegNetBasic(SegNetBasic):
    """SegNet-Basic that drops half of its deeper features, in training and when it is sampled."""

    dropout: Probability = 0.5
