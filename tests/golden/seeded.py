"""Weights that follow from their names, so that golden files need not hold them. NumPy alone."""

import math
import zlib
from collections.abc import Sequence

import numpy as np


def array(path: str, shape: Sequence[int]) -> np.ndarray:
    """A parameter or running statistic by its path in the model, such as conv1_1/conv/kernel.

    float32. Kernels, (k, k, in, out), keep the variance of what a ReLU leaves; scales and variances
    are in [0.5, 1.5]; biases and means are small.
    """
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    kind = path.rpartition("/")[2]
    if kind == "kernel":
        values = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
    elif kind in ("scale", "var"):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.normal(0, 0.1, shape)
    return values.astype(np.float32)
