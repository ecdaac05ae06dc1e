"""A batch depends only on (seed, step), for any placement of the data and number of devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.config import default
from segjax.data import datasets, loader
from segjax.data.datasets import VOID, DatasetInfo, SplitInfo

INFO = DatasetInfo(
    name="test",
    class_names=("a", "b"),
    palette=((0, 0, 0), (255, 255, 255)),
    mean=(0.5, 0.25, 0.125),
    std=(0.25, 0.5, 1.0),
    splits={},
    resolution=(4, 6),
)


batch_indices = jax.jit(loader.batch_indices, static_argnums=(0, 2, 3))


class Examples:
    """Ten examples whose pixels have the value of their index."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {
            "image": np.full((4, 6, 3), index, np.uint8),
            "label": np.full((4, 6), index, np.uint8),
            "id": str(index),
        }


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 23])
def test_every_epoch_has_every_example_once(batch_size):
    steps = 60
    stream = np.concatenate([batch_indices(7, step, 10, batch_size) for step in range(steps)])
    epochs = stream[: len(stream) // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_follows_from_seed_and_step_alone():
    for step in (0, 5, 1234):
        traced = batch_indices(3, jnp.int32(step), 10, 4)
        np.testing.assert_array_equal(traced, loader.batch_indices(3, step, 10, 4))
    orders = {tuple(np.asarray(loader.batch_indices(seed, 0, 10, 10))) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("first_step", [0, 4])
def test_streamed_and_resident_batches_are_identical(first_step):
    config = default()
    with config.unlocked():
        config.augment.update(flip=True, scale=(0.7, 1.5), brightness=0.3)
    examples = Examples()
    data = loader.in_memory(examples)
    prepare = jax.jit(
        lambda raw, step: loader.training_batch(raw, 11, step, 0, config, INFO),
    )
    streamed = loader.stream(examples, 11, 4, first_step, 5)
    count = 0
    for step, raw in enumerate(streamed, start=first_step):
        indices = np.asarray(loader.batch_indices(11, step, 10, 4))
        resident = loader.pick(data, indices)
        for name in raw:
            np.testing.assert_array_equal(raw[name], resident[name])
        one, other = prepare(raw, jnp.int32(step)), prepare(resident, jnp.int32(step))
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        count += 1
    assert count == 5


@pytest.mark.slow
def test_a_share_of_a_batch_is_augmented_as_in_the_whole():
    config = default()
    with config.unlocked():
        config.augment.update(flip=True, scale=(0.5, 2.0), contrast=0.5)
    rng = np.random.default_rng(0)
    raw = {
        "image": rng.integers(0, 256, (4, 8, 9, 3), np.uint8),
        "label": rng.integers(0, 2, (4, 8, 9), np.uint8),
    }
    whole = loader.training_batch(raw, 0, jnp.int32(3), 0, config, INFO)
    for first in (0, 2):
        share = {name: x[first : first + 2] for name, x in raw.items()}
        batch = loader.training_batch(share, 0, jnp.int32(3), first, config, INFO)
        for name in batch:
            np.testing.assert_allclose(batch[name], whole[name][first : first + 2], atol=1e-6)
    other = loader.training_batch(raw, 0, jnp.int32(4), 0, config, INFO)
    assert not np.array_equal(other["label"], whole["label"])


@functools.partial(jax.jit, static_argnames=("count", "size"))
def drawn_patches(batch, step=0, first=0, count=40, size=4):
    return loader.patch_batch(batch, 5, step, first, count, size)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_patch_lies_around_a_labeled_pixel(size):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    label = np.full((2, 5, 6), VOID, np.uint8)
    label[0, 0, 0], label[0, 4, 5], label[0, 2, 3], label[1, 1, 5] = 0, 1, 2, 3
    weight = rng.uniform(size=label.shape).astype(np.float32)
    batch = {
        "image": jnp.asarray(image),
        "label": jnp.asarray(label),
        "weight": jnp.asarray(weight),
    }
    patches = drawn_patches(batch, size=size)
    assert patches["image"].shape == (80, size, size, 3)
    assert patches["label"].shape == patches["weight"].shape == (80, 1, 1)
    margins = (size // 2, (size - 1) // 2)
    mirrored = np.pad(image, ((0, 0), margins, margins, (0, 0)), mode="reflect")
    for n in range(80):
        ((i, y, x),) = np.argwhere(label == patches["label"][n, 0, 0])
        assert i == n // 40
        np.testing.assert_array_equal(patches["image"][n], mirrored[i, y : y + size, x : x + size])
        np.testing.assert_array_equal(patches["weight"][n], weight[i, y, x])
    assert set(np.unique(patches["label"])) == {0, 1, 2, 3}


def test_labeled_pixels_are_drawn_uniformly_and_follow_from_the_step():
    label = np.arange(4 * 50, dtype=np.uint8).reshape(1, 10, 20)
    label[0, ::2] = VOID
    batch = {"image": jnp.zeros((1, 10, 20, 3)), "label": jnp.asarray(label)}
    labels = np.asarray(drawn_patches(batch, count=20_000, size=1)["label"]).ravel()
    counts = np.bincount(labels, minlength=256)[label[label != VOID]]
    assert counts.sum() == 20_000
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)
    again, other = (np.asarray(drawn_patches(batch, step)["label"]) for step in (0, 1))
    np.testing.assert_array_equal(again, drawn_patches(batch)["label"])
    assert not np.array_equal(again, other)


def test_a_share_of_a_batch_has_the_patches_of_the_whole():
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(4, 8, 9, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 2, (4, 8, 9)), jnp.uint8),
    }
    whole = drawn_patches(batch, 3, count=6)
    for first in (0, 2):
        share = drawn_patches({k: x[first : first + 2] for k, x in batch.items()}, 3, first, 6)
        for name in whole:
            np.testing.assert_array_equal(share[name], whole[name][6 * first : 6 * first + 12])


