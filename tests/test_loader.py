"""A batch follows from (seed, step), wherever the set lies and however many devices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import datasets, loader
from segjax.config import default
from segjax.datasets import VOID, DatasetInfo, SplitInfo

INFO = DatasetInfo(
    name="test",
    class_names=("a", "b"),
    palette=((0, 0, 0), (255, 255, 255)),
    mean=(0.5, 0.25, 0.125),
    std=(0.25, 0.5, 1.0),
    splits={},
    resolution=(4, 6),
)


class Examples:
    """Ten examples whose pixels all have the value of their index."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {
            "image": np.full((4, 6, 3), index, np.uint8),
            "label": np.full((4, 6), index, np.uint8),
            "id": str(index),
        }


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 23])
def test_epochs_show_every_example_once_without_a_remainder(batch_size):
    steps = 60
    stream = np.concatenate(
        [loader.batch_indices(7, step, 10, batch_size) for step in range(steps)]
    )
    epochs = stream[: len(stream) // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_follows_from_seed_and_step_alone():
    indices = jax.jit(loader.batch_indices, static_argnums=(0, 2, 3))
    for step in (0, 5, 1234):
        np.testing.assert_array_equal(
            indices(3, jnp.int32(step), 10, 4), loader.batch_indices(3, step, 10, 4)
        )
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


def test_normalisations():
    image = jnp.array([[[0.0, 0.5, 1.0]]])
    np.testing.assert_allclose(loader.normalize(image, "mean_std", INFO), [[[-2, 0.5, 0.875]]])
    np.testing.assert_array_equal(loader.normalize(image, "none", INFO), image)
    values = np.array([0, 127.5, 255])
    expected = values / (1 + 1e-4 / 5 * np.sum(values**2)) ** 0.75
    found = loader.normalize(image, "local_response", INFO)
    np.testing.assert_allclose(np.asarray(found)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("as_arrays", [True, False])
def test_evaluation_drops_nothing_and_fills_up_with_void(as_arrays):
    examples = Examples()
    batches = list(
        loader.evaluation_batches(loader.in_memory(examples) if as_arrays else examples, 4)
    )
    assert [batch["image"].shape for batch in batches] == [(4, 4, 6, 3)] * 3
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:10, 0, 0], np.arange(10))
    assert np.all(labels[10:] == VOID)


def test_a_set_streams_when_it_does_not_fit():
    def info(num_images):
        split = SplitInfo(num_images, (), 0, (), (), ())
        return DatasetInfo("big", (), (), (), (), {"train": split}, (360, 480))

    assert loader.fits(info(367), "train", "auto")
    assert not loader.fits(info(100_000), "train", "auto")
    assert loader.fits(info(100_000), "train", "device")
    assert not loader.fits(info(1), "train", "stream")


def test_a_prepared_set_loads_whole(scenes_data_dir):
    source = datasets.open_split(
        "streetscenes", "train", data_dir=scenes_data_dir, resolution=(24, 32)
    )
    data = loader.in_memory(source)
    assert data["image"].shape == (10, 24, 32, 3)
    np.testing.assert_array_equal(data["label"][7], source[7]["label"])
