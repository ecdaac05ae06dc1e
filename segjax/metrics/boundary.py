"""BF, the boundary F-measure of the SegNet paper: how well class boundaries are placed.

Csurka et al. (BMVC 2013) as SegNet uses it (arXiv 1511.00561v3, section 3.3, and the authors'
`computeBFmeasure.m`): for each class of an image the boundary pixels of its mask in the prediction
are matched one to one with those in the truth, no further apart than 0.75% of the image's diagonal
(4.5 pixels at 360x480). The F of precision and recall is averaged over the classes of the image,
and then over the images.

Void is not a class: its border with a class is a boundary of that class, and predictions inside
void count, as in the authors' script.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

TOLERANCE = 0.0075  # fraction of the image's diagonal
PRESENT = ("truth", "either")


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels that differ from their right, lower or lower right neighbor (`seg2bdry`).

    Bool (H, W) to bool (H, W); neighbors outside the image do not count. Source: BSDS.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def num_matched(ours: np.ndarray, theirs: np.ndarray, distance: float) -> int:
    """Return how many pixels of two boundaries can be paired one to one, at most.

    Args:
      ours: bool (H, W).
      theirs: bool (H, W).
      distance: largest distance within a pair, in pixels.
    """
    rows, columns = np.nonzero(ours)
    places = np.count_nonzero(theirs)
    number = np.full(theirs.shape, -1)
    number[theirs] = np.arange(places)
    reach = int(distance)
    number = np.pad(number, reach, constant_values=-1)
    # Each pixel can also take a column of its own at the cost of two pairs, so that a full matching
    # exists. With equal costs of all pairs this takes a fraction of the time of SciPy's maximum
    # matching, or of costs by distance.
    unmatched = np.arange(len(rows))
    mine, partner = [unmatched], [unmatched + places]
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy**2 + dx**2 <= distance**2:
                found = number[rows + dy + reach, columns + dx + reach]
                mine.append(np.flatnonzero(found >= 0))
                partner.append(found[found >= 0])
    ends = np.concatenate(mine), np.concatenate(partner)
    costs = np.where(ends[1] < places, 1.0, 2.0)
    graph = sparse.csr_array((costs, ends))
    _, chosen = min_weight_full_bipartite_matching(graph)
    return int(np.count_nonzero(chosen < places))


def counts(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the boundary pixels of each class in one image, for `f_measure`.

    Args:
      label: integers (H, W); values outside [0, num_classes) are void.
      prediction: integers (H, W).
      num_classes: K.

    Returns:
      int64 (K, 3): boundary pixels that are matched, those of the label, those of the prediction.

    Raises:
      ValueError: the shapes differ.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"the label is {label.shape}, the prediction {prediction.shape}")
    distance = TOLERANCE * float(np.hypot(*label.shape))
    found = np.zeros((num_classes, 3), np.int64)
    for k in range(num_classes):
        truth, guess = boundary(label == k), boundary(prediction == k)
        found[k, 1:] = np.count_nonzero(truth), np.count_nonzero(guess)
        if found[k, 1:].all():
            found[k, 0] = num_matched(truth, guess, distance)
    return found


def f_measure(counts: np.ndarray, present: str = "truth") -> np.ndarray:
    """Compute F = 2 P R / (P + R) from counts (..., K, 3).

    P is the share of the predicted boundary that is matched, R that of the true one.

    Args:
      counts: from `counts`.
      present: classes of an image that count. truth: those with a boundary in the label (the
        paper); either: those with one in the label or the prediction (the authors' script).

    Returns:
      float64 (..., K); 0 where nothing is matched, NaN for a class that does not count.

    Raises:
      ValueError: `present` is unknown.
    """
    if present not in PRESENT:
        raise ValueError(f"present must be one of {', '.join(PRESENT)}, found {present!r}")
    matched, truth, guess = np.moveaxis(counts, -1, 0)
    # With P = matched / guess and R = matched / truth.
    f = 2 * matched / np.maximum(truth + guess, 1)
    return np.where((truth if present == "truth" else truth + guess) > 0, f, np.nan)


def mean(f: np.ndarray) -> float | None:
    """Return BF of a split: F (N, K) averaged over the classes of each image, then over the images.

    None if no class counts in any image.
    """
    counted = ~np.isnan(f)
    images = counted.any(axis=1)
    if not images.any():
        return None
    sums = np.where(counted, f, 0).sum(axis=1)[images]
    return float(np.mean(sums / counted.sum(axis=1)[images]))


def per_class(f: np.ndarray) -> list[float | None]:
    """Average F (N, K) of each class over the images where it counts; None where it never does."""
    counted = ~np.isnan(f)
    return [
        float(own[seen].mean()) if seen.any() else None
        for own, seen in zip(f.T, counted.T, strict=True)
    ]
