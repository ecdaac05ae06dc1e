"""How a data set is written: the record all of them share, and progress while it is made."""

import io
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from segjax.data import png
from segjax.errors import UserError

Item = TypeVar("Item")


def features(height: int, width: int, channels: int = 3) -> tfds.features.FeaturesDict:
    """The record that every data set stores: an image, its label with void as 255, its name."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, channels), encoding_format="png"),
            "label": tfds.features.Image(shape=(height, width, 1), encoding_format="png"),
            "id": tfds.features.Text(),
        }
    )


def record(image_png: bytes, label_png: bytes, name: str) -> dict[str, Any]:
    """An example as `features` takes it: already encoded, for TFDS itself encodes by TensorFlow."""
    return {"image": io.BytesIO(image_png), "label": io.BytesIO(label_png), "id": name}


def read_png(path: Path | zipfile.Path, mode: str, height: int, width: int) -> np.ndarray:
    """The pixels of a published image or label, uint8.

    Args:
        path: of the file.
        mode: of the PNG as Pillow names it, such as "RGB" or "L".
        height: pixels.
        width: pixels.

    Raises:
        UserError: the file is damaged, or not of that mode, or not of that size.
    """
    try:
        data = path.read_bytes()
        *size, found_mode = png.header(data)
        pixels = png.decode(data) if size == [height, width] and found_mode == mode else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    if pixels is None and size != [height, width]:
        raise UserError(f"{path}: {size[1]}x{size[0]} pixels, expected {width}x{height}")
    if pixels is None:
        raise UserError(f"{path}: PNG of mode {found_mode}, expected {mode}")
    return pixels


def progress(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The items one by one, with a bar on standard error where that is a terminal."""
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    yield from track(items, description, console=console, disable=quiet, transient=True)
