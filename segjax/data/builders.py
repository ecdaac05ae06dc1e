"""Give all TFDS builders their base class, PNG files, checks and a progress bar."""

import colorsys
import contextlib
import io
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from segjax.data.statistics import Tally
from segjax.errors import UserError, counted, one_line, warn
from segjax.system import waiting

Item = TypeVar("Item")
Color = tuple[int, int, int]
Example = tuple[np.ndarray, np.ndarray, str]  # image, label, name
Records = Iterator[tuple[int, dict[str, Any]]]  # place and record of each example of a split


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W) gray, (H, W, 1) gray, or (H, W, 3) RGB as PNG.

    N other channels become one gray picture (N H, W), the first channel on top: PNG has no more.
    """
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        pixels = pixels.transpose(2, 0, 1).reshape(-1, pixels.shape[1])
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)  # 6 is four times as slow
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
        raise UserError(f"{path}: cannot be read as an image ({one_line(error)})") from error
    if found_size != (width, height):
        raise UserError(
            f"{path}: {found_size[0]}x{found_size[1]} pixels, expected {width}x{height}"
        )
    if found_mode != mode:
        raise UserError(f"{path}: PNG of mode {found_mode}, expected {mode}")
    return pixels


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar on standard error, or one line if it is no terminal."""
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    with waiting.reported(description) if quiet else contextlib.nullcontext():
        yield from track(items, description, total, console=console, disable=quiet, transient=True)


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return colors for classes without any."""
    return tuple(map(distinct_color, range(count)))


def distinct_color(place: int) -> Color:
    """Return a color for a class without one: hues a golden ratio apart."""
    red, green, blue = colorsys.hsv_to_rgb(place * 0.618034 % 1, 0.65, 0.95 - 0.25 * (place % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def map_labels(
    values: np.ndarray,
    known: Mapping[int, int],
    where: object,
    undeclared: str,
    show: Callable[[int], object] = int,
) -> np.ndarray:
    """Return the labels of a mask's values: uint8 (H, W).

    Args:
      values: integers (H, W).
      known: value -> label in [0, K), or VOID.
      where: the mask, for the error.
      undeclared: what the error says of a value that is not in `known`.
      show: how the error shows a value.

    Raises:
      UserError: a value is not in `known`; names the value, the number of its pixels and the first.
    """
    found, places = np.unique(values, return_inverse=True)
    stray = [value for value in found.tolist() if value not in known]
    if stray:
        rows, columns = np.nonzero(values == stray[0])
        more = f", and {counted(len(stray) - 1, 'more such value')}" if len(stray) > 1 else ""
        raise UserError(
            f"{where}: {counted(len(rows), 'pixel')}, the first at row {rows[0]}, column "
            f"{columns[0]}, with the value {show(stray[0])}{more}, {undeclared}"
        )
    table = np.array([known[value] for value in found.tolist()], np.uint8)
    return table[places].reshape(values.shape)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of images and labels, stored in the order of `examples`.

    A subclass has a `name`, `examples` and the attributes below, of the class or set before this
    constructor is called. Its own takes `source` (None unless `takes_source`), `resolution`, which
    a dataset stored at its own sizes ignores, and `data_dir`.

    Args:
      config: digest of whatever determines the examples; a change of it is prepared anew. None:
        they are fixed, up to `VERSION`.
      data_dir: folder of prepared datasets.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # TFDS downloads nothing

    description = "Images and labels."
    homepage: str | None = None
    license = "not known to segjax"
    class_names: tuple[str, ...]  # K names in the order of the labels
    palette: tuple[Color, ...]  # their colors
    splits: Mapping[str, int | None]  # number of examples of each split; None: not known before
    size: tuple[int | None, int | None] = (None, None)  # height and width; None: any
    channels = 3
    takes_source = False
    made_on_first_use = True  # or else by `segjax data` alone

    def __init__(self, config: str | None, data_dir: Path | None):
        super().__init__(file_format="array_record", config=config, data_dir=data_dir)

    @classmethod
    def get_builder_config(cls, name: str, version: Any = None) -> tfds.core.BuilderConfig:
        """Return the config of a name; TFDS would look it up in a fixed list."""
        del version  # there is one version
        return tfds.core.BuilderConfig(name=name)

    def _info(self) -> tfds.core.DatasetInfo:
        # Other channels are stored as `encode_png` does, gray.
        channels = self.channels if self.channels in (1, 3) else 1
        image = tfds.features.Image(shape=(*self.size, channels), encoding_format="png")
        label = tfds.features.Image(shape=(*self.size, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(
                {"image": image, "label": label, "id": tfds.features.Text()}
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Records]:
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split: str) -> Records:
        tally = Tally(len(self.class_names), self.channels)
        examples = progress(self.examples(split), f"writing {split}", self.splits[split])
        for index, (image, label, name) in enumerate(examples):
            tally.add(image, label, name)
            # To encode the images itself, TFDS would need TensorFlow.
            image_png, label_png = (io.BytesIO(encode_png(x)) for x in (image, label))
            yield index, {"image": image_png, "label": label_png, "id": name}
        if not tally.num_images:
            raise UserError(f"the {split} split is empty, expected at least one example")
        if split == "train":
            counts = zip(self.class_names, tally.pixel_counts, strict=True)
            if absent := [name for name, count in counts if not count]:
                warn(f"no training pixel of {', '.join(absent)}")
        self.info.metadata[split] = tally.to_metadata()

    def examples(self, split: str) -> Iterable[Example]:
        """Yield the examples of a split in a fixed order.

        They are an image, uint8 (H, W, channels), its label, uint8 (H, W) in [0, K) or VOID, and a
        name that no other example of the split has.
        """
        raise NotImplementedError
