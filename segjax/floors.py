"""What a score is worth: guesses that see no image, and ceilings of coarse label maps.

A network below the floors has learnt nothing. The ceilings are those of a network that is never
wrong but decides once for each cell of its stride.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from segjax import datasets, metrics, results
from segjax.datasets import VOID, Source

STRIDES = (2, 4, 8, 16, 32)  # pixels


def majority_vote(label: np.ndarray, stride: int, num_classes: int) -> np.ndarray:
    """The most frequent class of each stride x stride cell, at full size: (H, W) to uint8 (H, W).

    Void has no vote; the lower of equals wins; cells that reach over the edge have fewer pixels.
    """
    height, width = label.shape
    padded = np.pad(label, ((0, -height % stride), (0, -width % stride)), constant_values=VOID)
    cells = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride)
    votes = np.stack([np.sum(cells == k, axis=(1, 3)) for k in range(num_classes)])
    coarse = votes.argmax(0).astype(np.uint8)
    return coarse.repeat(stride, 0).repeat(stride, 1)[:height, :width]


def pixel_mode(labels: Iterator[np.ndarray], shape: tuple[int, int], num_classes: int) -> np.ndarray:
    """The most frequent class at each pixel over many labels: uint8 (H, W)."""
    counts = np.zeros((num_classes, *shape), np.int64)
    for label in labels:
        for k in range(num_classes):
            counts[k] += label == k
    return counts.argmax(0).astype(np.uint8)


def _score(source: Source, guess: Callable[[np.ndarray], np.ndarray], num_classes: int):
    total = np.zeros((num_classes, num_classes), np.int64)
    for example in source:
        label = example["label"]
        total += np.asarray(metrics.confusion_matrix(label, guess(label), num_classes))
    return total


def rows(
    dataset: str,
    split: str,
    data_dir: str | None,
    resolution: tuple[int, int] | None,
    command: str,
) -> list[dict[str, Any]]:
    """Result rows of the floors and ceilings of a split.

    - all NAME: everywhere the class that is most frequent in the training set.
    - per-pixel mode: at each pixel its most frequent class in the training set.
    - oracle stride s: the truth by `majority_vote`, upsampled by nearest neighbour.
    """
    info = datasets.info(dataset, data_dir=data_dir, resolution=resolution)
    num_classes = len(info.class_names)

    def source(name):
        return datasets.open_split(dataset, name, data_dir=data_dir, resolution=resolution)

    common = int(np.argmax(info.splits["train"].pixel_counts))
    mode = pixel_mode((e["label"] for e in source("train")), info.resolution, num_classes)
    guesses: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        f"all {info.class_names[common]}": lambda label: np.full_like(label, common),
        "per-pixel mode": lambda _: mode,
    }
    for stride in STRIDES:
        guesses[f"oracle stride {stride}"] = lambda label, stride=stride: majority_vote(
            label, stride, num_classes
        )
    test = source(split)
    return [
        {
            "schema": results.SCHEMA,
            "experiment": "floors",
            "name": name,
            "overrides": {},
            "command": command,
            "model": name,
            "model_options": {},
            "parameters": 0,
            "config_digest": None,
            "seed": None,
            "dataset": dataset,
            "split": split,
            "num_images": len(test),
            "resolution": list(info.resolution),
            **results.scored(_score(test, guess, num_classes), info.class_names),
            "steps": None,
            "best_step": None,
            "seconds": None,
            "batch_norm": None,
            **results.provenance("host"),
        }
        for name, guess in guesses.items()
    ]
