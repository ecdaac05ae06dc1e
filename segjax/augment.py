"""Augmentations: image, label and weight together, on the device, a pure function of a key.

An example is a dict of `image`, float32 (H, W, C) in [0, 1]; `label`, uint8 (H, W); and perhaps
`weight`, float32 (H, W), the weight of each pixel in the loss. Examples, not batches: vmap them.
Labels and weights are only ever moved or resampled by nearest neighbour; new pixels are VOID.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segjax.datasets import VOID

Example = dict[str, jax.Array]

LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def horizontal_flip(key: jax.Array, example: Example) -> Example:
    """Mirrors left and right, half of the time."""
    flip = jax.random.bernoulli(key)
    return {name: jnp.where(flip, x[:, ::-1], x) for name, x in example.items()}


def scale_and_crop(
    key: jax.Array,
    example: Example,
    scales: tuple[float, float],
    size: tuple[int, int],
    fill: jax.Array,
) -> Example:
    """Resizes by a random factor and cuts out a random window.

    Args:
      key: of the random numbers.
      example: (H, W) pixels.
      scales: the least and the greatest factor; its logarithm is uniform between theirs.
      size: (h, w) of the window. Where the resized image is smaller it lies at a random place in
        the window, and the rest is `fill`, VOID, and of weight 0.
      fill: (C,), the colour outside the image.

    Returns:
      The example at (h, w): the image bilinear, antialiased when it shrinks, half-pixel centres.
    """
    scale_key, place_key = jax.random.split(key)
    low, high = jnp.log(jnp.asarray(scales, jnp.float32))
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
    place = jax.random.uniform(place_key, (2,))
    image, (height, width) = example["image"], example["label"].shape
    shift = place * (
        jnp.asarray(size, jnp.float32) - scale * jnp.asarray((height, width), jnp.float32)
    )

    row, row_inside = _nearest(size[0], height, scale, shift[0])
    column, column_inside = _nearest(size[1], width, scale, shift[1])
    inside = row_inside[:, None] & column_inside[None, :]
    resized = jax.image.scale_and_translate(
        image, (*size, image.shape[-1]), (0, 1), jnp.stack([scale, scale]), shift, method="linear"
    )
    moved = {"image": jnp.where(inside[..., None], resized, fill[None, None, :])}
    for name, outside in (("label", VOID), ("weight", 0)):
        if name in example:
            x = example[name]
            moved[name] = jnp.where(inside, x[row][:, column], jnp.asarray(outside, x.dtype))
    return moved


def _nearest(size, source_size, scale, shift):
    """Along one axis: the source pixel under each output pixel, and whether there is one."""
    position = jnp.floor((jnp.arange(size, dtype=jnp.float32) + 0.5 - shift) / scale)
    inside = (position >= 0) & (position < source_size)
    return jnp.clip(position, 0, source_size - 1).astype(jnp.int32), inside


def color_jitter(
    key: jax.Array, example: Example, brightness: float, contrast: float, saturation: float
) -> Example:
    """Changes brightness, contrast about the mean grey, and colourfulness about each pixel's grey.

    Each argument b draws a factor uniform in [1 - b, 1 + b]; 0 leaves the image alone. The result
    is clipped to [0, 1].
    """
    image = example["image"]
    factors = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    amounts = jnp.asarray((brightness, contrast, saturation), jnp.float32)
    bright, contrasty, colourful = 1 + factors * amounts

    image = image * bright
    grey = _grey(image)
    image = grey + (image - grey) * colourful
    mean = jnp.mean(grey)
    image = mean + (image - mean) * contrasty
    return {**example, "image": jnp.clip(image, 0.0, 1.0)}


def _grey(image):
    return jnp.sum(image * jnp.asarray(LUMA, jnp.float32)[None, None, :], -1, keepdims=True)


def augment(key: jax.Array, example: Example, config: ConfigDict, fill: jax.Array) -> Example:
    """All that `config` (the `augment` part of an experiment's config) asks for, in fixed order."""
    flip_key, crop_key, color_key = jax.random.split(key, 3)
    color = (config.brightness, config.contrast, config.saturation)
    if any(color):
        example = color_jitter(color_key, example, *color)
    if tuple(config.scale) != (1.0, 1.0) or tuple(config.crop):
        height, width = tuple(config.crop) or example["label"].shape
        example = scale_and_crop(crop_key, example, tuple(config.scale), (height, width), fill)
    if config.flip:
        example = horizontal_flip(flip_key, example)
    return example
