"""Focal, Dice and Lovász losses against their formulas in float64, and the terms of all losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training.losses import LOSSES, cross_entropy, dice, focal, loss, lovasz, num_terms

VOID = 255
SHAPE, CLASSES = (3, 4, 5), 4


@pytest.fixture
def batch():
    """Draw logits, labels with void and a rare class, and class weights."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SHAPE).astype(np.uint8)
    labels[0][labels[0] == 2] = 1
    labels[rng.random(SHAPE) < 0.3] = VOID
    labels[1, 0, 0] = CLASSES  # the first value that is no class
    logits = rng.normal(0, 2, (*SHAPE, CLASSES)).astype(np.float32)
    return logits, labels, rng.uniform(0.1, 9, CLASSES).astype(np.float32)


@functools.cache
def compiled(name):
    """Return f(logits, labels, weights, normalizer=...) -> the loss and its gradient."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, name)))


def softmax(logits):
    z = np.asarray(logits, np.float64)
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def dice_reference(logits, labels, weights):
    """Compute (2 sum p t + 2) / (sum p + sum t + 2) of one image, by class over valid pixels."""
    valid = labels < CLASSES
    p, t = softmax(logits)[valid], np.eye(CLASSES)[labels[valid]]
    each = [
        1 - (2 * (p[:, c] @ t[:, c]) + 2) / (p[:, c].sum() + t[:, c].sum() + 2)
        for c in range(CLASSES)
    ]
    return np.average(each, weights=weights)


def lovasz_reference(logits, labels, weights):
    """Integrate the Jaccard loss of the errors above each threshold, of one image."""
    valid = labels < CLASSES
    p, truth = softmax(logits)[valid], labels[valid]
    each, used = [], []
    for c in range(CLASSES):
        if not (truth == c).any():
            continue
        errors = np.abs((truth == c) - p[:, c])
        total, former = 0.0, 0.0
        for level in np.sort(errors):
            wrong = errors >= level  # as long as the threshold is in (former, level]
            predicted = (truth == c) ^ wrong
            iou = (predicted & (truth == c)).sum() / (predicted | (truth == c)).sum()
            total += (level - former) * (1 - iou)
            former = level
        each.append(total)
        used.append(weights[c])
    return np.average(each, weights=used)


@pytest.mark.parametrize(
    ("function", "reference"), [(dice, dice_reference), (lovasz, lovasz_reference)]
)
def test_overlap_losses_are_their_formulas(function, reference, batch):
    logits, labels, weights = batch
    found = jax.jit(function)(logits, labels, weights)
    expected = [reference(*each, weights) for each in zip(logits, labels, strict=True)]
    assert (found.shape, found.dtype) == (SHAPE[:1], jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_is_cross_entropy_weighted_by_the_error(batch):
    logits, labels, weights = batch
    valid = labels < CLASSES
    p = softmax(logits)[valid][np.arange(valid.sum()), labels[valid]]
    expected = (weights[labels[valid]] * (1 - p) ** 2 * -np.log(p)).sum() / valid.sum()
    np.testing.assert_allclose(compiled("focal")(*batch)[0], expected, rtol=1e-5)
    pixels = np.random.default_rng(1).uniform(0, 2, SHAPE).astype(np.float32)
    expected = (pixels[valid] * weights[labels[valid]] * (1 - p) ** 2 * -np.log(p)).sum() / 7
    options = {"pixel_weights": pixels, "normalizer": jnp.float32(7)}
    np.testing.assert_allclose(jax.jit(focal)(*batch, **options), expected, rtol=1e-5)


def test_focal_of_two_classes_is_optaxs_of_one_logit():
    z = jnp.linspace(-20, 20, 41)
    logits = jnp.stack([jnp.zeros_like(z), z], -1)[None, None]
    for truth in (0, 1):
        labels = jnp.full((1, 1, 41), truth, jnp.uint8)
        expected = jax.jit(optax.losses.sigmoid_focal_loss)(z, jnp.full(41, float(truth)))
        found, _ = compiled("focal")(logits, labels, jnp.ones(2))
        np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_has_loss_0_and_the_worst_a_large_one(name, batch):
    _, labels, weights = batch
    truth = 40 * jax.nn.one_hot(jnp.minimum(labels, CLASSES).astype(jnp.int32), CLASSES)
    good, bad = (float(compiled(name)(z, labels, weights)[0]) for z in (truth, -truth))
    assert 0 <= good < 1e-6
    assert bad > 0.5


def test_lovasz_of_hard_predictions_is_one_minus_iou():
    # Class 0: 2 of 4 in both, class 1: 2 of 4 in both, of one image; all right in the other.
    labels = jnp.array([[[0, 0, 0, 1, 1, 1]], [[0, 0, 0, 1, 1, VOID]]], jnp.uint8)
    answers = jnp.array([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]])
    logits = 100 * jax.nn.one_hot(answers, 2)[:, None]
    found = jax.jit(lovasz)(logits, labels, jnp.ones(2))
    np.testing.assert_allclose(found, [0.5, 0], atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences_and_void_has_none(name, batch):
    logits, labels, weights = batch
    value, gradient = compiled(name)(logits, labels, weights)
    gradient = np.asarray(gradient)
    void = labels >= CLASSES
    np.testing.assert_array_equal(gradient[void], 0)
    assert (np.abs(gradient[~void]).max(-1) > 0).all()
    rng = np.random.default_rng(1)
    for _ in range(4):
        direction = rng.normal(size=logits.shape).astype(np.float32)
        direction *= 0.02
        ahead, behind = (
            float(compiled(name)(z, labels, weights)[0])
            for z in (logits + direction, logits - direction)
        )
        size = 2 * np.abs(gradient * direction).sum()
        assert ahead - behind == pytest.approx(
            2 * (gradient * direction).sum(), abs=0.01 * float(size)
        )
    other = np.where(void[..., None], 100 - logits, logits)
    np.testing.assert_array_equal(compiled(name)(other, labels, weights)[0], value)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_with_the_whole_batchs_divisor_add_up(name, batch):
    logits, labels, weights = batch
    labels = np.concatenate([labels, np.full_like(labels[:1], VOID)])  # one image without a term
    logits = np.concatenate([logits, logits[:1]])
    total = num_terms(name, jnp.asarray(labels), CLASSES)
    assert total.dtype == jnp.float32
    assert float(total) == ((labels < CLASSES).sum() if name in ("cross_entropy", "focal") else 3)
    parts = [
        compiled(name)(logits[k : k + 1], labels[k : k + 1], weights, normalizer=total)[0]
        for k in range(4)
    ]
    whole, _ = compiled(name)(logits, labels, weights)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
    assert parts[3] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_no_valid_pixel_is_zero_with_zero_gradient(name, batch):
    logits, labels, weights = batch
    labels = np.full_like(labels, VOID)
    value, gradient = compiled(name)(logits, labels, weights)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_and_extreme_logits_stay_finite_in_float32(name, batch):
    _, labels, weights = batch
    extreme = jnp.asarray(np.random.default_rng(2).choice([-3e4, 0, 3e4], (*SHAPE, CLASSES)))
    for dtype in (jnp.bfloat16, jnp.float32):
        logits = extreme.astype(dtype)
        value, gradient = compiled(name)(logits, labels, weights)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient.astype(jnp.float32))).all()


def test_cross_entropy_by_name_is_itself(batch):
    options = {"pixel_weights": jnp.full(SHAPE, 2.0), "normalizer": jnp.float32(3)}
    np.testing.assert_array_equal(
        loss("cross_entropy", *batch, **options), cross_entropy(*batch, **options)
    )
