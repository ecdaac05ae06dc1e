"""Boundary IoU by hand, against distances to the contour, and what it must not hide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from segjax.metrics import boundary_iou

VOID = 255


def square(top, left, side, size=(30, 40)):
    """Return a map of class 1 in a square, class 0 around it; d = 1 at 30x40 (diagonal 50)."""
    label = np.zeros(size, np.uint8)
    label[top : top + side, left : left + side] = 1
    return label


def test_two_squares_by_hand():
    # The band of a square of 10 is its frame: 100 - 64 = 36 pixels. One column further right, the
    # frames share 9 pixels of the upper and of the lower side; the left and right sides are apart.
    found = boundary_iou.counts(square(10, 10, 10), square(10, 11, 10), 2)
    np.testing.assert_array_equal(found[1], [18, 2 * 36 - 18])
    assert boundary_iou.iou(found[None], np.array([True, True]))[1] == 18 / 54


def test_the_border_of_the_image_is_part_of_the_contour():
    # A square of 10 in the corner, and the whole image of class 0 but for it.
    found = boundary_iou.counts(square(0, 0, 10), square(0, 0, 10), 2)
    frame = 30 * 40 - 28 * 38 - (10 + 10 - 1)
    beside = 10 + 10 + 1  # pixels of class 0 that touch the square
    on_both = 2  # of these on the border of the image
    np.testing.assert_array_equal(found[:, 0], [frame + beside - on_both, 36])
    np.testing.assert_array_equal(found[:, 1], found[:, 0])


@pytest.mark.parametrize(("size", "distance"), [((30, 40), 1), ((360, 480), 12), ((3, 4), 1)])
def test_the_band_is_two_percent_of_the_diagonal_wide(size, distance):
    label = np.zeros(size, np.uint8)
    label[:, size[1] // 2 :] = 1
    found = boundary_iou.counts(label, label, 2)
    inner = max(0, size[0] - 2 * distance) * max(0, size[1] // 2 - 2 * distance)
    np.testing.assert_array_equal(found[0], [size[0] * (size[1] // 2) - inner] * 2)


@settings(max_examples=60)
@given(
    hnp.arrays(np.uint8, (9, 70), elements=st.sampled_from([0, 1, 2, VOID])),
    hnp.arrays(np.uint8, (9, 70), elements=st.integers(0, 2)),
    st.integers(1, 6),
)
def test_counts_equal_those_by_distances(label, guess, side):
    label, guess = (x.repeat(side, 0).repeat(side, 1) for x in (label, guess))
    guess = np.roll(label, 1, 1) if side > 3 else guess
    distance = max(1, round(0.02 * float(np.hypot(*label.shape))))
    found = boundary_iou.counts(label, guess, 3)
    for k in range(3):
        bands = []
        for mask in (label == k, (guess == k) & (label != VOID)):
            # Distance of each pixel to the nearest one outside, of which the frame is part.
            apart = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
            bands.append((apart > 0) & (apart <= distance))
        expected = np.sum(bands[0] & bands[1]), np.sum(bands[0] | bands[1])
        np.testing.assert_array_equal(found[k], expected)


def test_the_interior_hides_no_rough_outline():
    label, guess = square(20, 20, 200, (300, 400)), square(25, 25, 190, (300, 400))
    iou = (190 / 200) ** 2
    found = boundary_iou.iou(boundary_iou.counts(label, guess, 2)[None], np.array([True, True]))
    assert iou > 0.9
    assert found[1] < 0.4


def test_void_belongs_to_no_mask():
    label = square(10, 10, 10)
    label[:, 20:] = VOID
    # A prediction that is right where there is a label scores 1, whatever it says of the void.
    guess = np.where(label == VOID, 1, label)
    found = boundary_iou.counts(label, guess, 2)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_pixels_are_summed_over_images_and_absent_classes_do_not_count():
    counts = np.array([[[3, 4], [0, 5], [0, 0]], [[1, 4], [0, 0], [0, 0]]])
    found = boundary_iou.iou(counts, np.array([True, False, False]))
    np.testing.assert_array_equal(found, [4 / 8, np.nan, np.nan])
    assert boundary_iou.iou(counts, np.array([True, True, False]))[1] == 0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"the label is \(3, 4\), the prediction \(4, 3\)"):
        boundary_iou.counts(np.zeros((3, 4), int), np.zeros((4, 3), int), 2)
