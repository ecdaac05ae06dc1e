"""Baselines that ignore the image, and upper bounds for label maps of reduced resolution.

A network that scores below the baselines has learned nothing. The upper bounds are the scores of a
perfect network that predicts one class per block of its output stride.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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
    """Return the most frequent class of each stride x stride block: (H, W) to uint8 (H, W).

    Ignore void; break ties in favor of the lowest class. Blocks at the bottom and right edges may
    be smaller.
    """
    height, width = label.shape
    padded = jnp.pad(label, ((0, -height % stride), (0, -width % stride)), constant_values=VOID)
    blocks = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride)
    votes = jnp.stack([jnp.sum(blocks == k, axis=(1, 3)) for k in range(num_classes)])
    coarse = jnp.argmax(votes, 0).astype(jnp.uint8)
    return coarse.repeat(stride, 0).repeat(stride, 1)[:height, :width]


def pixel_mode(
    labels: Iterator[np.ndarray], shape: tuple[int, int], num_classes: int
) -> np.ndarray:
    """Return the most frequent class at each pixel over many label maps: uint8 (H, W)."""
    counts = np.zeros((num_classes, *shape), np.int64)
    for label in labels:
        for k in range(num_classes):
            counts[k] += label == k
    return counts.argmax(0).astype(np.uint8)


def oracles(num_classes: int) -> dict[int, Callable[[np.ndarray], jax.Array]]:
    """Return {stride: function that reduces a label map by `majority_vote`}."""
    return {
        stride: functools.partial(majority_vote, stride=stride, num_classes=num_classes)
        for stride in STRIDES
    }


def count_guesses(
    labels: Iterable[np.ndarray], guesses: Mapping[Any, Callable[..., Any]], num_classes: int
) -> dict[Any, np.ndarray]:
    """Return the confusion matrix, int64 (K, K), of each guess over all label maps."""
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
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Return the result rows of the baselines and upper bounds of a split.

    - all NAME: the most frequent class of the training set, everywhere.
    - per-pixel mode: the most frequent class of the training set at each pixel.
    - oracle stride s: the truth reduced by `majority_vote`.

    Args:
      dataset, split, data_dir, resolution, folder: of the label maps, as in a config.
      command: stored in the rows.
    """
    place: dict[str, Any] = {"data_dir": data_dir, "folder": folder, "resolution": resolution}
    info = datasets.info(dataset, **place)
    num_classes = len(info.class_names)

    def source(name):
        return datasets.open_split(dataset, name, **place)

    common = int(np.argmax(info.splits["train"].pixel_counts))
    mode = pixel_mode(_labels(source("train")), info.resolution, num_classes)
    guesses: dict[str, Callable[..., Any]] = {
        f"all {info.class_names[common]}": lambda label: np.full_like(label, common),
        "per-pixel mode": lambda _: mode,
    }
    guesses |= {f"oracle stride {s}": guess for s, guess in oracles(num_classes).items()}
    test = source(split)
    totals = count_guesses(_labels(test), guesses, num_classes)
    return [
        {
            "schema": results.SCHEMA,
            "experiment": "baselines",
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
