"""Augmentations move image, label and weight together, and make no new labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax.config import default
from segjax.data import augment
from segjax.data.datasets import VOID

FILL = jnp.array([0.5, 0.25, 0.125])


def coded(height, width):
    """Return an example in which each pixel's label, color and weight encode its place."""
    label = (np.arange(height * width) % 11).reshape(height, width)
    image = np.stack([label / 16, np.full_like(label, 0), label / 32], -1)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "label": jnp.asarray(label, jnp.uint8),
        "weight": jnp.asarray(label * 2, jnp.float32),
    }


@functools.partial(jax.jit, static_argnames=("scales", "size"))
def scale_and_crop(key, example, scales, size):
    return augment.scale_and_crop(key, example, scales, size, FILL)


def deform(key, example, fill=FILL, **options):
    """Call `augment.deform`, compiled anew, so that patches of a test take effect."""
    return jax.jit(functools.partial(augment.deform, fill=fill, **options))(key, example)


def check_together(example):
    """Check that color and weight still match the label at every pixel of the image."""
    label = np.asarray(example["label"])
    inside = label != VOID
    np.testing.assert_array_equal(np.asarray(example["weight"])[inside], label[inside] * 2.0)
    np.testing.assert_allclose(np.asarray(example["image"])[inside, 0], label[inside] / 16)


def test_flip_mirrors_everything_or_nothing():
    example = coded(3, 5)
    seen = set()
    for seed in range(8):
        flipped = augment.horizontal_flip(jax.random.key(seed), example)
        check_together(flipped)
        same = np.array_equal(flipped["label"], example["label"])
        mirrored = np.array_equal(flipped["label"], example["label"][:, ::-1])
        assert same != mirrored
        seen.add(same)
    assert seen == {True, False}


def test_crop_at_scale_one_is_a_window_of_the_image():
    codes = np.arange(9 * 13).reshape(9, 13)
    example = {
        "image": jnp.asarray(np.stack([codes] * 3, -1) / 128, jnp.float32),
        "label": jnp.asarray(codes, jnp.uint8),
        "weight": jnp.asarray(codes, jnp.float32),
    }
    corners = set()
    for seed in range(60):
        key = jax.random.key(seed)
        cut = scale_and_crop(key, example, (1.0, 1.0), (9, 13))
        for name in example:
            np.testing.assert_allclose(cut[name], example[name], atol=1e-6)
        window = scale_and_crop(key, example, (1.0, 1.0), (4, 6))
        i, j = divmod(int(window["label"][0, 0]), 13)
        corners.add((i, j))
        for name in example:
            np.testing.assert_allclose(window[name], example[name][i : i + 4, j : j + 6], atol=1e-6)
    assert {i for i, _ in corners} == set(range(6))
    assert {j for _, j in corners} == set(range(8))


def test_enlarging_by_two_repeats_labels_and_interpolates_colors():
    label = np.array([[0, 1], [2, 3]])
    example = {
        "image": jnp.asarray(np.stack([label] * 3, -1) / 4, jnp.float32),
        "label": jnp.asarray(label, jnp.uint8),
    }
    big = scale_and_crop(jax.random.key(0), example, (2.0, 2.0), (4, 4))
    np.testing.assert_array_equal(big["label"], label.repeat(2, 0).repeat(2, 1))
    # Half-pixel centers: along a row 0 and 1/4 become 0, 1/16, 3/16, 1/4.
    np.testing.assert_allclose(big["image"][0, :, 0], [0, 1 / 16, 3 / 16, 1 / 4], atol=1e-6)


def test_the_outside_is_void_with_weight_zero_and_filled():
    example = coded(8, 8)
    for seed in range(5):
        small = scale_and_crop(jax.random.key(seed), example, (0.5, 0.5), (8, 8))
        outside = np.asarray(small["label"]) == VOID
        assert outside.sum() == 64 - 16
        assert np.all(np.asarray(small["weight"])[outside] == 0)
        np.testing.assert_array_equal(
            np.asarray(small["image"])[outside], np.tile(np.asarray(FILL), (outside.sum(), 1))
        )


@pytest.mark.parametrize("scales", [(0.5, 0.9), (0.7, 1.6), (1.5, 3.0)])
def test_scaling_never_makes_a_new_label(scales):
    label = jnp.asarray(np.random.default_rng(0).choice([3, 9, VOID], (12, 17)), jnp.uint8)
    example = {"image": jnp.zeros((12, 17, 3)), "label": label}
    for seed in range(5):
        out = scale_and_crop(jax.random.key(seed), example, scales, (10, 10))
        assert set(np.unique(out["label"])) <= {3, 9, VOID}


