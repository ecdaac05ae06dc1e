"""Counts of pixels of each image of a split, from which its scores are computed."""

import dataclasses
import io
import os
from pathlib import Path

import numpy as np

from segjax.system.files import write_whole


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of each of the N images of a split."""

    confusion: np.ndarray  # int32 (N, K, K), without void; rows are the truth
    boundary: np.ndarray | None = None  # int64 (N, K, 3) from `boundary.counts`; None: not measured
    names: np.ndarray | None = None  # str (N,), the ids of the images; None: not known
    boundary_iou: np.ndarray | None = None  # int64 (N, K, 2) from `boundary_iou.counts`
    calibration: np.ndarray | None = None  # float64 (N, 15, 3) from `calibration.counts`

    @property
    def total(self) -> np.ndarray:
        """Confusion matrix of all images, int64 (K, K)."""
        return self.confusion.sum(0, dtype=np.int64)


def write_counts(path: str | os.PathLike[str], counts: Counts) -> None:
    """Write counts atomically as `<name>.npz`, where `path` is the row's `<name>.json`."""
    content = io.BytesIO()
    arrays = {name: x for name, x in vars(counts).items() if x is not None}
    np.savez_compressed(content, **arrays)
    write_whole(Path(path).with_suffix(".npz"), content.getvalue())
