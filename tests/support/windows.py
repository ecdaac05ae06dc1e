"""PatchCNN as a window that slides over an image, and what that costs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.models import patches
from segjax.ops.padding import mirror


def sliding_window(model: patches.PatchCNN, variables: Any, image: jax.Array) -> jax.Array:
    """Return the logits of all pixels, each from a patch of its own.

    Args:
      model: of the patches.
      variables: of the model.
      image: (B, H, W, C).

    Returns:
      float32 (B, H, W, K).
    """
    side = model.patch_size
    batch, height, width, channels = image.shape
    image = mirror(image, side // 2, (side - 1) // 2)
    columns = np.arange(width)[:, None] + np.arange(side)

    @jax.jit
    def label_row(variables, rows):
        windows = jnp.moveaxis(jnp.take(rows, columns, axis=2), 2, 1)
        windows = windows.reshape(batch * width, side, side, channels)
        logits = model.apply(variables, windows, method="classify")
        return logits.reshape(batch, width, model.num_classes)

    return jnp.stack([label_row(variables, image[:, y : y + side]) for y in range(height)], 1)


def macs(model: patches.PatchCNN, size: tuple[int, int]) -> tuple[int, int]:
    """Return the MACs that label an RGB image: by sliding window, and fully convolutionally."""
    height, width = size
    side = model.patch_size
    window = sum(layer_macs(model, (side, side), 3, dense=False))
    grown = (height + side - 1, width + side - 1)
    return height * width * window, sum(layer_macs(model, grown, 3, dense=True))


def layer_macs(
    model: patches.PatchCNN, size: tuple[int, int], channels: int, *, dense: bool
) -> Iterator[int]:
    """Yield the MACs of each convolution of a PatchCNN."""
    height, width = size
    dilation = 1
    levels = [(kernel_size, model.width, True) for kernel_size in model.kernel_sizes]
    levels += [(patches.LAST, model.fc_width, False), (1, model.num_classes, False)]
    for kernel_size, features, pooled in levels:
        height, width = (n - (kernel_size - 1) * dilation for n in (height, width))
        yield height * width * kernel_size**2 * channels * features
        channels = features
        if pooled and dense:
            height, width, dilation = height - dilation, width - dilation, 2 * dilation
        elif pooled:
            height, width = height // 2, width // 2
