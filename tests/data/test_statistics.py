"""Counts over a split."""

import numpy as np
import pytest

from segjax.data.statistics import VOID, Tally, split_info


def test_counts_by_hand():
    tally = Tally(3)
    gray = np.full((2, 2, 3), 51, np.uint8)
    tally.add(gray, np.array([[0, 0], [1, VOID]], np.uint8), "a")
    tally.add(gray + np.uint8(102), np.array([[0, VOID], [VOID, VOID]], np.uint8), "b")
    counts = split_info(tally.to_metadata())
    assert counts.num_images == 2
    assert counts.pixel_counts == (3, 1, 0)
    assert counts.void_pixels == 4
    assert counts.present_pixel_counts == (8, 4, 0)
    np.testing.assert_allclose(counts.mean, [0.4] * 3)
    np.testing.assert_allclose(counts.std, [0.2] * 3)


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match="label value 3 with 3 classes"):
        Tally(3).add(np.zeros((1, 2, 3), np.uint8), np.array([[3, VOID]], np.uint8), "a")
