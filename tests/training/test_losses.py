import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data import datasets
from segjax.errors import UserError
from segjax.training import losses
from segjax.training.losses import (
    SEGNET_CLASS_WEIGHTS,
    border_weights,
    class_weights,
    cross_entropy,
)

VOID = 255
SHAPE, CLASSES = (2, 3, 5), 4


def reference(logits, labels, weights, pixel_weights=None, normalizer=None):
    """Compute the formula in float64, pixel by pixel."""
    total, valid = 0.0, 0
    for at in np.ndindex(*labels.shape):
        if labels[at] >= logits.shape[-1]:
            continue
        valid += 1
        z = np.asarray(logits[at], np.float64)
        log_softmax = z - z.max() - np.log(np.exp(z - z.max()).sum())
        pixel = 1.0 if pixel_weights is None else float(pixel_weights[at])
        total -= pixel * float(weights[labels[at]]) * log_softmax[labels[at]]
    return total / (normalizer or max(valid, 1))


@pytest.fixture
def batch():
    """Draw logits, labels with void, and weights of classes and pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
    labels[rng.random(SHAPE) < 0.3] = VOID
    labels[0, 0, :2] = CLASSES, VOID  # the first value that is no class, and void
    return (
        rng.normal(0, 3, (*SHAPE, CLASSES)).astype(np.float32),
        labels,
        rng.uniform(0.1, 9, CLASSES).astype(np.float32),
        rng.uniform(0, 2, SHAPE).astype(np.float32),
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalizer", [None, 7.0])
def test_cross_entropy_is_the_formula(batch, weighted, normalizer):
    logits, labels, weights, pixel_weights = batch
    options = {
        "pixel_weights": pixel_weights if weighted else None,
        "normalizer": None if normalizer is None else jnp.float32(normalizer),
    }
    loss = jax.jit(cross_entropy)(logits, labels, weights, **options)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    options["normalizer"] = normalizer
    np.testing.assert_allclose(loss, reference(logits, labels, weights, **options), rtol=2e-6)


def test_two_pixels_by_hand():
    # -log softmax: log(1 + e^-1) = 0.313262 and log(1 + e^2) = 2.126928, weighted by 2 and 3, over
    # two valid pixels of three.
    logits = jnp.array([[1.0, 0.0], [2.0, 0.0], [5.0, -5.0]])
    loss = cross_entropy(logits, jnp.array([0, 1, VOID]), jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(loss, (2 * 0.3132617 + 3 * 2.1269280) / 2, rtol=1e-6)


def test_gradient(batch):
    logits, labels, weights, pixel_weights = batch
    gradient = jax.grad(cross_entropy)(logits, labels, weights, pixel_weights=pixel_weights)
    void = labels >= CLASSES
    np.testing.assert_array_equal(np.asarray(gradient)[void], 0)
    assert (np.abs(np.asarray(gradient)[~void]).max(-1) > 0).all()
    # v w (softmax(z) - onehot(y)) / N
    z = logits.astype(np.float64)
    softmax = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    target = np.where(void, 0, labels)
    weight = pixel_weights * weights[target] * ~void / (~void).sum()
    expected = weight[..., None] * (softmax - np.eye(CLASSES)[target])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[3e4, -3e4], [-3e4, 3e4]])
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.array([1, 1]), jnp.ones(2))
    assert loss == 3e4
    np.testing.assert_allclose(gradient, [[0.5, -0.5], [0, 0]], atol=1e-7)


def test_bfloat16_logits_are_summed_in_float32(batch):
    logits, labels, weights, _ = batch
    low = jnp.asarray(logits).astype(jnp.bfloat16)
    loss = cross_entropy(low, labels, weights)
    assert loss.dtype == jnp.float32
    expected = reference(np.asarray(low.astype(jnp.float32)), labels, weights)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)


COUNTS, PRESENT = (60, 30, 10), (100, 100, 40)


def test_no_weights_are_ones():
    weights = class_weights("none", COUNTS, PRESENT)
    np.testing.assert_array_equal(weights, np.ones(3, np.float32), strict=True)


def test_median_frequency_by_hand():
    # Frequencies 0.6, 0.3, 0.25: the median is 0.3.
    weights = class_weights("median_frequency", COUNTS, PRESENT)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [0.5, 1.0, 1.2], rtol=1e-6)


def test_median_frequency_of_an_even_number_of_classes():
    # 0.6, 0.3, 0.25, 0.1: half-way between 0.3 and 0.25.
    weights = class_weights("median_frequency", (60, 30, 10, 5), (100, 100, 40, 50))
    np.testing.assert_allclose(weights, 0.275 / np.array([0.6, 0.3, 0.25, 0.1]), rtol=1e-6)


def test_a_class_that_never_occurs():
    # It has no frequency, no part in the median, and no pixel that could use its weight.
    weights = class_weights("median_frequency", (60, 0, 30, 10), (100, 0, 100, 40))
    np.testing.assert_allclose(weights, [0.5, 0, 1.0, 1.2], rtol=1e-6)
    weights = class_weights("enet", (60, 0, 40), (100, 0, 100))
    np.testing.assert_allclose(weights[1], 1 / np.log(1.02), rtol=1e-6)


def test_median_frequency_of_camvid(camvid_data_dir):
    # Recomputed from the released labels of the training split, Sky to Bicyclist.
    train = datasets.info("camvid", data_dir=camvid_data_dir).splits["train"]
    weights = class_weights("median_frequency", train.pixel_counts, train.present_pixel_counts)
    expected = [
        *(0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217),
        *(3.8467, 1.9736, 0.7889, 6.3747, 8.8587),
    ]
    np.testing.assert_allclose(weights, expected, atol=5.1e-5, rtol=0)


def test_segnets_weights_are_the_published_ones():
    weights = class_weights("segnet", range(11), range(11))
    assert weights.dtype == np.float32
    assert weights.shape == (11,)
    # The prototxt's order is the label order: Sky, Building, Pole, Road, Pavement, Tree,
    # SignSymbol, Fence, Car, Pedestrian, Bicyclist.
    text = "0.2595 0.1826 4.5640 0.1417 0.9051 0.3826 9.6446 1.8418 0.6823 6.2478 7.3614"
    np.testing.assert_array_equal(weights, np.array(text.split(), np.float32))
    assert len(SEGNET_CLASS_WEIGHTS) == 11


def test_enet_by_hand():
    # 1 / ln(1.02 + p), p = 0.6, 0.3, 0.1.
    weights = class_weights("enet", COUNTS, PRESENT)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [2.072856, 3.601894, 8.823891], rtol=1e-6)


def test_segnets_weights_for_other_classes_are_refused():
    with pytest.raises(UserError, match="'segnet' is for CamVid's 11 classes, found 12"):
        class_weights("segnet", range(12), range(12))


def test_an_unknown_kind_is_refused():
    known = "none, median_frequency, segnet, enet"
    with pytest.raises(UserError, match=f"unknown loss.class_weights 'mean'; known: {known}$"):
        class_weights("mean", COUNTS, PRESENT)


@pytest.mark.parametrize("void", [-1, -100, CLASSES, VOID])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_labels_outside_the_classes_are_void(batch, name, void):
    logits, labels, weights, _ = batch
    expected, gradient = jax.value_and_grad(losses.loss, 1)(name, logits, labels, weights)
    other = np.where(labels < CLASSES, labels.astype(np.int32), void)
    found = jax.value_and_grad(losses.loss, 1)(name, logits, other, weights)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], gradient)


@pytest.mark.parametrize("void", [-1, -100, VOID])
def test_void_belongs_to_no_object_of_the_border_map(void):
    labels = np.zeros((9, 9), np.int32)
    labels[:3], labels[6:], labels[:, 4] = 1, 1, void
    weights = border_weights(labels, class_weights=(1.0, 2.0))
    as_uint8 = np.where(labels < 0, VOID, labels).astype(np.uint8)
    np.testing.assert_array_equal(weights, border_weights(as_uint8, class_weights=(1.0, 2.0)))
    np.testing.assert_array_equal(weights[:, 4], 0)
