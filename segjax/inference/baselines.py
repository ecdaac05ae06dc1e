"""What a score is worth: guesses that see no image, and ceilings of coarse label maps.

A network below the floors has learnt nothing. The ceilings are those of a network that is never
wrong but decides once for each cell of its stride.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import metrics, results
from segjax.data import datasets
from segjax.data.datasets import VOID

STRIDES = (2, 4, 8, 16, 32)  # pixels


@functools.partial(jax.jit, static_argnames=("stride", "num_classes"))
def majority_vote(label: jax.Array, stride: int, num_classes: int) -> jax.Array:
    """The most frequent class of each stride x stride cell, at full size: (H, W) to uint8 (H, W).

    Void has no vote; the lower of equals wins; cells that reach over the edge have fewer pixels.
    """
    height, width = label.shape
    padded = jnp.pad(label, ((0, -height % stride), (0, -width % stride)), constant_values=VOID)
    cells = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride)
    votes = jnp.stack([jnp.sum(cells == k, axis=(1, 3)) for k in range(num_classes)])
    coarse = jnp.argmax(votes, 0).astype(jnp.uint8)
    return coarse.repeat(stride, 0).repeat(stride, 1)[:height, :width]


def pixel_mode(
    labels: Iterator[np.ndarray], shape: tuple[int, int], num_classes: int
) -> np.ndarray:
    """The most frequent class at each pixel over many labels: uint8 (H, W)."""
    counts = np.zeros((num_classes, *shape), np.int64)
    for label in labels:
        for k in range(num_classes):
            counts[k] += label == k
    return counts.argmax(0).astype(np.uint8)


def _count(labels, guesses, num_classes):
    """The confusion counts of each guess over all labels."""
    count = jax.jit(metrics.confusion_matrix, static_argnums=2)
    totals = {name: np.zeros((num_classes, num_classes), np.int64) for name in guesses}
    for label in labels:
        for name, guess in guesses.items():
            totals[name] += np.asarray(count(label, guess(label), num_classes))
    return totals


def _labels(source):
    return (source[i]["label"] for i in range(len(source)))


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
    mode = pixel_mode(_labels(source("train")), info.resolution, num_classes)
    guesses: dict[str, Callable[..., Any]] = {
        f"all {info.class_names[common]}": lambda label: np.full_like(label, common),
        "per-pixel mode": lambda _: mode,
    }
    for stride in STRIDES:
        guesses[f"oracle stride {stride}"] = functools.partial(
            majority_vote, stride=stride, num_classes=num_classes
        )
    test = source(split)
    totals = _count(_labels(test), guesses, num_classes)
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
            **results.scored(totals[name], info.class_names),
            "steps": None,
            "best_step": None,
            "seconds": None,
            "batch_norm": None,
            **results.provenance("host"),
        }
        for name in guesses
    ]
