"""Streetscenes: synthetic road scenes with CamVid's classes, at any size, without a download."""

from collections.abc import Iterator
from pathlib import Path

from segjax.data import builders, camvid
from segjax.data.streetscenes import scene

DEFAULT_RESOLUTION = (96, 128)

# Results depend on these and on what `scene` draws: increase `StreetScenes.VERSION` with any
# change, because a dataset on disk is never drawn again.
SEED = 0
SPLITS = {"train": range(400), "val": range(400, 450), "test": range(450, 550)}


class StreetScenes(builders.Builder):
    """TFDS builder of the scenes of a size; scene i is `scene.render(SEED, i, height, width)`."""

    name = "streetscenes"
    description = "Procedural road scenes with the eleven classes of CamVid, and void."
    license = "Apache-2.0 (drawn by segjax)"
    class_names, palette = camvid.CLASS_NAMES, camvid.PALETTE
    size: tuple[int, int]

    def __init__(
        self, source: None, resolution: tuple[int, int] | None, data_dir: Path | None
    ) -> None:
        self.size = resolution or DEFAULT_RESOLUTION
        self.splits = {split: len(indices) for split, indices in SPLITS.items()}
        super().__init__("{}x{}".format(*self.size), data_dir)

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Draw the scenes of a split."""
        for index in SPLITS[split]:
            yield *scene.render(SEED, index, *self.size), f"scene_{index:05d}"
