"""ISBI 2012: membranes between the cells of a fly's nerve cord, in electron microscopy.

The 30 labeled slices of the challenge's stack (Arganda-Carreras et al., Frontiers in Neuroanatomy
2015; Cardona et al., PLoS Biology 2010), 512x512 gray, as PNG files in `data/membrane` of
https://github.com/zhixuhao/unet. The labels of the challenge's own test stack are not published, so
the last six slices are held out for testing. Neighboring slices look much alike: the splits are
blocks of the stack, and the four slices of validation lie between training and test.
"""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import builders
from segjax.errors import UserError

# Membrane is class 0, the background between the objects of U-Net's weight map.
CLASS_NAMES = ("Membrane", "Cell")
PALETTE = ((230, 159, 0), (86, 180, 233))

HEIGHT, WIDTH = 512, 512
SPLITS = {"train": range(20), "val": range(20, 24), "test": range(24, 30)}  # slices, from the top
PUBLISHED_CELL = 255  # the other published label is 0

# sha256 over the pixels of the image and the label, as class ids, of each slice in order.
PIXELS_SHA256 = "bd303d27b21f8cf1348fc2b3f96987fd82a124d5ad91aed70e8f96782fcb8f5e"


def read_slice(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the image, uint8 (512, 512, 1), and label, uint8 (512, 512), of a published slice.

    Raises:
        UserError: a file is missing, damaged, or not as published.
    """
    pair = []
    for kind in ("image", "label"):
        path = folder / "train" / kind / f"{number}.png"
        if not path.is_file():
            raise UserError(
                f"{path}: not found; expected the published folder data/membrane of "
                "github.com/zhixuhao/unet, with train/image/N.png and train/label/N.png"
            )
        pair.append(builders.read_png(path, "L", HEIGHT, WIDTH))
    image, published = pair
    values = np.setdiff1d(published, (0, PUBLISHED_CELL))
    if values.size:
        raise UserError(
            f"{folder / 'train' / 'label' / f'{number}.png'}: label value {values[0]}, "
            f"expected 0 for membrane or {PUBLISHED_CELL} for cell"
        )
    return image[..., None], (published == PUBLISHED_CELL).astype(np.uint8)


def verify(folder: Path) -> None:
    """Check that every pixel is as published.

    Raises:
        UserError: a file is missing or not as published; the message names the file where known.
    """
    digest = hashlib.sha256()
    for number in builders.progress([*itertools.chain(*SPLITS.values())], "checking ISBI 2012"):
        image, label = read_slice(folder, number)
        digest.update(image.tobytes() + label.tobytes())
    if digest.hexdigest() != PIXELS_SHA256:
        raise UserError(
            f"{folder}: some pixels differ from the published files "
            f"(sha256 {digest.hexdigest()}, expected {PIXELS_SHA256})"
        )


class Isbi2012(builders.Builder):
    """TFDS builder of the labeled slices, from the published folder."""

    name = "isbi2012"
    description = "ISBI 2012 electron microscopy: membranes and cells, 30 labeled slices."
    homepage = "https://imagej.net/events/isbi-2012-segmentation-challenge"
    license = "non-commercial use that cites Cardona et al., PLoS Biology 2010 (the challenge)"
    class_names, palette = CLASS_NAMES, PALETTE
    size, channels = (HEIGHT, WIDTH), 1
    takes_source = True
    made_on_first_use = False

    def __init__(self, source: Path | None, resolution: object, data_dir: Path | None):
        self._source = source
        self.splits = {split: len(numbers) for split, numbers in SPLITS.items()}
        super().__init__(None, data_dir)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, builders.Records]:
        if self._source is None:
            raise UserError(
                "isbi2012 is not downloaded: get data/membrane of github.com/zhixuhao/unet, then "
                "segjax data isbi2012 --source DIR"
            )
        verify(self._source)
        self._folder = self._source
        return super()._split_generators(dl_manager)

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Read the slices of a split, from the top of the stack."""
        for number in SPLITS[split]:
            yield *read_slice(self._folder, number), f"slice_{number:02d}"
