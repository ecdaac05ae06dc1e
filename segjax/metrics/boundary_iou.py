"""Boundary IoU: the IoU of masks restricted to the pixels near their contours.

Cheng, Girshick, Dollar, Berg, Kirillov (CVPR 2021, arXiv 2103.16562). With the band of a mask, its
pixels at most d from its contour, it is the IoU of the bands of truth and prediction: the interior
of a large object cannot hide a rough outline. As in the authors' `mask_to_boundary`, d is 2% of the
image's diagonal, rounded, at least 1 (12 pixels at 360x480), distances are Chebyshev distances, and
the border of the image is part of the contour.

Void pixels belong to no mask, neither of the truth nor of the prediction. As for mIoU, pixels are
summed over the images of a split; no score is a mean of per-image scores.
"""

import numpy as np
from scipy import ndimage

WIDTH = 0.02  # of the band, fraction of the image's diagonal


def band(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels of a mask, bool (H, W), at most `distance` from a pixel outside it."""
    inside = ndimage.minimum_filter(mask, 2 * distance + 1, mode="constant", cval=0)
    return mask & ~inside


def counts(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of intersection and union of the bands of each class in one image.

    Args:
      label: integers (H, W); values outside [0, num_classes) are void.
      prediction: integers (H, W).
      num_classes: K.

    Returns:
      int64 (K, 2): pixels of the intersection, pixels of the union.

    Raises:
      ValueError: the shapes differ.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"the label is {label.shape}, the prediction {prediction.shape}")
    distance = max(1, round(WIDTH * float(np.hypot(*label.shape))))
    known = (label >= 0) & (label < num_classes)
    found = np.zeros((num_classes, 2), np.int64)
    for k in range(num_classes):
        truth, guess = label == k, (prediction == k) & known
        if not (truth.any() or guess.any()):
            continue
        truth, guess = band(truth, distance), band(guess, distance)
        found[k] = np.count_nonzero(truth & guess), np.count_nonzero(truth | guess)
    return found


def iou(counts: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Compute the boundary IoU of each class: float64 (K,), NaN for a class that does not count.

    Args:
      counts: (N, K, 2) from `counts`, of the images of a split.
      present: bool (K,), the classes that count: those in the truth.
    """
    common, union = counts.sum(0).T
    return np.where(present, common / np.maximum(union, 1), np.nan)
