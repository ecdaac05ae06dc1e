"""Confusion matrices and their scores: global accuracy G, class accuracy C, and mIoU.

The protocol is that of the SegNet authors' ``compute_test_results.m``: one confusion matrix over
all images of a split, without void pixels; G = trace / total; C = mean over all K classes of the
recall; mIoU = mean over all K classes of intersection over union. An absent class counts 0 in the
means and is reported as absent. No score is a mean of per-image scores, except the one that is
named so.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """Count the pixels of each (true class, predicted class) pair.

    Args:
      labels: integers of any shape; values outside [0, num_classes), VOID among them, are not
        counted.
      predictions: integers in [0, num_classes), of the same shape.
      num_classes: K.

    Returns:
      int32 (K, K), rows are the truth. int32 overflows at 2**31 pixels: sum batches in int64.
    """
    labels = labels.astype(jnp.int32).ravel()
    predictions = predictions.astype(jnp.int32).ravel()
    counted = (labels >= 0) & (labels < num_classes)
    cell = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.bincount(cell, length=num_classes**2 + 1)[:-1]
    return counts.astype(jnp.int32).reshape(num_classes, num_classes)


def count_pixels(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return `confusion_matrix` of arrays on the host, of any sizes: int64 (K, K).

    There each new size costs no compilation.
    """
    counted = (labels >= 0) & (labels < num_classes)
    cell = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


SCORES = ("global_accuracy", "class_accuracy", "mean_iou")  # scalar fields of Scores


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix, as fractions in [0, 1]; per-class arrays are (K,)."""

    global_accuracy: float
    class_accuracy: float
    mean_iou: float
    per_class_accuracy: np.ndarray  # recall; 0 where the class is not in the truth
    per_class_iou: np.ndarray  # 0 where the class is neither in the truth nor predicted
    present: np.ndarray  # bool: the class is in the truth


def mean_scores(confusion: np.ndarray) -> dict[str, float]:
    """Compute more scores of a (K, K) matrix of counts, rows the truth, as fractions in [0, 1].

    With true positives t, false negatives m and false positives f of a class: the means over all K
    classes (0 for an absent one) of Dice (or F1) 2 t / (2 t + m + f) and of precision t / (t + f);
    the mean IoU over the classes in the truth alone; and the frequency-weighted IoU, weighted by
    the classes' shares of the truth (Long et al., arXiv 1411.4038). The mean recall is
    `Scores.class_accuracy`.

    Returns:
      {"dice": ..., "precision": ..., "frequency_weighted_iou": ..., "mean_iou_present": ...}
    """
    counts = np.asarray(confusion).astype(np.int64)
    hits, truth, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    iou, present = scores(counts).per_class_iou, truth > 0
    return {
        "dice": float((2 * hits / np.maximum(truth + predicted, 1)).mean()),
        "precision": float((hits / np.maximum(predicted, 1)).mean()),
        "frequency_weighted_iou": float((truth * iou).sum() / max(truth.sum(), 1)),
        "mean_iou_present": float(iou[present].mean()) if present.any() else 0.0,
    }


def scores(confusion: np.ndarray) -> Scores:
    """Compute the scores of a (K, K) matrix of counts, rows the truth, in float64 on the host."""
    counts = np.asarray(confusion).astype(np.int64)
    hits, truth, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    accuracy = hits / np.maximum(truth, 1)
    iou = hits / np.maximum(truth + predicted - hits, 1)
    return Scores(
        global_accuracy=float(hits.sum() / max(counts.sum(), 1)),
        class_accuracy=float(accuracy.mean()),
        mean_iou=float(iou.mean()),
        per_class_accuracy=accuracy,
        per_class_iou=iou,
        present=truth > 0,
    )


def per_image_mean_iou(confusion: np.ndarray) -> float | None:
    """Return the mean over images of the mean IoU over the classes in the image's truth.

    Small objects and hard images weigh more than in mIoU, whose counts are those of all images
    (Csurka et al., BMVC 2013). Images without a labeled pixel do not count; None if none counts.

    Args:
      confusion: (N, K, K), the counts of each image.
    """
    each = [scores(counts) for counts in confusion]
    found = [own.per_class_iou[own.present].mean() for own in each if own.present.any()]
    return float(np.mean(found)) if found else None
