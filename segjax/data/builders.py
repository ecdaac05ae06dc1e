"""Features of an example, PNG files and a progress bar, for all TFDS builders."""

import contextlib
import io
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from segjax.errors import UserError
from segjax.system import waiting

Item = TypeVar("Item")


def features(
    height: int | None, width: int | None, channels: int = 3
) -> tfds.features.FeaturesDict:
    """Return the features of every dataset's examples: image, label (255 for void) and name.

    A height and width of None stand for any.
    """
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, channels), encoding_format="png"),
            "label": tfds.features.Image(shape=(height, width, 1), encoding_format="png"),
            "id": tfds.features.Text(),
        }
    )


def record(image_png: bytes, label_png: bytes, name: str) -> dict[str, Any]:
    """Return an example of `features`, with encoded PNGs, for which TFDS needs TensorFlow."""
    return {"image": io.BytesIO(image_png), "label": io.BytesIO(label_png), "id": name}


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB or (H, W) gray as PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def read_png(path: Path | zipfile.Path, mode: str, height: int, width: int) -> np.ndarray:
    """Read the pixels of a published image or label: uint8, as they are in the file.

    Args:
        path: PNG file.
        mode: expected mode: "RGB" or "L" (gray) of 8 bits, or "P" for the indices of a palette.
        height: expected height in pixels.
        width: expected width in pixels.

    Raises:
        UserError: the file is damaged or has another mode or size.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            found_size = image.size
            # Equal to the mode for 8 bits; Pillow scales other depths, except indices.
            found_mode = "P" if image.mode == "P" else image.tile[0].args
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: cannot be read as an image (not a PNG)") from error
    except Exception as error:  # a damaged file makes Pillow raise almost any
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error
    if found_size != (width, height):
        raise UserError(
            f"{path}: {found_size[0]}x{found_size[1]} pixels, expected {width}x{height}"
        )
    if found_mode != mode:
        raise UserError(f"{path}: PNG of mode {found_mode}, expected {mode}")
    return pixels


def progress(items: Iterable[Item], description: str) -> Iterator[Item]:
    """Yield the items, with a progress bar on standard error, or one line if it is no terminal."""
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    with waiting.reported(description) if quiet else contextlib.nullcontext():
        yield from track(items, description, console=console, disable=quiet, transient=True)
