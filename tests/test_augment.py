"""Augmentations move image, label and weight together, and invent no label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import augment
from segjax.config import default
from segjax.datasets import VOID

FILL = jnp.array([0.5, 0.25, 0.125])


def coded(height, width):
    """An example in which each pixel's label, colour and weight all say where it was."""
    label = (np.arange(height * width) % 11).reshape(height, width)
    image = np.stack([label / 16, np.full_like(label, 0), label / 32], -1)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "label": jnp.asarray(label, jnp.uint8),
        "weight": jnp.asarray(label * 2, jnp.float32),
    }


def together(example):
    """Whether colour and weight still belong to the label at every pixel of the image."""
    label = np.asarray(example["label"])
    inside = label != VOID
    np.testing.assert_array_equal(np.asarray(example["weight"])[inside], label[inside] * 2.0)
    np.testing.assert_allclose(np.asarray(example["image"])[inside, 0], label[inside] / 16)
    return inside


def test_flip_mirrors_all_or_nothing():
    example = coded(3, 5)
    seen = set()
    for seed in range(8):
        flipped = augment.horizontal_flip(jax.random.key(seed), example)
        together(flipped)
        same = np.array_equal(flipped["label"], example["label"])
        mirrored = np.array_equal(flipped["label"], example["label"][:, ::-1])
        assert same != mirrored
        seen.add(same)
    assert seen == {True, False}


def test_crop_at_scale_one_is_a_window_of_the_image():
    example = coded(9, 13)
    corners = set()
    for seed in range(20):
        key = jax.random.key(seed)
        cut = augment.scale_and_crop(key, example, (1.0, 1.0), (9, 13), FILL)
        for name in example:
            np.testing.assert_allclose(cut[name], example[name], atol=1e-6)
        # With whole-pixel places only does a window copy pixels; the label always does.
        window = np.asarray(augment.scale_and_crop(key, example, (1.0, 1.0), (4, 6), FILL)["label"])
        found = [
            (i, j)
            for i in range(6)
            for j in range(8)
            if np.array_equal(window, example["label"][i : i + 4, j : j + 6])
        ]
        assert found
        corners.add(found[0])
    assert len(corners) > 5


def test_enlarging_by_two_repeats_labels_and_interpolates_colours():
    label = np.array([[0, 1], [2, 3]])
    example = {
        "image": jnp.asarray(np.stack([label] * 3, -1) / 4, jnp.float32),
        "label": jnp.asarray(label, jnp.uint8),
    }
    big = augment.scale_and_crop(jax.random.key(0), example, (2.0, 2.0), (4, 4), FILL)
    np.testing.assert_array_equal(big["label"], label.repeat(2, 0).repeat(2, 1))
    # Half-pixel centres: along a row 0 and 1/4 become 0, 1/16, 3/16, 1/4.
    np.testing.assert_allclose(big["image"][0, :, 0], [0, 1 / 16, 3 / 16, 1 / 4], atol=1e-6)


def test_what_lies_outside_is_void_of_weight_zero_and_filled():
    example = coded(8, 8)
    for seed in range(5):
        key = jax.random.key(seed)
        small = augment.scale_and_crop(key, example, (0.5, 0.5), (8, 8), FILL)
        outside = np.asarray(small["label"]) == VOID
        assert outside.sum() == 64 - 16
        assert np.all(np.asarray(small["weight"])[outside] == 0)
        np.testing.assert_array_equal(
            np.asarray(small["image"])[outside], np.tile(np.asarray(FILL), (outside.sum(), 1))
        )


@pytest.mark.parametrize("scales", [(0.5, 0.9), (0.7, 1.6), (1.5, 3.0)])
def test_scaling_never_makes_a_label_that_was_not_there(scales):
    label = jnp.asarray(np.random.default_rng(0).choice([3, 9, VOID], (12, 17)), jnp.uint8)
    example = {"image": jnp.zeros((12, 17, 3)), "label": label}
    for seed in range(5):
        key = jax.random.key(seed)
        out = augment.scale_and_crop(key, example, scales, (10, 10), FILL)
        assert set(np.unique(out["label"])) <= {3, 9, VOID}


def test_color_jitter_leaves_labels_and_range_alone():
    example = coded(4, 6)
    out = augment.color_jitter(jax.random.key(1), example, 0.5, 0.5, 0.5)
    np.testing.assert_array_equal(out["label"], example["label"])
    assert float(out["image"].min()) >= 0
    assert float(out["image"].max()) <= 1
    assert not np.allclose(out["image"], example["image"])
    same = augment.color_jitter(jax.random.key(1), example, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(same["image"], example["image"], atol=1e-6)


def test_color_jitter_of_one_kind_keeps_what_it_should():
    image = jax.random.uniform(jax.random.key(0), (6, 7, 3), minval=0.4, maxval=0.6)
    example = {"image": image, "label": jnp.zeros((6, 7), jnp.uint8)}
    luma = np.array(augment.LUMA)
    brighter = augment.color_jitter(jax.random.key(2), example, 0.3, 0.0, 0.0)["image"]
    ratio = np.asarray(brighter / image)
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-5)
    vivid = augment.color_jitter(jax.random.key(2), example, 0.0, 0.0, 0.3)["image"]
    np.testing.assert_allclose(np.asarray(vivid) @ luma, np.asarray(image) @ luma, rtol=1e-5)
    harder = augment.color_jitter(jax.random.key(2), example, 0.0, 0.3, 0.0)["image"]
    means = [(np.asarray(x) @ luma).mean() for x in (harder, image)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_augment_is_a_function_of_the_key_under_jit_and_vmap():
    config = default().augment
    with config.unlocked():
        config.update(flip=True, scale=(0.5, 2.0), crop=(6, 8), brightness=0.2)
    example = coded(12, 16)
    keys = jax.random.split(jax.random.key(0), 3)
    one = jax.jit(lambda key, example: augment.augment(key, example, config, FILL))
    batch = jax.tree.map(lambda x: jnp.stack([x] * 3), example)
    many = jax.vmap(lambda key, example: augment.augment(key, example, config, FILL))(keys, batch)
    for k, key in enumerate(keys):
        single = one(key, example)
        assert single["label"].shape == (6, 8)
        for name in example:
            np.testing.assert_allclose(many[name][k], single[name], atol=1e-5)
    assert not np.array_equal(many["label"][0], many["label"][1])
