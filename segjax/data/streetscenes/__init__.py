"""Streetscenes: synthetic road scenes with CamVid's classes, at any size, without a download."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data import builders, camvid, statistics
from segjax.data.streetscenes import scene
from segjax.errors import UserError

CLASS_NAMES = camvid.CLASS_NAMES
PALETTE = camvid.PALETTE
LICENSE = "Apache-2.0 (drawn by segjax)"
MADE_ON_FIRST_USE = True

DEFAULT_RESOLUTION = (96, 128)

# Results depend on these and on what `scene` draws: increase `StreetScenes.VERSION` with any
# change, because a dataset on disk is never drawn again.
SEED = 0
SPLITS = {"train": range(400), "val": range(400, 450), "test": range(450, 550)}


@dataclass(eq=False)
class StreetScenesConfig(tfds.core.BuilderConfig):
    """The size of the scenes, in pixels."""

    height: int = 0
    width: int = 0


class StreetScenes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the drawn scenes; scene i is `scene.render(SEED, i, height, width)`."""

    name = "streetscenes"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded

    @classmethod
    def get_builder_config(cls, name: str, version: Any = None) -> StreetScenesConfig:
        """Return the config of a size such as "96x128"; TFDS would look it up in a fixed list."""
        del version  # there is one version
        height, width = (int(side) for side in name.split("x"))
        return StreetScenesConfig(name=name, height=height, width=width)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural road scenes with the eleven classes of CamVid, and void.",
            features=builders.features(self.builder_config.height, self.builder_config.width),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split, SPLITS[split]) for split in SPLITS}

    def _generate_examples(
        self, split: str, indices: range
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        tally = statistics.Tally(len(CLASS_NAMES))
        for index in builders.progress(indices, f"drawing {split}"):
            image, label = scene.render(SEED, index, config.height, config.width)
            name = f"scene_{index:05d}"
            tally.add(image, label, name)
            image_png, label_png = builders.encode_png(image), builders.encode_png(label)
            yield index, builders.record(image_png, label_png, name)
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
    height, width = resolution or DEFAULT_RESOLUTION
    return StreetScenes(config=f"{height}x{width}", data_dir=data_dir, file_format="array_record")
