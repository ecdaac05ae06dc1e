"""Batches as a function of (seed, step).

The images of step t and their augmentation follow from the seed and t alone, so a resumed run
sees the same data. A dataset that fits is put on the device once, as uint8, and each batch is
gathered inside the training step; a larger one streams through grain, up to 16 batches ahead. Both
give identical batches for any number of devices.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax.data.augment import Example, augment
from segjax.data.datasets import VOID, DatasetInfo
from segjax.errors import UserError
from segjax.ops.normalization import local_response_normalization
from segjax.ops.padding import mirror

DEVICE_BYTES = 4 * 2**30  # a larger dataset is streamed
WEIGHT_BYTES = 4 * 2**30  # more weights than this are computed again in each epoch

# Mean and standard deviation of ImageNet, RGB in [0, 1], on which VGG-16 was trained.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Seed = jax.Array | int

# Uses of an experiment's seed; each has a random key of its own.
INITIALIZATION, ORDER, AUGMENTATION, DROPOUT, PATCHES, SAMPLING = range(6)

# image uint8 (N, H, W, C), label uint8 (N, H, W), optionally weight float32 (N, H, W)
Raw = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by index, as `segjax.data.datasets.open_split` gives them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict: ...


class WeightedSource:
    """A source whose examples have a `weight`, float32 (H, W), kept up to `WEIGHT_BYTES`.

    The weight is augmented with its image; `training.losses` multiplies each pixel by it.
    """

    def __init__(self, source: Source, weigh: Callable[[np.ndarray], np.ndarray]):
        self._source, self._weigh = source, weigh
        self._weights: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        weight = self._weights.get(index)
        if weight is None:
            weight = self._weigh(example["label"])
            if (len(self._weights) + 1) * weight.nbytes <= WEIGHT_BYTES:
                self._weights[index] = weight
        return {**example, "weight": weight}


def key(seed: Seed, use: int) -> jax.Array:
    """Return the random key for one use of an experiment's seed, such as `ORDER`."""
    return jax.random.fold_in(jax.random.key(seed), use)


