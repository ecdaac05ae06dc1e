"""U-Net's weight map: by hand, against brute force, and in the loss."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax.data import loader
from segjax.training import losses
from segjax.training.losses import border_weights

VOID = 255


def brute_force(labels, w0, sigma, class_weights=None, background=0):
    """Compare every pixel with every pixel of every object."""
    expected = np.zeros(labels.shape)
    objects = []
    for value in set(labels.flat) - {VOID, background}:
        components, number = ndimage.label(labels == value)
        objects += [np.argwhere(components == n + 1) for n in range(number)]
    for at in np.ndindex(labels.shape):
        if labels[at] == VOID:
            continue
        distances = sorted(np.sqrt(((np.array(at) - o) ** 2).sum(1)).min() for o in objects)
        expected[at] = 1 if class_weights is None else class_weights[labels[at]]
        if len(distances) > 1:
            expected[at] += w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return expected


def test_a_gap_of_three_pixels_by_hand():
    # Two objects, 1 1 . . . 1 1: in the gap d1 + d2 is 1 + 3, 2 + 2, 3 + 1; at their inner edges
    # 0 + 4, at the outer ones 0 + 5.
    weights = border_weights(np.array([[1, 1, 0, 0, 0, 1, 1]]), w0=10, sigma=5)
    sums = np.array([5, 4, 4, 4, 4, 4, 5])
    np.testing.assert_allclose(weights[0], 1 + 10 * np.exp(-(sums**2) / 50), rtol=1e-6)
    assert (weights.shape, weights.dtype) == ((1, 7), np.float32)


def test_the_defaults_are_the_papers():
    labels = np.array([[1, 0, 0, 1]])
    np.testing.assert_array_equal(border_weights(labels), border_weights(labels, w0=10, sigma=5))


@pytest.mark.parametrize("sigma", [0.8, 2.0, 5.0])
@pytest.mark.parametrize("background", [0, 2, None])
def test_against_brute_force(sigma, background):
    rng = np.random.default_rng(0)
    coarse = rng.choice([0, 0, 1, 2, VOID], (5, 7), p=[0.3, 0.2, 0.2, 0.2, 0.1])
    labels = np.kron(coarse, np.ones((4, 4), int)).astype(np.uint8)[:, :-3]
    class_weights = [0.5, 2.0, 3.0]
    found = border_weights(labels, 7.0, sigma, class_weights=class_weights, background=background)
    expected = brute_force(labels, 7.0, sigma, class_weights, background)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found[labels == VOID] == 0).all()


def test_one_object_or_none_has_no_border_term():
    for labels in (np.zeros((4, 5), int), np.pad(np.ones((2, 2), int), 2)):
        np.testing.assert_array_equal(border_weights(labels), np.ones(labels.shape))


def test_objects_that_touch_at_a_corner_are_two():
    weights = border_weights(np.eye(2, dtype=int), w0=10, sigma=5)
    # Each pixel of the background lies beside both: 1 + 1. In an object: 0 + sqrt 2.
    expected = 1 + 10 * np.exp(-np.where(np.eye(2) == 1, 2, 4) / 50)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


class Slices:
    """Two images, and how often the weights of each were computed."""

    def __init__(self):
        self.weighed = []

    def __len__(self):
        return 2

    def __getitem__(self, index):
        label = np.full((3, 4), index, np.uint8)
        return {"image": np.zeros((3, 4, 1), np.uint8), "label": label, "id": str(index)}

    def weigh(self, label):
        self.weighed.append(int(label[0, 0]))
        return np.full(label.shape, 0.5 + label[0, 0], np.float32)


def test_a_weight_map_is_computed_once_and_moves_with_its_image():
    slices = Slices()
    source = loader.WeightedSource(slices, slices.weigh)
    data = loader.in_memory(source)
    assert set(data) == {"image", "label", "weight"}
    np.testing.assert_array_equal(data["weight"], data["label"] + np.float32(0.5), strict=True)
    for batch in loader.stream(source, 3, 2, 0, 4):
        np.testing.assert_array_equal(batch["weight"], batch["label"] + np.float32(0.5))
    assert sorted(slices.weighed) == [0, 1]
    picked = loader.pick(data, [1, 0, 1])
    np.testing.assert_array_equal(picked["weight"][:, 0, 0], [1.5, 0.5, 1.5])


def test_maps_that_memory_should_not_hold_are_computed_again(monkeypatch):
    slices = Slices()
    source = loader.WeightedSource(slices, slices.weigh)
    monkeypatch.setattr(loader, "WEIGHT_BYTES", 3 * 4 * 4)  # one map
    first, second = loader.in_memory(source), loader.in_memory(source)
    np.testing.assert_array_equal(first["weight"], second["weight"])
    assert slices.weighed == [0, 1, 1]


def test_the_map_weighs_the_loss_pixel_by_pixel():
    labels = np.array([[[1, 0, 0, 1]]])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 4, 2)), jnp.float32)
    weights = border_weights(labels[0], class_weights=[2.0, 3.0])[None]
    found = losses.loss("cross_entropy", logits, labels, jnp.ones(2), pixel_weights=weights)
    log_shares = logits - np.log(np.exp(np.asarray(logits)).sum(-1, keepdims=True))
    each = -np.take_along_axis(np.asarray(log_shares), labels[..., None], -1)[..., 0]
    sums = np.array([3, 3, 3, 3])  # d1 + d2: 0 + 3, 1 + 2, 2 + 1, 3 + 0
    by_hand = np.array([3, 2, 2, 3]) + 10 * np.exp(-(sums**2) / 50)
    np.testing.assert_allclose(found, (by_hand * each[0, 0]).sum() / 4, rtol=1e-5)
