"""Description of a dataset: class names, palette, and counts taken when it was built."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from segjax.system import stored

VOID = 255
"""Label of a pixel that losses and metrics ignore."""


@dataclass(frozen=True)
class SplitInfo:
    """Exact counts over the images and labels of one split, at their stored size.

    `present_pixel_counts[k]` is the number of pixels, void ones included, of all images in which
    class k occurs: the denominator of median-frequency balancing (SegNet, arXiv 1511.00561,
    section 3.2). With `freq = pixel_counts / present_pixel_counts`, CamVid's training split has
    the weights `median(freq) / freq` = 0.2793 ... 8.8587; without void they would be
    0.2794 ... 8.8193.

    `mean` and `std` are per channel, RGB or gray, over every pixel, of values in [0, 1].

    `digest` is the sha256 over the sha256 of each example, in their order, of its id, the shape of
    its image, and the pixels of image and label; "" in a dataset prepared before there were any.
    """

    num_images: int
    pixel_counts: tuple[int, ...]
    void_pixels: int
    present_pixel_counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """A prepared dataset.

    `mean` and `std` are those of the training images. They and the counts in `splits` were taken at
    the stored size; `resolution` (height, width) is the size of the images that `open_split` gives.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, SplitInfo]
    resolution: tuple[int, int]
    origin: str = ""  # folder in which the module of module:NAME was found

    def may_have(self, split: str, digest: str) -> bool:
        """Return whether a split can have a digest; data prepared long ago do not know theirs."""
        own = self.splits[split].digest if split in self.splits else ""
        return not (own and digest) or own == digest


class Tally:
    """Exact counts over a split, added image by image in the order of the examples."""

    def __init__(self, num_classes: int, channels: int = 3):
        self.num_images = 0
        self.pixel_counts = np.zeros(num_classes, np.int64)
        self.void_pixels = 0
        self.present_pixel_counts = np.zeros(num_classes, np.int64)
        self.channel_sums = np.zeros(channels, np.int64)
        self.channel_square_sums = np.zeros(channels, np.int64)
        self.digest = hashlib.sha256()

    def add(self, image: np.ndarray, label: np.ndarray, name: str) -> None:
        """Count an example.

        Args:
            image: uint8 (H, W, C).
            label: uint8 (H, W), in [0, K) or VOID.
            name: its id, part of the digest of the split.
        """
        num_classes = len(self.pixel_counts)
        histogram = np.bincount(label.ravel(), minlength=VOID + 1)
        if histogram[num_classes:VOID].any():
            raise ValueError(f"label value {label[label != VOID].max()} with {num_classes} classes")
        self.num_images += 1
        self.pixel_counts += histogram[:num_classes]
        self.void_pixels += int(histogram[VOID])
        self.present_pixel_counts[histogram[:num_classes] > 0] += label.size
        values = np.arange(256, dtype=np.int64)
        for channel in range(len(self.channel_sums)):
            histogram = np.bincount(image[..., channel].ravel(), minlength=256)
            self.channel_sums[channel] += histogram @ values
            self.channel_square_sums[channel] += histogram @ values**2
        digest = hashlib.sha256(f"{name} {image.shape} ".encode())
        digest.update(image.tobytes() + label.tobytes())
        self.digest.update(digest.digest())

    def to_metadata(self) -> dict[str, Any]:
        """Return the fields of `SplitInfo` as JSON types, sealed, to store beside the records."""
        num_pixels = self.pixel_counts.sum() + self.void_pixels
        mean = self.channel_sums / num_pixels
        variance = self.channel_square_sums / num_pixels - mean**2
        content = {
            "num_images": self.num_images,
            "pixel_counts": self.pixel_counts.tolist(),
            "void_pixels": self.void_pixels,
            "present_pixel_counts": self.present_pixel_counts.tolist(),
            "mean": (mean / 255).tolist(),
            "std": (np.sqrt(variance) / 255).tolist(),
            "digest": self.digest.hexdigest(),
        }
        return stored.seal(content)


def split_info(metadata: Mapping[str, Any]) -> SplitInfo:
    """Read the metadata that `Tally.to_metadata` returns.

    Raises:
        ValueError: a field is missing or of another type, or changed after it was written.
    """
    return _adapter().validate_json(json.dumps(stored.unseal(metadata)), strict=True)


_adapter = functools.cache(lambda: TypeAdapter(SplitInfo))
