"""U-Net: Ronneberger, Fischer, Brox, arXiv 1505.04597 (MICCAI 2015).

Layer list from the paper's figure 1, names from the authors' released Caffe files (`phseg_v5`). An
encoder and a decoder of 3x3 convolutions without padding; each level of the decoder sees the
encoder's map of its resolution, cut to its size at the center and concatenated after its own.

Deviations:

- Between paper and release the paper is followed: no ReLU after an up-convolution, and the last one
  halves the channels too (the release keeps 128: 31,100,354 parameters).
- Dropout is where the release has it: after the last convolutions at 1/8 and 1/16 of the size, the
  former before the skip leaves. The paper says "at the end of the contracting path".
- The loss ends at a softmax over K classes for any K.
- Images of any size: the border is mirrored up to a size that the network takes, and the logits are
  cut to the image's own. The authors cut their images into tiles of one size for this, which gives
  the same logits.
- Up-convolutions start with He et al.'s deviation for all k k C inputs of the kernel. Each output
  has C of them, for which the paper's rule gives twice as much.
- `padding` "same" and `batch_norm` are what later users of the network changed; neither is in the
  paper.
- `width` scales every layer but the last; the paper's network has 64.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models.layers import Conv, ConvBlock, ConvTranspose, Dropout
from segjax.models.options import Positive, Probability
from segjax.ops.concatenation import concatenate
from segjax.ops.padding import mirror
from segjax.ops.pooling import max_pool

LEVELS = 4  # of pooling
MARGIN = 92  # pixels that convolutions without padding take from each side
STRIDE = 2**LEVELS  # pixels of the image between two of the deepest map


class UNet(nn.Module):
    """U-Net: image (B, H, W, C) to float32 logits (B, H, W, K).

    31,032,395 parameters for three channels and 11 classes, 31,030,658 for one and two. Parameters:
    conv_d{level}a-b, conv_d{level}b-c going down, upconv_{from}_{to}, conv_u{level}b-c and
    conv_u{level}c-d going up, conv_u0d-score.
    """

    num_classes: int
    width: Positive = 64  # features of the first level; each level below has twice those above
    # Of the convolutions: "valid" takes 92 pixels from each side, "same" takes none.
    padding: Literal["valid", "same"] = "valid"
    batch_norm: bool = False  # after each 3x3 convolution
    dropout: Probability = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        logits = self.unmirrored(_mirrored(image, self.padding), train=train)
        return _center(logits, image.shape)

    @nn.compact
    def unmirrored(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Apply the network alone; with padding "valid" (B, n, m, C) to (B, n - 184, m - 184, K).

        Raises:
          UserError: a side does not fit: it must be 12 mod 16 and at least 188 for "valid", a
            multiple of 16 for "same".
        """
        margin = _margin(self.padding)
        for side in image.shape[1:3]:
            if side != _size(side - 2 * margin, self.padding):
                raise UserError(
                    f"unet with padding {self.padding!r} is given an image of "
                    f"{image.shape[1]}x{image.shape[2]}, expected sides of "
                    + ("188, 204, 220, ..." if margin else "16, 32, 48, ...")
                )

        def block(x, level, name):
            return ConvBlock(
                2**level * self.width,
                3,
                batch_norm=self.batch_norm,
                padding=0 if margin else None,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)

        x, skips = image.astype(self.dtype), []
        for level in range(LEVELS + 1):
            if level:
                skips.append(x)
                x = max_pool(x, 2, 2)
            x = block(x, level, f"conv_d{level}a-b")
            x = block(x, level, f"conv_d{level}b-c")
            if level >= LEVELS - 1:
                x = Dropout(self.dropout, deterministic=not train, axis_name=self.axis_name)(x)

        source = f"d{LEVELS}c"
        for level in reversed(range(LEVELS)):
            x = ConvTranspose(
                2**level * self.width, 2, 2, dtype=self.dtype, name=f"upconv_{source}_u{level}a"
            )(x)
            x = concatenate([x, _center(skips.pop(), x.shape)])
            x = block(x, level, f"conv_u{level}b-c")
            x = block(x, level, f"conv_u{level}c-d")
            source = f"u{level}d"
        x = Conv(self.num_classes, 1, dtype=self.dtype, name="conv_u0d-score")(x)
        return x.astype(jnp.float32)


def _margin(padding):
    return MARGIN if padding == "valid" else 0


def _size(side, padding):
    """Return the least input size that gives at least `side` pixels."""
    # "valid" takes 4 pixels before each halving: of 12 mod 16 the halves come out even each time.
    least, rest = (4, 4) if padding == "valid" else (STRIDE, 0)
    return max(side + (rest - side) % STRIDE, least) + 2 * _margin(padding)


def _mirrored(image, padding):
    """Mirror the borders of an image up to a size that the network takes."""
    extra = [_size(side, padding) - side for side in image.shape[1:3]]
    before = (extra[0] // 2, extra[1] // 2)
    return mirror(image, before, (extra[0] - before[0], extra[1] - before[1]))


def _center(x, shape):
    """Crop x to the height and width of `shape` at its center."""
    height, width = shape[1:3]
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