def test_an_image_without_a_label_gives_void_patches():
    batch = {"image": jnp.ones((1, 3, 4, 3)), "label": jnp.full((1, 3, 4), VOID, jnp.uint8)}
    np.testing.assert_array_equal(drawn_patches(batch)["label"], VOID)


def test_normalizations():
    image = jnp.array([[[0.0, 0.5, 1.0]]])
    np.testing.assert_allclose(loader.normalize(image, "mean_std", INFO), [[[-2, 0.5, 0.875]]])
    np.testing.assert_array_equal(loader.normalize(image, "none", INFO), image)
    constant = dataclasses.replace(INFO, std=(0.0, 0.5, 1.0))
    found = loader.normalize(image, "mean_std", constant)
    np.testing.assert_allclose(found, [[[-127.5, 0.5, 0.875]]])
    values = np.array([0, 127.5, 255])
    expected = values / (1 + 1e-4 / 5 * np.sum(values**2)) ** 0.75
    found = loader.normalize(image, "local_response", INFO)
    np.testing.assert_allclose(np.asarray(found)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("as_arrays", [True, False])
def test_evaluation_drops_nothing_and_pads_with_void(as_arrays):
    examples = Examples()
    batches = list(
        loader.evaluation_batches(loader.in_memory(examples) if as_arrays else examples, 4)
    )
    assert [batch["image"].shape for batch in batches] == [(4, 4, 6, 3)] * 3
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:10, 0, 0], np.arange(10))
    assert np.all(labels[10:] == VOID)


def test_a_dataset_is_streamed_if_it_does_not_fit():
    def info(num_images, channels=3):
        split = SplitInfo(num_images, (), 0, (), (), ())
        mean = (0.5,) * channels
        return DatasetInfo("big", (), (), mean, (), {"train": split}, (360, 480))

    # Of 4 GiB: 6,213 images of 360x480 with 3 bytes of color and 1 of label, half as many if each
    # pixel has a weight of 4 bytes or 7 channels.
    for number, channels, weighted in ((6213, 3, False), (3106, 3, True), (3106, 7, False)):
        assert loader.fits(info(number, channels), "train", "auto", weighted)
        assert not loader.fits(info(number + 1, channels), "train", "auto", weighted)
    assert loader.fits(info(100_000), "train", "device")
    assert not loader.fits(info(1), "train", "stream")


def test_a_prepared_dataset_loads_whole(scenes_data_dir):
    source = datasets.open_split(
        "streetscenes", "train", data_dir=scenes_data_dir, resolution=(24, 32)
    )
    data = loader.in_memory(source)
    assert data["image"].shape == (10, 24, 32, 3)
    np.testing.assert_array_equal(data["label"][7], source[7]["label"])
