"""Streetscenes: synthetic road scenes with CamVid's classes, at any size, without a download."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data import builders, camvid, statistics
from segjax.data.streetscenes import scene
from segjax.errors import UserError

CLASS_NAMES = camvid.CLASS_NAMES
PALETTE = camvid.PALETTE
LICENSE = "Apache-2.0 (drawn by segjax)"

DEFAULT_RESOLUTION = (96, 128)

# Results depend on these and on what `scene` draws: increase `StreetScenes.VERSION` with any
# change, because a dataset on disk is never drawn again.
SEED = 0
SPLITS = {"train": range(400), "val": range(400, 450), "test": range(450, 550)}


class StreetScenes(builders.Builder):
    """TFDS builder of the scenes of a size; scene i is `scene.render(SEED, i, height, width)`."""

    name = "streetscenes"
    description = "Procedural road scenes with the eleven classes of CamVid, and void."
    class_names, palette = CLASS_NAMES, PALETTE
    size: tuple[int, int]

    def __init__(self, *, size: tuple[int, int], **kwargs: Any):
        self.size = size
        super().__init__(config="{}x{}".format(*size), **kwargs)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, builders.Records]:
        return {split: self._generate_examples(split, SPLITS[split]) for split in SPLITS}

    def _generate_examples(self, split: str, indices: range) -> builders.Records:
        tally = statistics.Tally(len(CLASS_NAMES))
        for index in builders.progress(indices, f"drawing {split}"):
            image, label = scene.render(SEED, index, *self.size)
            name = f"scene_{index:05d}"
            tally.add(image, label, name)
            yield index, builders.record(image, label, name)
        self.info.metadata[split] = tally.to_metadata()


def builder(
    data_dir: Path | None, source: Path | None, resolution: tuple[int, int] | None
) -> StreetScenes:
    """Return the builder of scenes of a size (height, width), by default 96x128.

    Raises:
        UserError: a source was given.
    """
    if source is not None:
        raise UserError(f"streetscenes are drawn and take no source, found {source}")
    return StreetScenes(size=resolution or DEFAULT_RESOLUTION, data_dir=data_dir)
