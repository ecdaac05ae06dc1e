"""Random access to the images and labels of a prepared split."""

import bisect
import copy
import io
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from segjax.data import fitting
from segjax.data.statistics import VOID, split_info
from segjax.errors import UserError


class Source:
    """The examples of a split, by index, in the order they were stored; safe to read from threads.

    `source[i]` is `{"image": uint8 (H, W, C), "label": uint8 (H, W), "id": str}`. At a resolution
    other than the stored one, both are fitted to it (`segjax.data.fitting`): the image is resized
    bilinearly with antialiasing and the label by nearest neighbor, so that no new label value
    arises.

    Raises:
        UserError: an example cannot be read; names the file, and ends with `remedy`.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        resolution: tuple[int, int] | None,
        fit: str,
        remedy: str,
    ):
        # TFDS decodes with OpenCV or Pillow, whichever happens to be installed.
        skip = tfds.decode.SkipDecoding()
        self._records = builder.as_data_source(split, decoders={"image": skip, "label": skip})
        self._count = len(self._records)
        self._resolution, self._fit = resolution, fit
        self._color = fill_color(split_info(builder.info.metadata["train"]).mean)
        self._stored = builder.info.splits[split]
        self._remedy = remedy
        self.digest = split_info(builder.info.metadata[split]).digest

    def first(self, count: int) -> "Source":
        """Return a source of the first examples alone."""
        part = copy.copy(self)
        part._count = min(count, self._count)
        return part

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # negative from the end; IndexError beyond, ending a `for`
        try:
            stored = self._records[index]
            return {
                "image": self._image(stored["image"]),
                "label": self._fitted(_open(stored["label"]), Image.Resampling.NEAREST, VOID),
                "id": stored["id"].decode(),
            }
        except Exception as error:  # of the readers of records, of protobufs and of images
            raise self._damaged(index) from error

    def shown_size(self, index: int) -> tuple[int, int] | None:
        """Return the (height, width) of the image in the frame of a letterbox; None: no frame."""
        if self._resolution is None or self._fit != "letterbox":
            return None
        with Image.open(io.BytesIO(self._records[index]["label"]), formats=["PNG"]) as label:
            return fitting.scaled_size((label.height, label.width), self._resolution, self._fit)

    @property
    def names(self) -> list[str]:
        """Return the `id` of each example."""
        names = []
        for index in range(len(self)):
            try:
                names.append(self._records[index]["id"].decode())
            except Exception as error:
                raise self._damaged(index) from error
        return names

    def _damaged(self, index):
        ends = list(itertools.accumulate(self._stored.shard_lengths))
        file = self._stored.filepaths[bisect.bisect(ends, index)]
        return UserError(f"{file} is damaged, at example {index}: {self._remedy}")

    def _image(self, data: bytes) -> np.ndarray:
        picture, linear = _open(data), Image.Resampling.BILINEAR
        count = len(self._color)
        if picture.mode == "RGB":
            return self._fitted(picture, linear, self._color)
        height = picture.height // count  # `encode_png` has put the channels below each other
        channels = [
            self._fitted(picture.crop((0, k * height, picture.width, (k + 1) * height)), linear, of)
            for k, of in enumerate(self._color)
        ]
        return np.stack(channels, -1)

    def _fitted(self, picture: Image.Image, resampling: Image.Resampling, fill: Any) -> np.ndarray:
        if self._resolution is None:
            return np.array(picture)
        shape = picture.height, picture.width
        size = fitting.scaled_size(shape, self._resolution, self._fit)
        if size != shape:
            picture = picture.resize(size[::-1], resampling)
        if size == self._resolution:
            return np.array(picture)
        return fitting.centered(np.asarray(picture), self._resolution, fill)


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
    return image


def fill_color(mean: Sequence[float]) -> tuple[int, ...]:
    """Return the color beyond the border of a letterboxed image, from the mean in [0, 1]."""
    return tuple(round(255 * value) for value in mean)


def check_shard(path: str | os.PathLike[str], count: int) -> None:
    """Check that an array_record file is complete, by the index at its end.

    Raises:
        OSError, RuntimeError, ValueError: it is missing, cut, or has another number of examples.
    """
    os.stat(path)  # ArrayRecordReader raises no FileNotFoundError
    found = ArrayRecordReader(os.fspath(path)).num_records()
    if found != count:
        raise ValueError(f"{found} examples, expected {count}")
