"""Random access to the images and labels of a prepared split."""

import bisect
import io
import itertools
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from segjax.data.statistics import split_info
from segjax.errors import UserError


class Source:
    """The examples of a split, by index, in the order they were stored; safe to read from threads.

    `source[i]` is `{"image": uint8 (H, W, 3) RGB or (H, W, 1) gray, "label": uint8 (H, W),
    "id": str}`. At a resolution other than the stored one, the image is resized bilinearly with
    antialiasing and the label by nearest neighbor, so that no new label value arises.

    Raises:
        UserError: an example cannot be read; names the file, and ends with `remedy`.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        resolution: tuple[int, int] | None = None,
        remedy: str = "prepare it again",
    ):
        # TFDS decodes with OpenCV or Pillow, whichever happens to be installed.
        skip = tfds.decode.SkipDecoding()
        self._records = builder.as_data_source(split, decoders={"image": skip, "label": skip})
        self._size = None if resolution is None else (resolution[1], resolution[0])
        self._stored = builder.info.splits[split]
        self._remedy = remedy
        self.digest = split_info(builder.info.metadata[split]).digest

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # negative from the end; IndexError beyond, ending a `for`
        try:
            stored = self._records[index]
            image = self._decode(stored["image"], Image.Resampling.BILINEAR)
            return {
                "image": image if image.ndim == 3 else image[..., None],
                "label": self._decode(stored["label"], Image.Resampling.NEAREST),
                "id": stored["id"].decode(),
            }
        except Exception as error:  # of the readers of records, of protobufs and of images
            raise self._damaged(index) from error

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

    def _decode(self, data: bytes, resampling: Image.Resampling) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            if self._size is None or self._size == image.size:
                return np.array(image)
            return np.array(image.resize(self._size, resampling))


def check_shard(path: str | os.PathLike[str], count: int) -> None:
    """Check that an array_record file is complete, by the index at its end.

    Raises:
        OSError, RuntimeError, ValueError: it is missing, cut, or has another number of examples.
    """
    os.stat(path)  # ArrayRecordReader raises no FileNotFoundError
    found = ArrayRecordReader(os.fspath(path)).num_records()
    if found != count:
        raise ValueError(f"{found} examples, expected {count}")
