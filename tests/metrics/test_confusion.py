from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segjax.metrics import (
    boundary_iou,
    calibration,
    confusion_matrix,
    count_pixels,
    mean_scores,
    per_image_mean_iou,
    scores,
)

VOID = 255
count = jax.jit(confusion_matrix, static_argnums=2)


def test_confusion_by_hand():
    labels = jnp.array([[0, 0, 1, 1], [1, VOID, 3, 0]], jnp.uint8)
    predictions = jnp.array([[0, 1, 1, 1], [0, 2, 1, 0]], jnp.uint8)
    expected = [
        [2, 1, 0, 0],
        [1, 2, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    for counted in (confusion_matrix(labels, predictions, 4), count(labels, predictions, 4)):
        assert counted.dtype == jnp.int32
        np.testing.assert_array_equal(counted, expected)


def test_labels_that_are_not_a_class_are_not_counted():
    labels = jnp.array([-1, 0, 1, 2, 3, 11, 254, VOID, 2**31 - 1, -(2**31)])
    predictions = jnp.ones(10, jnp.int32)
    counted = count(labels, predictions, 3)
    np.testing.assert_array_equal(counted, [[0, 1, 0], [0, 1, 0], [0, 1, 0]])


@settings(max_examples=50)
@given(
    hnp.arrays(np.int32, (2, 3, 4), elements=st.sampled_from([*range(5), 5, 6, VOID, -1])),
    hnp.arrays(np.int32, (2, 3, 4), elements=st.integers(0, 4)),
)
def test_confusion_equals_a_loop(labels, predictions):
    expected = np.zeros((5, 5), np.int64)
    for truth, prediction in zip(labels.flat, predictions.flat, strict=True):
        if 0 <= truth < 5:
            expected[truth, prediction] += 1
    np.testing.assert_array_equal(count(labels, predictions, 5), expected)
    known = np.where(labels < 0, VOID, labels)
    np.testing.assert_array_equal(count_pixels(known, predictions, 5), expected, strict=True)


def test_counts_are_exact_where_float32_is_not():
    # Of 25 million pixels one is void, one is of class 1 and one is wrong.
    labels, predictions = np.zeros((5000, 5000), np.int32), np.zeros((5000, 5000), np.int32)
    labels[4999, 4999], labels[17, 17], predictions[0, 0] = VOID, 1, 1
    assert int(np.float32(24_999_997)) != 24_999_997  # odd, and above 2^24
    np.testing.assert_array_equal(count(labels, predictions, 2), [[24_999_997, 1], [1, 0]])


def test_scores_by_hand():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [2, 0, 6]])
    found = scores(confusion)
    # Recall 6/8, 3/4, 6/8. Union: 8 + 9 - 6 = 11, 4 + 5 - 3 = 6, 8 + 6 - 6 = 8.
    assert found.global_accuracy == pytest.approx(15 / 20, abs=1e-15)
    assert found.class_accuracy == pytest.approx(0.75, abs=1e-15)
    assert found.mean_iou == pytest.approx((6 / 11 + 3 / 6 + 6 / 8) / 3, abs=1e-15)
    np.testing.assert_allclose(found.per_class_accuracy, [6 / 8, 3 / 4, 6 / 8], rtol=1e-15)
    np.testing.assert_allclose(found.per_class_iou, [6 / 11, 3 / 6, 6 / 8], rtol=1e-15)
    np.testing.assert_array_equal(found.present, [True] * 3)


def test_more_scores_by_hand():
    # Hits 6, 3, 6; truth 8, 4, 8; predicted 9, 5, 6.
    found = mean_scores(np.array([[6, 2, 0], [1, 3, 0], [2, 0, 6]]))
    assert found["dice"] == pytest.approx((12 / 17 + 6 / 9 + 12 / 14) / 3, abs=1e-15)
    assert found["precision"] == pytest.approx((6 / 9 + 3 / 5 + 6 / 6) / 3, abs=1e-15)
    weighted = (8 * 6 / 11 + 4 * 3 / 6 + 8 * 6 / 8) / 20
    assert found["frequency_weighted_iou"] == pytest.approx(weighted, abs=1e-15)
    assert found["mean_iou_present"] == pytest.approx((6 / 11 + 3 / 6 + 6 / 8) / 3, abs=1e-15)


