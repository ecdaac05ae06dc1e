"""Random access to the images and labels of a prepared split."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import png
from segjax.errors import UserError


class Source:
    """The examples of a split, by index, in the order they were stored; safe to read from threads.

    `source[i]` is `{"image": uint8 (H, W, 3) RGB or (H, W, 1) grey, "label": uint8 (H, W),
    "id": str}`. With a resolution other than the stored one, the image is reduced with antialiasing
    (bilinear, its support scaled with the reduction) and the label takes its nearest pixel, so that
    no label value arises that was not there.
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
        image = self._decode(stored["image"], "BILINEAR")
        return {
            "image": image if image.ndim == 3 else image[..., None],
            "label": self._decode(stored["label"], "NEAREST"),
            "id": stored["id"].decode(),
        }

    def _decode(self, data: bytes, resampling: str) -> np.ndarray:
        pixels = png.decode(data)
        height, width = pixels.shape[:2]
        if self._size is None or self._size == (width, height):
            return pixels
        try:
            from PIL import Image
        except ImportError:
            found = f"{height}x{width} to {self._size[1]}x{self._size[0]}"
            raise UserError(f"images are resized, {found}, by Pillow, which is missing") from None
        resized = Image.fromarray(pixels).resize(self._size, Image.Resampling[resampling])
        return np.array(resized)
