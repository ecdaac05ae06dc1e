"""Scores of label maps: G, C and mIoU from a confusion matrix, BF from boundaries."""

from segjax.metrics.confusion import SCORES, Scores, confusion_matrix, mean_scores, scores

__all__ = ["SCORES", "Scores", "confusion_matrix", "mean_scores", "scores"]
