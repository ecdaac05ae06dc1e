"""Draw validation images with their predictions during training."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segjax.data import pictures
from segjax.data.datasets import DatasetInfo

COUNT = 4


class Samples(NamedTuple):
    """Drawn images of a split."""

    images: np.ndarray  # uint8 (N, H, W, C)
    predictions: np.ndarray  # uint8 (N, H, W)
    truths: np.ndarray  # uint8 (N, H, W)
    picture: Image.Image  # a row for each image: image, truth, prediction


def draw(
    workdir: Path,
    step: int,
    info: DatasetInfo,
    examples: dict[str, np.ndarray],
    predict: Callable[[np.ndarray], np.ndarray],
) -> Samples:
    """Draw `COUNT` images, evenly spaced in a split, into workdir/samples/STEP.png.

    Args:
      workdir: the run directory.
      step: training steps done.
      info: the dataset.
      examples: the split in memory: image (N, H, W, C) and label (N, H, W), uint8.
      predict: f(images) -> labels.
    """
    count = len(examples["label"])
    places = np.linspace(0, count - 1, min(COUNT, count)).round().astype(int)
    images, truths = examples["image"][places], examples["label"][places]
    predictions = predict(images)
    rows = [
        [
            image,
            pictures.colorize(truth, info.palette),
            pictures.colorize(prediction, info.palette),
        ]
        for image, truth, prediction in zip(images, truths, predictions, strict=True)
    ]
    picture = pictures.grid(rows, ["image", "truth", f"step {step}"])
    pictures.save(workdir / "samples" / f"{step:07d}.png", picture)
    shown = np.stack([pictures.shown(image) for image in images])
    return Samples(shown, predictions, truths, picture)
