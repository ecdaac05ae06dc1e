"""Random access to the images and labels of a prepared split."""

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Source:
    """The examples of a split, by index, in the order they were stored; safe to read from threads.

    `source[i]` is `{"image": uint8 (H, W, 3) RGB or (H, W, 1) gray, "label": uint8 (H, W),
    "id": str}`. At a resolution other than the stored one, the image is resized bilinearly with
    antialiasing and the label by nearest neighbor, so that no new label value arises.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        resolution: tuple[int, int] | None = None,
    ):
        # TFDS decodes with OpenCV or Pillow, whichever happens to be installed.
        skip = tfds.decode.SkipDecoding()
        self._records = builder.as_data_source(split, decoders={"image": skip, "label": skip})
        self._size = None if resolution is None else (resolution[1], resolution[0])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # negative from the end; IndexError beyond, ending a `for`
        stored = self._records[index]
        image = self._decode(stored["image"], Image.Resampling.BILINEAR)
        return {
            "image": image if image.ndim == 3 else image[..., None],
            "label": self._decode(stored["label"], Image.Resampling.NEAREST),
            "id": stored["id"].decode(),
        }

    def _decode(self, data: bytes, resampling: Image.Resampling) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as image:
            if self._size is None or self._size == image.size:
                return np.array(image)
            return np.array(image.resize(self._size, resampling))
