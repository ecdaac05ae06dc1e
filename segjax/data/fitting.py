"""Fit images of any size and aspect into the resolution of a run (config field `data.fit`).

- resize: to the resolution, changing the aspect.
- letterbox: the whole image, its aspect kept, in the middle; the rest has the mean color of the
  training images and is VOID, which losses and metrics ignore.
- crop: the middle of the image, its aspect kept, as large as fits; the rest is cut off and never
  seen. `augment.scale` and `augment.crop` then draw random windows of it in training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def scaled_size(shape: Sequence[int], resolution: Sequence[int], fit: str) -> tuple[int, int]:
    """Return the (height, width) to resize an image of `shape` to, before `centered`."""
    height, width = resolution
    if fit == "resize":
        return height, width
    pick = min if fit == "letterbox" else max
    scale = pick(height / shape[0], width / shape[1])
    sides = (max(1, round(side * scale)) for side in shape[:2])
    # Rounding must not leave a row short of the resolution.
    rows, columns = (pick(side, whole) for side, whole in zip(sides, resolution, strict=True))
    return rows, columns


def centered(pixels: Any, size: Sequence[int], fill: Any) -> np.ndarray:
    """Return the middle of an array (H, W, ...) at a size (h, w), `fill` beyond its borders.

    An odd pixel is added to, or cut off, the bottom and the right. What it adds, it also takes
    away: `centered(centered(x, larger, fill), x.shape[:2], fill)` is x.
    """
    middle = np.empty((*size, *pixels.shape[2:]), pixels.dtype)
    middle[:] = fill
    to, of = [], []
    for side, own in zip(size, pixels.shape[:2], strict=True):
        gap, cut = max(side - own, 0) // 2, max(own - side, 0) // 2
        to.append(slice(gap, gap + min(side, own)))
        of.append(slice(cut, cut + min(side, own)))
    middle[tuple(to)] = pixels[tuple(of)]
    return middle