def test_displacements_pass_through_a_3x3_grid_of_random_vectors():
    fields = jax.jit(jax.vmap(lambda key: augment.displacements(key, (9, 13), 10.0)))(
        jax.random.split(jax.random.key(0), 200)
    )
    nodes = np.asarray(fields)[:, ::4, ::6]
    # 3,600 numbers: mean and standard deviation to a few hundredths of 10.
    assert abs(nodes.mean()) < 0.6
    assert nodes.std() == pytest.approx(10, rel=0.05)
    assert abs(np.corrcoef(nodes[:, 0, 0, 0], nodes[:, 0, 1, 0])[0, 1]) < 0.25
    # Between the nodes: Keys' cubic, with what lies outside the grid left out of its weights.
    x, t = nodes[0, :, 0, 1], 0.25
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = 1.5 * (1 - t) ** 3 - 2.5 * (1 - t) ** 2 + 1
    beyond = -0.5 * (2 - t) ** 3 + 2.5 * (2 - t) ** 2 - 4 * (2 - t) + 2
    expected = (near * x[0] + far * x[1] + beyond * x[2]) / (near + far + beyond)
    np.testing.assert_allclose(fields[0, 1, 0, 1], expected, rtol=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_shift_by_whole_pixels_moves_everything_together(mirror, monkeypatch):
    example = coded(8, 9)
    monkeypatch.setattr(augment.jax.random, "uniform", lambda key, shape, **_: moved[shape])
    moved = {(): jnp.float32(0), (2,): jnp.array([2.0, -3.0])}  # from two below and three left
    out = deform(jax.random.key(0), example, shift=3.0, mirror=mirror)
    padded = np.pad(np.asarray(example["label"]), 4, "reflect")
    expected = padded[4 + 2 : 4 + 2 + 8, 4 - 3 : 4 - 3 + 9]
    inside = np.pad(np.ones((6, 6), bool), ((0, 2), (3, 0)))
    if not mirror:
        expected = np.where(inside, expected, VOID)
        assert (np.asarray(out["weight"])[~inside] == 0).all()
        np.testing.assert_array_equal(np.asarray(out["image"])[~inside], np.tile(FILL, (36, 1)))
    np.testing.assert_array_equal(out["label"], expected)
    check_together(out)


def test_a_quarter_turn_is_rot90(monkeypatch):
    example = coded(7, 7)
    moved = {(): jnp.float32(np.pi / 2), (2,): jnp.zeros(2)}
    monkeypatch.setattr(augment.jax.random, "uniform", lambda key, shape, **_: moved[shape])
    out = deform(jax.random.key(0), example, rotation=90.0)
    turns = [np.rot90(np.asarray(example["label"]), k) for k in (1, 3)]
    assert sum(np.array_equal(out["label"], turn) for turn in turns) == 1
    k = 1 if np.array_equal(out["label"], turns[0]) else 3
    for name, x in example.items():
        np.testing.assert_allclose(out[name], np.rot90(np.asarray(x), k), atol=1e-5)


def test_a_deformation_is_bilinear_for_images_and_nearest_for_labels(monkeypatch):
    example = coded(8, 9)
    field = np.random.default_rng(0).uniform(-3, 3, (8, 9, 2)).astype(np.float32)
    monkeypatch.setattr(augment, "displacements", lambda *_: jnp.asarray(field))
    out = deform(jax.random.key(0), example, elastic=1.0, mirror=True)
    places = np.indices((8, 9)) + field.transpose(2, 0, 1)
    for channel in range(3):
        expected = ndimage.map_coordinates(
            np.asarray(example["image"])[..., channel], places, order=1, mode="mirror"
        )
        np.testing.assert_allclose(out["image"][..., channel], expected, atol=1e-5)
    for name in ("label", "weight"):
        expected = ndimage.map_coordinates(
            np.asarray(example[name]), places, order=0, mode="mirror"
        )
        np.testing.assert_array_equal(out[name], expected)


def test_a_deformation_by_zero_changes_nothing():
    example = coded(5, 7)
    out = deform(jax.random.key(0), example)
    for name, x in example.items():
        np.testing.assert_array_equal(out[name], x)


def test_deformations_keep_labels_and_differ_from_key_to_key():
    label = jnp.asarray(np.random.default_rng(0).choice([3, 9, VOID], (12, 17)), jnp.uint8)
    example = {"image": jnp.zeros((12, 17, 1)), "label": label}
    move = functools.partial(augment.deform, elastic=2.0, rotation=30.0, shift=3.0)
    move = jax.jit(functools.partial(move, fill=jnp.ones(1)))
    first, again, other = (move(jax.random.key(seed), example) for seed in (0, 0, 1))
    assert set(np.unique(first["label"])) == {3, 9, VOID}
    np.testing.assert_array_equal(first["label"], again["label"])
    assert not np.array_equal(first["label"], other["label"])
    assert (np.asarray(first["label"])[np.asarray(first["image"])[..., 0] == 1] == VOID).all()


def test_angles_and_shifts_stay_within_their_limits():
    # One bright pixel at the center of a large image follows the shift alone.
    image = jnp.zeros((41, 41, 1)).at[20, 20].set(1)
    example = {"image": image, "label": jnp.zeros((41, 41), jnp.uint8)}
    keys = jax.random.split(jax.random.key(0), 50)
    move = functools.partial(augment.deform, shift=6.0, fill=jnp.zeros(1))
    turned = jax.jit(jax.vmap(lambda key: move(key, example, rotation=180.0)))(keys)
    turned = turned["image"][..., 0]
    rows, columns = np.indices((41, 41)) - 20
    weight = np.asarray(turned) / np.asarray(turned).sum((1, 2), keepdims=True)
    distance = np.hypot((weight * rows).sum((1, 2)), (weight * columns).sum((1, 2)))
    assert 5 < distance.max() < 6 * np.sqrt(2) + 0.5
    line = jnp.zeros((41, 41, 1)).at[20].set(1)
    turn = functools.partial(augment.deform, rotation=10.0, fill=jnp.zeros(1))
    turned = jax.jit(jax.vmap(lambda key: turn(key, {**example, "image": line})))(keys)
    turned = turned["image"][..., 0]
    ends = np.asarray(turned)[:, :, -1].argmax(1) - 20  # 20 tan 10 degrees = 3.5
    assert 2 <= np.abs(ends).max() <= 4
    assert ends.min() < 0 < ends.max()


def test_gray_images_jitter_too():
    image = jax.random.uniform(jax.random.key(0), (6, 7, 1), minval=0.4, maxval=0.6)
    example = {"image": image, "label": jnp.zeros((6, 7), jnp.uint8)}
    out = augment.color_jitter(jax.random.key(2), example, 0.3, 0.3, 0.0)["image"]
    assert out.shape == image.shape
    assert np.corrcoef(np.ravel(out), np.ravel(image))[0, 1] > 0.999
    assert not np.allclose(out, image)


def test_color_jitter_leaves_labels_and_range_alone():
    example = coded(4, 6)
    out = augment.color_jitter(jax.random.key(1), example, 0.5, 0.5, 0.5)
    np.testing.assert_array_equal(out["label"], example["label"])
    assert float(out["image"].min()) >= 0
    assert float(out["image"].max()) <= 1
    assert not np.allclose(out["image"], example["image"])
    same = augment.color_jitter(jax.random.key(1), example, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(same["image"], example["image"], atol=1e-6)


def test_each_color_jitter_keeps_its_invariant():
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
        config.update(elastic=1.0, rotation=20.0, shift=2.0, outside="mirror")
    example = coded(12, 16)
    keys = jax.random.split(jax.random.key(0), 3)
    one = jax.jit(lambda key, example: augment.augment(key, example, config, FILL))
    batch = jax.tree.map(lambda x: jnp.stack([x] * 3), example)
    many = jax.jit(jax.vmap(lambda key, example: augment.augment(key, example, config, FILL)))(
        keys, batch
    )
    for k, key in enumerate(keys):
        single = one(key, example)
        assert single["label"].shape == (6, 8)
        for name in example:
            np.testing.assert_allclose(many[name][k], single[name], atol=1e-5)
    assert not np.array_equal(many["label"][0], many["label"][1])


def test_factors_are_drawn_from_their_whole_range():
    keys = jax.random.split(jax.random.key(0), 400)
    gray = {"image": jnp.full((1, 1, 3), 0.5), "label": jnp.zeros((1, 1), jnp.uint8)}
    brighter = jax.vmap(lambda key: augment.color_jitter(key, gray, 0.3, 0.0, 0.0)["image"])(keys)
    factors = np.asarray(brighter)[:, 0, 0, 0] / 0.5
    assert 0.70 - 1e-6 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.30 + 1e-6

    example = coded(1, 2)
    flip = jax.vmap(lambda key: augment.horizontal_flip(key, example)["label"])
    flipped = np.asarray(flip(keys))[:, 0, 0] != 0
    assert flipped.mean() == pytest.approx(0.5, abs=0.08)

    label = {"image": jnp.zeros((8, 8, 3)), "label": jnp.zeros((8, 8), jnp.uint8)}
    scaled = jax.vmap(lambda key: scale_and_crop(key, label, (0.5, 2.0), (17, 17))["label"])(keys)
    scales = np.sqrt((np.asarray(scaled) != VOID).sum((1, 2))) / 8
    assert scales.min() < 0.55
    assert scales.max() > 1.8
    assert abs(np.median(scales) - 1) < 0.1


def test_the_config_reaches_the_deformation():
    config = default().augment
    with config.unlocked():
        config.update(elastic=1.0, rotation=20.0, shift=2.0, outside="mirror")
    example, key = coded(12, 16), jax.random.key(3)
    found = jax.jit(lambda key, example: augment.augment(key, example, config, FILL))(key, example)
    options = {"elastic": 1.0, "rotation": 20.0, "shift": 2.0, "mirror": True}
    expected = deform(jax.random.split(key, 4)[3], example, **options)
    for name in example:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