def batch_indices(
    seed: Seed, step: jax.Array | int, num_examples: int, batch_size: int
) -> jax.Array:
    """Return the indices of a step's examples: int32 (batch_size,).

    Each epoch has a random order of its own. No example is dropped: a batch may contain the end of
    one epoch and the start of the next.
    """
    place = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epoch, position = place // num_examples, place % num_examples
    epochs = epoch[0] + jnp.arange((batch_size - 2) // num_examples + 2, dtype=jnp.int32)
    orders = jax.vmap(lambda e: _epoch_order(seed, e, num_examples))(epochs)
    return orders[epoch - epoch[0], position]


def _epoch_order(seed, epoch, num_examples):
    return jax.random.permutation(jax.random.fold_in(key(seed, ORDER), epoch), num_examples)


def in_memory(source: Source) -> Raw:
    """Load a whole source into arrays on the host."""
    examples = [_arrays(source[i]) for i in range(len(source))]
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def _arrays(example):
    return {name: x for name, x in example.items() if name != "id"}


def num_examples(examples: Raw | Source) -> int:
    """Return the number of examples of arrays in memory or of a source."""
    return len(examples["label"]) if isinstance(examples, dict) else len(examples)


def pick(examples: Raw | Source, places: Sequence[int]) -> Raw:
    """Return the examples at these places as a raw batch."""
    if isinstance(examples, dict):
        return {name: x[places] for name, x in examples.items()}
    return in_memory([examples[place] for place in places])


def fits(info: DatasetInfo, split: str, placement: str, weighted: bool = False) -> bool:
    """Return whether to put a split in device memory (`data.placement`: device, stream or auto)."""
    height, width = info.resolution
    pixel = len(info.mean) + 1 + (4 if weighted else 0)  # bytes: channels, label and weight
    size = info.splits[split].num_images * height * width * pixel
    return placement == "device" or (placement == "auto" and size <= DEVICE_BYTES)


def stream(
    source: Source,
    seed: int,
    batch_size: int,
    first_step: int,
    steps: int,
    part: slice = slice(None),
) -> Iterator[Raw]:
    """Yield the raw batches of `steps` steps from `first_step`, or `part` of each; threads read."""
    import grain  # slow to import, and only needed here

    num_examples = len(source)
    mine = range(batch_size)[part]

    @functools.lru_cache(maxsize=4)
    def order(epoch):
        return np.asarray(_epoch_order(seed, epoch, num_examples))

    def read(number):
        step, place = divmod(number, len(mine))
        epoch, position = divmod(step * batch_size + mine[place], num_examples)
        return _arrays(source[int(order(epoch)[position])])

    numbers = grain.MapDataset.range(first_step * len(mine), (first_step + steps) * len(mine))
    batches = numbers.map(read).batch(len(mine))
    threads = min(max(4, os.cpu_count() or 4), 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16)
    return iter(batches.to_iter_dataset(options))


def training_batch(
    raw: dict[str, jax.Array],
    seed: Seed,
    step: jax.Array,
    first: jax.Array | int,
    config: ConfigDict,
    info: DatasetInfo,
) -> Example:
    """Augment and normalize a raw batch, or a device's share of it, on the device.

    Args:
      raw: image uint8 (B, H, W, C), label uint8 (B, H, W).
      seed: the experiment's seed.
      step: training step.
      first: place of the first image in the step's whole batch; each image has a key of its own.
      config: the experiment's config.
      info: the dataset.

    Returns:
      image, float32 (B, h, w, C), and label, uint8 (B, h, w).
    """
    keys = _image_keys(seed, AUGMENTATION, step, first, raw["label"].shape[0])
    fill = jnp.asarray(info.mean, jnp.float32)

    def one(image_key, example):
        example = {**example, "image": example["image"].astype(jnp.float32) / 255}
        return augment(image_key, example, config.augment, fill)

    batch = jax.vmap(one)(keys, raw)
    return {**batch, "image": normalize(batch["image"], config.data.normalization, info)}


def _image_keys(seed, use, step, first, count):
    step_key = jax.random.fold_in(key(seed, use), step)
    places = first + jnp.arange(count, dtype=jnp.int32)
    return jax.vmap(lambda place: jax.random.fold_in(step_key, place))(places)


def patch_batch(
    batch: Example,
    seed: Seed,
    step: jax.Array,
    first: jax.Array | int,
    count: int,
    size: int,
) -> Example:
    """Cut patches out of a training batch, each labeled by its pixel (size // 2, size // 2).

    The centers are drawn uniformly, with replacement, from the labeled pixels of each image.
    Beyond the border the image is mirrored. Patches of an image without a labeled pixel are VOID.

    Args:
      batch: from `training_batch`.
      seed: the experiment's seed.
      step: training step.
      first: place of the first image in the step's whole batch; each image has a key of its own.
      count: number of patches per image.
      size: side of a patch, in pixels.

    Returns:
      image (count B, size, size, C); label and, if present, weight of its center (count B, 1, 1).
    """
    images, height, width = batch["label"].shape

    def one(image_key, example):
        # Index the labeled pixels by their running count, so that no draw is rejected.
        counted = jnp.cumsum((example["label"] != VOID).astype(jnp.int32).ravel())
        drawn = jax.random.randint(image_key, (count,), 0, jnp.maximum(counted[-1], 1))
        place = jnp.searchsorted(counted, drawn, side="right").astype(jnp.int32)
        place = jnp.minimum(place, height * width - 1)
        image = mirror(example["image"], size // 2, (size - 1) // 2)
        shape = (size, size, image.shape[-1])

        def cut(place):
            return jax.lax.dynamic_slice(image, (place // width, place % width, 0), shape)

        centers = {name: x.ravel()[place] for name, x in example.items() if name != "image"}
        return {**jax.tree.map(lambda x: x[:, None, None], centers), "image": jax.vmap(cut)(place)}

    patches = jax.vmap(one)(_image_keys(seed, PATCHES, step, first, images), batch)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), patches)


def normalize(image: jax.Array, method: str, info: DatasetInfo) -> jax.Array:
    """Normalize a network's input, float32 (..., C) in [0, 1], RGB or gray.

    - mean_std: minus the mean of the training split, divided by its standard deviation, at least
      1/255.
    - imagenet: the same with ImageNet's mean and standard deviation, for pretrained weights.
    - local_response: across the channels, of values from 0 to 255, as in SegNet-Basic.
    - none: unchanged.

    Raises:
      UserError: the method is imagenet, but the images are not RGB.
    """
    if method == "local_response":
        return local_response_normalization(image * 255)
    if method == "none":
        return image
    least = 1 / 255  # a channel may be constant
    deviations = tuple(max(deviation, least) for deviation in info.std)
    statistics = IMAGENET if method == "imagenet" else (info.mean, deviations)
    channels = len(statistics[0])
    if image.shape[-1] != channels:
        raise UserError(
            f"data.normalization {method} needs {channels} channels, but the images of "
            f"{info.name} have {image.shape[-1]}"
        )
    shape = (1,) * (image.ndim - 1) + (channels,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(shape) for x in statistics)
    return (image - mean) / std


def evaluation_batches(examples: Raw | Source, batch_size: int) -> Iterator[Raw]:
    """Yield all examples in order; the last batch is padded with black images labeled VOID."""
    total = num_examples(examples)
    for start in range(0, total, batch_size):
        stop = min(start + batch_size, total)
        batch = pick(examples, range(start, stop))
        missing = batch_size - (stop - start)
        if missing:
            for name, value in (("image", 0), ("label", VOID)):
                padding = [(0, missing)] + [(0, 0)] * (batch[name].ndim - 1)
                batch[name] = np.pad(batch[name], padding, constant_values=value)
        yield batch
