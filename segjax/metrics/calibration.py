"""Expected calibration error: how far the confidence of a network is from its accuracy.

Naeini, Cooper, Hauskrecht (AAAI 2015) and Guo, Pleiss, Sun, Weinberger (arXiv 1706.04599), over
the labeled pixels of a split: the confidence of a pixel is its greatest probability; in each of 15
bins of equal width, ((b - 1) / 15, b / 15], the mean confidence is compared with the share of
pixels that are correct.
"""

import numpy as np

BINS = 15


def counts(label: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Count pixels by their confidence.

    Args:
      label: integers (...); values outside [0, K) are void and not counted.
      probabilities: floating (..., K).

    Returns:
      float64 (BINS, 3): pixels, correct pixels (both exact), sum of the confidences.
    """
    num_classes = probabilities.shape[-1]
    known = (label >= 0) & (label < num_classes)
    chosen = probabilities[known]
    # The sum of the probabilities may be one rounding error above 1.
    confidence = np.minimum(chosen.max(-1).astype(np.float64), 1)
    correct = chosen.argmax(-1) == label[known]
    number = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    sums = [np.bincount(number, weights, BINS) for weights in (None, correct, confidence)]
    return np.stack(sums, -1).astype(np.float64)


def expected_error(counts: np.ndarray) -> float | None:
    """Return the sum over bins of |correct - confidence| / pixels, in [0, 1]; None without pixels.

    That is the mean of |accuracy - mean confidence| over the bins, weighted by their pixels.

    Args:
      counts: (BINS, 3), the sum of `counts` over a split.
    """
    pixels, correct, confidence = counts.T
    if not pixels.any():
        return None
    return float(np.abs(correct - confidence).sum() / pixels.sum())
