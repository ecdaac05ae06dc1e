"""Scores of label maps: of confusion matrices, of boundaries, and of probabilities."""

from segjax.metrics.confusion import (
    SCORES,
    Scores,
    confusion_matrix,
    count_pixels,
    mean_scores,
    per_image_mean_iou,
    scores,
)

__all__ = [
    "SCORES",
    "Scores",
    "confusion_matrix",
    "count_pixels",
    "mean_scores",
    "per_image_mean_iou",
    "scores",
]
