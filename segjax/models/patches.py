"""Classification of the center pixel of a patch: Ciresan, Giusti, Gambardella, Schmidhuber (2012).

"Deep neural networks segment neuronal membranes in electron microscopy images". Before networks
were fully convolutional, a window slid over the image, and a classifier of images labeled its
center. The default is the paper's largest network, N4: a window of 95x95, four levels of
convolution and 2x2 max pooling, 200 fully connected units.

It trains on patches, and labels whole images fully convolutionally with the same weights: where the
window moves by one pixel, a pool of stride 2 must be taken at every offset, so it gets stride 1 and
all layers after it are dilated by 2 more ("Fast image scanning", Giusti et al., arXiv 1302.1700,
cuts the maps into fragments instead). Beyond the border the image is mirrored.

Deviations:

- RGB images and K classes, not gray ones and two.
- ReLU, and He et al.'s initialization.
- No foveation, no nonuniform sampling of the window, no mean of several networks, no calibration.
- Patches are drawn uniformly from the labeled pixels, and not balanced between the classes;
  `loss.class_weights` does that.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.models.layers import Conv, ConvBlock
from segjax.models.options import Positive, Positives
from segjax.ops.padding import mirror
from segjax.ops.pooling import max_pool

LAST = 3  # side of the maps that the first fully connected layer sees


class PatchCNN(nn.Module):
    """Classify the centers of patches in training, and all pixels of images at inference.

    In training, patches (N, P, P, C), P = `patch_size`, to float32 logits (N, 1, 1, K); the center
    is pixel (P // 2, P // 2). At inference, images (B, H, W, C) to (B, H, W, K). 222,635 parameters
    at 11 classes. Parameters: conv{level}, fc1 and fc2.
    """

    num_classes: int
    kernel_sizes: Positives = (4, 5, 4, 4)  # pixels, of each level; a 2x2 pool ends a level
    width: Positive = 48  # features of every level
    fc_width: Positive = 200  # units of the fully connected layer
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def patch_size(self) -> int:
        """Side of the window in pixels, such that no pool drops a row or column."""
        side = LAST
        for kernel_size in reversed(self.kernel_sizes):
            side = 2 * side + kernel_size - 1
        return side

    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        return self.classify(image) if train else self.label(image)

    def classify(self, patches: jax.Array) -> jax.Array:
        """Classify the centers of patches: (N, P, P, C) to float32 logits (N, 1, 1, K).

        Raises:
          UserError: the patches have another size.
        """
        side = self.patch_size
        if patches.shape[1:3] != (side, side):
            raise UserError(
                f"patch_cnn trains on patches of {side}x{side} (data.patches), "
                f"found {patches.shape[1]}x{patches.shape[2]}"
            )
        return self._layers(patches, dense=False)

    def label(self, image: jax.Array) -> jax.Array:
        """Classify all pixels at once: (B, H, W, C) to float32 logits (B, H, W, K)."""
        side = self.patch_size
        return self._layers(mirror(image, side // 2, (side - 1) // 2), dense=True)

    @nn.compact
    def _layers(self, x, dense):
        def block(x, features, kernel_size, dilation, name):
            return ConvBlock(
                features,
                kernel_size,
                dilation=dilation,
                padding=0,
                batch_norm=False,
                dtype=self.dtype,
                name=name,
            )(x, train=False)

        x, dilation = x.astype(self.dtype), 1
        for level, kernel_size in enumerate(self.kernel_sizes, start=1):
            x = block(x, self.width, kernel_size, dilation, f"conv{level}")
            if dense:
                x = _max_of_neighbors(x, dilation)
                dilation *= 2
            else:
                x = max_pool(x, 2, 2)
        x = block(x, self.fc_width, LAST, dilation, "fc1")
        x = Conv(self.num_classes, 1, dtype=self.dtype, name="fc2")(x)
        return x.astype(jnp.float32)


def _max_of_neighbors(x, distance):
    """Apply 2x2 max pooling of stride 1 with `distance` between the taps."""
    x = jnp.maximum(x[:, :-distance], x[:, distance:])
    return jnp.maximum(x[:, :, :-distance], x[:, :, distance:])
