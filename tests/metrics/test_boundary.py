"""BF: against optimal assignment by brute force, and worked examples at CamVid's size."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segjax.metrics import boundary

VOID = 255
SIZE = (360, 480)  # diagonal 600 pixels, tolerance 4.5


def brute_force(ours, theirs, distance):
    """Count the most pairs by trying every free partner of each pixel, and none."""
    theirs = [tuple(place) for place in np.argwhere(theirs)]

    def most(left, free):
        if not left:
            return 0
        first, *rest = left
        found = most(rest, free)
        for place in free:
            if np.hypot(*np.subtract(first, place)) <= distance:
                found = max(found, 1 + most(rest, free - {place}))
        return found

    return most([tuple(place) for place in np.argwhere(ours)], frozenset(theirs))


@st.composite
def two_boundaries(draw):
    """Draw two maps of up to six pixels each."""
    cells = list(itertools.product(range(5), range(6)))
    maps = []
    for _ in range(2):
        places = draw(st.lists(st.sampled_from(cells), min_size=1, max_size=6, unique=True))
        marked = np.zeros((5, 6), bool)
        marked[tuple(np.transpose(places))] = True
        maps.append(marked)
    return maps


@settings(max_examples=150)
@given(two_boundaries(), st.sampled_from([0.0, 1.0, 1.5, 2.3, 3.0]))
def test_the_matching_is_as_large_as_by_brute_force(maps, distance):
    assert boundary.num_matched(*maps, distance) == brute_force(*maps, distance)
    assert boundary.num_matched(*maps[::-1], distance) == brute_force(*maps, distance)


def test_a_pixel_yields_its_partner_to_one_without_another():
    # In one row: a and b of the first, x and y of the second. b reaches both, a only x.
    ours, theirs = np.zeros((1, 8), bool), np.zeros((1, 8), bool)
    ours[0, [0, 3]] = True
    theirs[0, [2, 6]] = True
    # b is nearest to x, but then y and a are left over.
    assert boundary.num_matched(ours, theirs, 3) == 2


def test_boundary_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:4] = True
    expected = np.array(
        [
            [0, 1, 1, 1, 0, 0],  # its lower or lower right neighbor is in
            [0, 1, 0, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(boundary.boundary(mask), expected)
    np.testing.assert_array_equal(boundary.boundary(~mask), expected)
    assert not boundary.boundary(np.ones((5, 6), bool)).any()


@settings(max_examples=50)
@given(hnp.arrays(bool, (6, 7)))
def test_boundary_equals_a_loop(mask):
    for y, x in np.ndindex(mask.shape):
        near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (1, 1))]
        differs = any(
            mask[min(v, 5), min(u, 6)] != mask[y, x]
            for v, u in near  # the edge goes on
        )
        assert boundary.boundary(mask)[y, x] == differs


def half(column, size=SIZE):
    """Return a map of class 1 from a column on, class 0 before it."""
    label = np.zeros(size, np.uint8)
    label[:, column:] = 1
    return label


@pytest.mark.parametrize(("shift", "matched"), [(0, 360), (4, 360), (5, 0)])
def test_the_tolerance_at_camvids_size_is_four_pixels_and_a_half(shift, matched):
    counts = boundary.counts(half(200), half(200 + shift), 2)
    np.testing.assert_array_equal(counts, [[matched, 360, 360]] * 2)


def test_each_pixel_is_matched_once():
    # A true line of a pixel, and a guess that is a band of stripes: nearest distances would match
    # all of its lines, of which four or five are near enough, but only one pixel each is due.
    label, guess = half(200), half(200)
    guess[:, 202:204] = 0
    counts = boundary.counts(label, guess, 2)
    np.testing.assert_array_equal(counts, [[360, 360, 3 * 360]] * 2)
    np.testing.assert_allclose(boundary.f_measure(counts), [0.5, 0.5], rtol=1e-15)


def test_a_perfect_prediction_scores_one():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (24, 32)).repeat(3, 0).repeat(3, 1).astype(np.uint8)
    f = boundary.f_measure(boundary.counts(label, label, 6))
    np.testing.assert_array_equal(f, [1, 1, 1, 1, 1, np.nan])


def test_both_conventions_of_what_is_present():
    label, guess = half(20, (36, 48)), half(20, (36, 48))
    guess[:10, 30:] = 2  # a class that is nowhere in the truth
    counts = boundary.counts(label, guess, 4)
    truth, either = boundary.f_measure(counts), boundary.f_measure(counts, "either")
    # Class 1: its 36 true pixels are all found; the guess has a border with class 2 too.
    assert truth[0] == either[0] == 1
    assert 0 < truth[1] == either[1] < 1
    np.testing.assert_array_equal(truth[2:], [np.nan, np.nan])
    np.testing.assert_array_equal(either[2:], [0, np.nan])
    assert boundary.mean(truth[None]) == (1 + truth[1]) / 2
    assert boundary.mean(either[None]) == pytest.approx((1 + truth[1]) / 3, rel=1e-15)


def test_void_has_a_boundary_but_no_score():
    label = half(20, (36, 48))
    label[:, 10:20] = VOID
    counts = boundary.counts(label, half(20, (36, 48)), 2)
    # Class 0 ends at column 10 in the truth, at 20 in the guess: too far for 0.45 pixels.
    np.testing.assert_array_equal(counts, [[0, 36, 36], [36, 36, 36]])


def test_the_mean_is_over_classes_then_images():
    nan = np.nan
    f = np.array([[0.2, 0.4, nan], [0.9, nan, nan], [nan, nan, nan]])
    assert boundary.mean(f) == pytest.approx((0.3 + 0.9) / 2, rel=1e-15)  # not (.2 + .4 + .9) / 3
    assert boundary.per_class(f) == [pytest.approx(0.55), 0.4, None]
    assert boundary.mean(f[2:]) is None


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"the label is \(3, 4\), the prediction \(4, 3\)"):
        boundary.counts(np.zeros((3, 4), int), np.zeros((4, 3), int), 2)
    with pytest.raises(ValueError, match="present must be one of truth, either, found 'both'"):
        boundary.f_measure(np.zeros((2, 3), int), "both")
