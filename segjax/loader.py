"""Batches as a function of (seed, step).

The images that step t trains on, and how each is augmented, follow from the seed and t alone, so
a resumed run sees what it would have seen. A set that fits is put on the device once, as uint8, and
each batch is gathered inside the training step; a larger one streams through grain, a few batches
ahead. Both give identical batches, whatever the number of devices.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from segjax.augment import Example, augment
from segjax.datasets import VOID, DatasetInfo
from segjax.ops.normalization import local_response_normalization

DEVICE_BYTES = 4 * 2**30  # a larger set streams

# What the one seed of an experiment is used for.
INITIALISATION, ORDER, AUGMENTATION, DROPOUT = range(4)

Raw = dict[str, np.ndarray]  # image uint8 (N, H, W, 3), label uint8 (N, H, W)


class Source(Protocol):
    """Examples by index, as `segjax.datasets.open_split` gives them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict: ...


def key(seed: int, use: int) -> jax.Array:
    """The random key of one use of an experiment's seed."""
    return jax.random.fold_in(jax.random.key(seed), use)


def batch_indices(
    seed: int, step: jax.Array | int, num_examples: int, batch_size: int
) -> jax.Array:
    """Which examples step `step` trains on: int32 (batch_size,).

    The examples come in epochs, each in a random order of its own and without a remainder: a batch
    may end one epoch and begin the next.
    """
    place = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    epoch, position = place // num_examples, place % num_examples
    epochs = epoch[0] + jnp.arange((batch_size - 2) // num_examples + 2, dtype=jnp.int32)
    orders = jax.vmap(lambda e: _epoch_order(seed, e, num_examples))(epochs)
    return orders[epoch - epoch[0], position]


def _epoch_order(seed, epoch, num_examples):
    return jax.random.permutation(jax.random.fold_in(key(seed, ORDER), epoch), num_examples)


def in_memory(source: Source) -> Raw:
    """The whole of a source as uint8 arrays on the host."""
    examples = [source[i] for i in range(len(source))]
    return {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}


def num_examples(examples: Raw | Source) -> int:
    """How many there are, in memory or not."""
    return len(examples["label"]) if isinstance(examples, dict) else len(examples)


def pick(examples: Raw | Source, places: Sequence[int]) -> Raw:
    """The examples at these places, as a raw batch."""
    if isinstance(examples, dict):
        return {name: x[places] for name, x in examples.items()}
    return in_memory([examples[place] for place in places])


def fits(info: DatasetInfo, split: str, placement: str) -> bool:
    """Whether a split is to lie in device memory (`data.placement`: device, stream or auto)."""
    height, width = info.resolution
    size = info.splits[split].num_images * height * width * 4
    return placement == "device" or (placement == "auto" and size <= DEVICE_BYTES)


def stream(
    source: Source, seed: int, batch_size: int, first_step: int, steps: int
) -> Iterator[Raw]:
    """The raw batches of `steps` steps from `first_step` on, read ahead by threads."""
    num_examples = len(source)

    @functools.lru_cache(maxsize=4)
    def order(epoch):
        return np.asarray(_epoch_order(seed, epoch, num_examples))

    def read(place):
        epoch, position = divmod(place, num_examples)
        example = source[int(order(epoch)[position])]
        return {"image": example["image"], "label": example["label"]}

    places = grain.MapDataset.range(first_step * batch_size, (first_step + steps) * batch_size)
    batches = places.map(read).batch(batch_size)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)))


def training_batch(
    raw: dict[str, jax.Array],
    seed: int,
    step: jax.Array,
    first: jax.Array | int,
    config: ConfigDict,
    info: DatasetInfo,
) -> Example:
    """Augments and normalises a raw batch, or a device's share of it, on the device.

    Args:
      raw: image uint8 (B, H, W, 3), label uint8 (B, H, W).
      seed: of the experiment.
      step: of the training.
      first: place of the first image in the step's whole batch; each image has a key of its own.
      config: of the experiment.
      info: of the data set.

    Returns:
      image, float32 (B, h, w, 3), and label, uint8 (B, h, w).
    """
    step_key = jax.random.fold_in(key(seed, AUGMENTATION), step)
    places = first + jnp.arange(raw["label"].shape[0], dtype=jnp.int32)
    keys = jax.vmap(lambda place: jax.random.fold_in(step_key, place))(places)
    fill = jnp.asarray(info.mean, jnp.float32)

    def one(image_key, example):
        example = {**example, "image": example["image"].astype(jnp.float32) / 255}
        return augment(image_key, example, config.augment, fill)

    batch = jax.vmap(one)(keys, raw)
    return {**batch, "image": normalize(batch["image"], config.data.normalization, info)}


def normalize(image: jax.Array, method: str, info: DatasetInfo) -> jax.Array:
    """Network input from float32 (..., 3) RGB in [0, 1].

    mean_std: minus the training set's mean, divided by its standard deviation. local_response: as
    SegNet-Basic, across the channels of values 0 to 255. none: as it is.
    """
    if method == "local_response":
        return local_response_normalization(image * 255)
    if method == "none":
        return image
    shape = (1,) * (image.ndim - 1) + (3,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (info.mean, info.std))
    return (image - mean) / std


def evaluation_batches(examples: Raw | Source, batch_size: int) -> Iterator[Raw]:
    """All examples in order; the ragged last batch is filled up with black images labelled VOID."""
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
