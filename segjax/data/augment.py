"""Augmentation of an image with its label and weight, on the device, from a random key.

An example is a dict of `image`, float32 (H, W, C) in [0, 1]; `label`, uint8 (H, W); and optionally
`weight`, float32 (H, W), the weight of each pixel in the loss. Use `jax.vmap` for a batch of them.
Labels and weights are only ever moved or resampled by nearest neighbor. Pixels from outside the
image are VOID and have weight 0, unless the image is mirrored there.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segjax.data.datasets import VOID

Example = dict[str, jax.Array]

LUMA = (0.299, 0.587, 0.114)  # Rec. 601

_OUTSIDE = {"label": VOID, "weight": 0}  # values beyond the image


def horizontal_flip(key: jax.Array, example: Example) -> Example:
    """Flip left and right with probability 1/2."""
    flip = jax.random.bernoulli(key)
    return {name: jnp.where(flip, x[:, ::-1], x) for name, x in example.items()}


def scale_and_crop(
    key: jax.Array,
    example: Example,
    scales: tuple[float, float],
    size: tuple[int, int],
    fill: jax.Array,
) -> Example:
    """Resize by a random factor and crop a random window.

    Args:
      key: random key.
      example: (H, W) pixels.
      scales: smallest and largest factor; the logarithm of the factor is uniform.
      size: (h, w) of the window. A resized image that is smaller lies at a random place in it; the
        rest is `fill`, VOID, with weight 0.
      fill: (C,), color outside the image.

    Returns:
      The example at (h, w): the image bilinear, antialiased when it shrinks, half-pixel centers;
      with both factors 1 a window of whole pixels.
    """
    scale_key, place_key = jax.random.split(key)
    low, high = jnp.log(jnp.asarray(scales, jnp.float32))
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
    place = jax.random.uniform(place_key, (2,))
    image, (height, width) = example["image"], example["label"].shape
    room = jnp.asarray(size, jnp.float32) - scale * jnp.asarray((height, width), jnp.float32)
    shift = place * room
    if scales == (1.0, 1.0):  # whole pixels, so that the window is cut, not interpolated
        shift = jnp.sign(room) * jnp.floor(place * (jnp.abs(room) + 1))

    row, row_inside = _nearest(size[0], height, scale, shift[0])
    column, column_inside = _nearest(size[1], width, scale, shift[1])
    inside = row_inside[:, None] & column_inside[None, :]
    resized = jax.image.scale_and_translate(
        image, (*size, image.shape[-1]), (0, 1), jnp.stack([scale, scale]), shift, method="linear"
    )
    moved = {"image": jnp.where(inside[..., None], resized, fill[None, None, :])}
    for name, outside in _OUTSIDE.items():
        if name in example:
            x = example[name]
            moved[name] = jnp.where(inside, x[row][:, column], jnp.asarray(outside, x.dtype))
    return moved


def _nearest(size, source_size, scale, shift):
    """Return, along one axis, the source pixel under each output pixel and whether there is one."""
    position = jnp.floor((jnp.arange(size, dtype=jnp.float32) + 0.5 - shift) / scale)
    inside = (position >= 0) & (position < source_size)
    return jnp.clip(position, 0, source_size - 1).astype(jnp.int32), inside


def displacements(key: jax.Array, shape: tuple[int, int], sd: float) -> jax.Array:
    """Draw a smooth field of displacement vectors, in pixels: float32 (H, W, 2), rows first.

    Both components are Gaussian at each node of a 3x3 grid, which spans the image from corner pixel
    to corner pixel, and bicubic between the nodes (U-Net, arXiv 1505.04597, section 3.1).

    Args:
      key: random key.
      shape: (H, W) in pixels.
      sd: standard deviation at the nodes, in pixels.
    """
    nodes = sd * jax.random.normal(key, (3, 3, 2))
    # Pixels between two nodes; the first node is at the first pixel.
    spacing = (jnp.asarray(shape, jnp.float32) - 1) / 2
    spacing = jnp.maximum(spacing, 1e-3)  # not 0 for a side of one pixel
    return jax.image.scale_and_translate(
        nodes, (*shape, 2), (0, 1), spacing, 0.5 - 0.5 * spacing, method="cubic", antialias=False
    )


def deform(
    key: jax.Array,
    example: Example,
    *,
    elastic: float = 0.0,
    rotation: float = 0.0,
    shift: float = 0.0,
    mirror: bool = False,
    fill: jax.Array,
) -> Example:
    """Deform elastically, rotate about the center, and shift, in one resampling.

    Args:
      key: random key.
      example: (H, W) pixels.
      elastic: standard deviation of the displacements in pixels, see `displacements`.
      rotation: largest angle in degrees; the angle is uniform, in either direction.
      shift: largest shift along each axis in pixels; uniform, in either direction.
      mirror: whether to mirror the image beyond its border (the edge pixels are not repeated).
      fill: (C,), without `mirror` the color outside, where labels are VOID and weights 0.

    Returns:
      The example at (H, W): the image bilinear, label and weight from the nearest pixel.
    """
    elastic_key, angle_key, shift_key = jax.random.split(key, 3)
    height, width = example["label"].shape
    grid = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    limit = math.radians(rotation)
    angle = jax.random.uniform(angle_key, (), minval=-limit, maxval=limit)
    moved = jax.random.uniform(shift_key, (2,), minval=-shift, maxval=shift)
    field = displacements(elastic_key, (height, width), elastic)
    down, right = grid[0] - (height - 1) / 2, grid[1] - (width - 1) / 2
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    # The place in the example that each new pixel is sampled from.
    row = (height - 1) / 2 + cosine * down - sine * right + moved[0] + field[..., 0]
    column = (width - 1) / 2 + sine * down + cosine * right + moved[1] + field[..., 1]

    inside = (row >= -0.5) & (row < height - 0.5) & (column >= -0.5) & (column < width - 0.5)
    keep = inside | mirror
    new = {"image": _bilinear(example["image"], row, column)}
    new["image"] = jnp.where(keep[..., None], new["image"], fill[None, None, :])
    rows, columns = (
        _mirrored(jnp.floor(place + 0.5).astype(jnp.int32), size)
        for place, size in ((row, height), (column, width))
    )
    for name, outside in _OUTSIDE.items():
        if name in example:
            x = example[name]
            new[name] = jnp.where(keep, x[rows, columns], jnp.asarray(outside, x.dtype))
    return new


def _bilinear(image, row, column):
    """Sample an image (H, W, C) at places (h, w) bilinearly, mirrored outside."""
    height, width = image.shape[:2]
    top, left = jnp.floor(row), jnp.floor(column)
    total = jnp.zeros((), image.dtype)
    for i in (0, 1):
        for j in (0, 1):
            rows = _mirrored((top + i).astype(jnp.int32), height)
            columns = _mirrored((left + j).astype(jnp.int32), width)
            share = jnp.abs(1 - i - (row - top)) * jnp.abs(1 - j - (column - left))
            total = total + share[..., None] * image[rows, columns]
    return total


def _mirrored(place, size):
    """Map places on an axis to places in [0, size), as np.pad(mode="reflect") does."""
    period = max(2 * size - 2, 1)
    return size - 1 - jnp.abs(size - 1 - place % period)


def color_jitter(
    key: jax.Array, example: Example, brightness: float, contrast: float, saturation: float
) -> Example:
    """Change brightness, contrast about the mean gray, and saturation about each pixel's gray.

    For each argument b a factor is uniform in [1 - b, 1 + b]; 0 changes nothing. The result is
    clipped to [0, 1].
    """
    image = example["image"]
    factors = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    amounts = jnp.asarray((brightness, contrast, saturation), jnp.float32)
    bright, contrasty, colorful = 1 + factors * amounts

    image = image * bright
    gray = _gray(image)
    image = gray + (image - gray) * colorful
    mean = jnp.mean(gray)
    image = mean + (image - mean) * contrasty
    return {**example, "image": jnp.clip(image, 0.0, 1.0)}


def _gray(image):
    if image.shape[-1] != 3:
        return jnp.mean(image, -1, keepdims=True)
    return jnp.sum(image * jnp.asarray(LUMA, jnp.float32)[None, None, :], -1, keepdims=True)


def augment(key: jax.Array, example: Example, config: ConfigDict, fill: jax.Array) -> Example:
    """Apply the augmentations of the `augment` part of a config, in a fixed order."""
    flip_key, crop_key, color_key, deform_key = jax.random.split(key, 4)
    color = (config.brightness, config.contrast, config.saturation)
    if any(color):
        example = color_jitter(color_key, example, *color)
    if config.elastic or config.rotation or config.shift:
        example = deform(
            deform_key,
            example,
            elastic=config.elastic,
            rotation=config.rotation,
            shift=config.shift,
            mirror=config.outside == "mirror",
            fill=fill,
        )
    if tuple(config.scale) != (1.0, 1.0) or tuple(config.crop):
        height, width = tuple(config.crop) or example["label"].shape
        example = scale_and_crop(crop_key, example, tuple(config.scale), (height, width), fill)
    if config.flip:
        example = horizontal_flip(flip_key, example)
    return example
