"""Expected calibration error by hand and against a loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segjax.metrics import calibration

VOID = 255


def of_two(confidences):
    """Return probabilities of two classes, of which class 0 has these."""
    first = np.array(confidences, np.float32)
    return np.stack([first, 1 - first], -1)


def test_error_by_hand():
    # Ten pixels of confidence 0.9, of which 7 are right; five of 0.6, of which 4 are.
    probabilities = of_two([0.9] * 10 + [0.6] * 5 + [0.99])
    label = np.array([0] * 7 + [1] * 3 + [0] * 4 + [1] + [VOID])
    found = calibration.counts(label, probabilities)
    np.testing.assert_array_equal(found[13, :2], [10, 7])  # 0.9 is in (13/15, 14/15]
    np.testing.assert_array_equal(found[9, :2], [5, 4])  # float32(0.6) is just above 9/15
    assert found[:, 0].sum() == 15
    expected = (10 * abs(0.7 - 0.9) + 5 * abs(0.8 - 0.6)) / 15
    assert calibration.expected_error(found) == pytest.approx(expected, abs=1e-7)


def test_a_network_as_sure_as_it_is_right_has_no_error():
    probabilities = of_two([0.75] * 400)
    label = np.array([0, 0, 0, 1] * 100)
    assert calibration.expected_error(calibration.counts(label, probabilities)) == 0
    assert calibration.expected_error(calibration.counts(1 - label, probabilities)) == 0.5


def test_the_extremes_are_in_the_first_and_the_last_bin():
    probabilities = np.array([[1 + 1e-7, 0], [0, 0]], np.float32)
    found = calibration.counts(np.array([0, 1]), probabilities)
    np.testing.assert_array_equal(found[[0, -1]], [[1, 0, 0], [1, 1, 1]])


@settings(max_examples=50)
@given(
    hnp.arrays(np.float32, (4, 5, 3), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, VOID])),
)
def test_counts_equal_a_loop(probabilities, label):
    expected = np.zeros((15, 3))
    for own, truth in zip(probabilities.reshape(-1, 3), label.ravel(), strict=True):
        if truth != VOID:
            confidence = float(max(own))
            number = next((b for b in range(15) if confidence * 15 <= b + 1), 14)
            expected[number] += 1, list(own).index(max(own)) == truth, confidence
    found = calibration.counts(label, probabilities)
    np.testing.assert_array_equal(found[:, :2], expected[:, :2])
    np.testing.assert_allclose(found[:, 2], expected[:, 2], rtol=1e-14)
    error = calibration.expected_error(found)
    if (label == VOID).all():
        assert error is None
    else:
        parts = [abs(hits - sure) for number, hits, sure in expected if number]
        assert error == pytest.approx(math.fsum(parts) / np.sum(label != VOID), abs=1e-14)
