"""How a data set is written: the record all of them share, and progress while it is made."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def features(height: int, width: int) -> tfds.features.FeaturesDict:
    """The record that every data set stores: an RGB image, its label with void as 255, its name."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, 3), encoding_format="png"),
            "label": tfds.features.Image(shape=(height, width, 1), encoding_format="png"),
            "id": tfds.features.Text(),
        }
    )


def record(image_png: bytes, label_png: bytes, name: str) -> dict[str, Any]:
    """An example as `features` takes it: already encoded, for TFDS itself encodes by TensorFlow."""
    return {"image": io.BytesIO(image_png), "label": io.BytesIO(label_png), "id": name}


def encode_png(array: np.ndarray) -> bytes:
    """An image, uint8 (H, W, 3), or a label, uint8 (H, W), as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def progress(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The items one by one, with a bar on standard error where that is a terminal."""
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    yield from track(items, description, console=console, disable=quiet, transient=True)
