"""What a network scored on each image of a split, kept beside its row for paired comparisons."""

import dataclasses
import io
import os
from pathlib import Path

import numpy as np

from segjax.files import write_whole


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was counted on each of N images."""

    confusion: np.ndarray  # int32 (N, K, K), void left out; rows are the truth
    boundary: np.ndarray | None = None  # int64 (N, K, 3) of `boundary.counts`; none: not asked for

    @property
    def total(self) -> np.ndarray:
        """The one confusion matrix of them all, int64 (K, K)."""
        return self.confusion.sum(0, dtype=np.int64)


def write_counts(path: str | os.PathLike[str], counts: Counts) -> None:
    """Writes the counts of each image, whole or not at all, as `<name>.npz` beside a row's file."""
    content = io.BytesIO()
    arrays = {name: x for name, x in vars(counts).items() if x is not None}
    np.savez_compressed(content, **arrays)
    write_whole(Path(path).with_suffix(".npz"), content.getvalue())