def test_more_scores_of_absent_classes():
    # Class 1 is predicted but never there; class 2 is neither.
    found = mean_scores(np.array([[5, 3, 0], [0, 0, 0], [0, 0, 0]]))
    assert found["dice"] == pytest.approx(10 / 13 / 3, abs=1e-15)
    assert found["precision"] == pytest.approx(1 / 3, abs=1e-15)
    assert found["frequency_weighted_iou"] == found["mean_iou_present"] == 5 / 8
    assert set(mean_scores(np.zeros((3, 3), int)).values()) == {0.0}


def test_the_mean_over_images_by_hand():
    # IoU 3/4 and 2/3 of the classes in the first; 1/5 of the one in the second, whose class 0 is
    # only predicted; no labeled pixel in the third.
    images = np.array([[[3, 0], [1, 2]], [[0, 0], [4, 1]], [[0, 0], [0, 0]]])
    expected = ((3 / 4 + 2 / 3) / 2 + 1 / 5) / 2
    assert per_image_mean_iou(images) == pytest.approx(expected, abs=1e-15)
    assert per_image_mean_iou(images[2:]) is None


def test_an_absent_class_counts_zero_and_is_reported():
    # Class 1 is predicted but never there; class 2 is neither.
    found = scores(np.array([[5, 3, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(found.present, [True, False, False])
    np.testing.assert_array_equal(found.per_class_accuracy, [5 / 8, 0, 0])
    np.testing.assert_array_equal(found.per_class_iou, [5 / 8, 0, 0])
    assert found.global_accuracy == 5 / 8
    assert found.class_accuracy == pytest.approx(5 / 24, abs=1e-15)
    assert found.mean_iou == pytest.approx(5 / 24, abs=1e-15)


def test_nothing_counted_scores_zero():
    found = scores(np.zeros((3, 3), np.int32))
    assert (found.global_accuracy, found.class_accuracy, found.mean_iou) == (0, 0, 0)
    assert not found.present.any()


def test_scores_of_all_road_on_the_published_split_by_hand():
    # CamVid's test split, Sky to Bicyclist, all of it called Road (class 3): the score of a guess.
    pixels = [
        *(6870982, 9906732, 473895, 10390661, 3731857, 4530895),
        *(406612, 476807, 1599124, 255232, 76220),
    ]
    confusion = np.zeros((11, 11), np.int32)
    confusion[:, 3] = pixels
    found = scores(confusion)
    # G = IoU of Road = 10390661 / 38719017; C and mIoU are means over eleven.
    assert found.global_accuracy == pytest.approx(10390661 / 38719017, abs=1e-15)
    assert found.class_accuracy == pytest.approx(1 / 11, abs=1e-15)
    assert found.mean_iou == pytest.approx(10390661 / 38719017 / 11, abs=1e-15)
    assert round(100 * found.global_accuracy, 1) == 26.8
    assert round(100 * found.mean_iou, 1) == 2.4


def test_counts_beyond_int32():
    # Twice 2^31 - 1 of int32 counts: sums must not wrap.
    found = scores(np.full((2, 2), 2**31 - 1, np.int32))
    assert found.global_accuracy == 0.5
    np.testing.assert_allclose(found.per_class_iou, [1 / 3, 1 / 3], rtol=1e-15)


def test_scores_equal_octaves():
    # What a trained network says about real images: see golden/make_scores.py.
    with np.load(Path(__file__).parents[1] / "golden" / "scores.npz") as golden:
        labels, predictions = golden["labels"], golden["predictions"]
        expected = golden["scores"]
    assert (labels == VOID).any()
    assert len(np.unique(predictions)) == 11
    found = scores(count(jnp.asarray(labels), jnp.asarray(predictions), 11))
    made = [found.global_accuracy, found.class_accuracy, found.mean_iou]
    made += [*found.per_class_accuracy, *found.per_class_iou]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-9)


def test_negative_labels_are_void_on_the_host_and_the_device():
    labels, guesses = np.array([-1, 0, 1, 5, -100]), np.array([1, 0, 0, 1, 0])
    expected = [[1, 0], [1, 0]]
    np.testing.assert_array_equal(count_pixels(labels, guesses, 2), expected)
    found = confusion_matrix(jnp.asarray(labels), jnp.asarray(guesses), 2)
    np.testing.assert_array_equal(found, expected)
    counts = calibration.counts(labels, np.eye(2)[guesses])
    assert counts[:, 0].sum() == 2
    square = np.where(np.eye(6, dtype=bool), -1, 0)
    band = boundary_iou.counts(square, np.zeros((6, 6), int), 2)
    assert band[0, 0] == band[0, 1] == 28  # all but two are near the border or the void
