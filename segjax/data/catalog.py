"""The datasets of TFDS's catalog, named `tfds:NAME` or `tfds:NAME/CONFIG` in the config.

TFDS has to have prepared the dataset as array_record; segjax then makes a copy of its own, once, in
which each value of the masks is a class or void. `Options` says which features hold image and mask,
and what the values mean. Datasets with a preset need none:

- `oxford_iiit_pet`: Background and Pet. The third value of the trimaps, which the dataset's README
  calls "not classified" (border and accessories), is void.
- `cityscapes`: the 19 classes that are evaluated (the "train ids"), from the label ids; the others
  are void. Its test labels are not published, so that it has train and val alone.
"""

import dataclasses
import hashlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data import builders
from segjax.data.statistics import VOID
from segjax.errors import UserError, one_line

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what a TFDS dataset means: the fields `data.tfds.*`; empty ones are the preset's."""

    image: str = ""  # name of the feature
    mask: str = ""  # name of the feature
    classes: tuple[tuple[Any, ...], ...] = ()  # (name, value, ...) of each, in the labels' order
    void: tuple[int, ...] = ()  # values that are ignored
    splits: tuple[str, ...] = ()  # TFDS's expressions of train, val and, optionally, test


_CITYSCAPES = {
    "Road": (7, (128, 64, 128)),
    "Sidewalk": (8, (244, 35, 232)),
    "Building": (11, (70, 70, 70)),
    "Wall": (12, (102, 102, 156)),
    "Fence": (13, (190, 153, 153)),
    "Pole": (17, (153, 153, 153)),
    "TrafficLight": (19, (250, 170, 30)),
    "TrafficSign": (20, (220, 220, 0)),
    "Vegetation": (21, (107, 142, 35)),
    "Terrain": (22, (152, 251, 152)),
    "Sky": (23, (70, 130, 180)),
    "Person": (24, (220, 20, 60)),
    "Rider": (25, (255, 0, 0)),
    "Car": (26, (0, 0, 142)),
    "Truck": (27, (0, 0, 70)),
    "Bus": (28, (0, 60, 100)),
    "Train": (31, (0, 80, 100)),
    "Motorcycle": (32, (0, 0, 230)),
    "Bicycle": (33, (119, 11, 32)),
}

PRESETS = {
    "oxford_iiit_pet": Options(
        image="image",
        mask="segmentation_mask",
        classes=(("Background", 2), ("Pet", 1)),
        void=(3,),
        splits=("train[:80%]", "train[80%:]", "test"),
    ),
    "cityscapes": Options(
        image="image_left",
        mask="segmentation_label",
        classes=tuple((name, value) for name, (value, _) in _CITYSCAPES.items()),
        void=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
        splits=("train", "validation"),
    ),
}
"""Name without config -> options."""

PALETTES = {"cityscapes": tuple(color for _, color in _CITYSCAPES.values())}
"""Published colors of the presets' classes."""

_TRAPS = {
    "voc": "it has boxes, no masks; make a folder of VOC's JPEGImages and SegmentationClass",
    "scene_parse150": "its masks are of instances (annotations_instance.tar), not of ADE20K's 150 "
    "classes; make a folder of ADEChallengeData2016",
    "coco": "it has boxes, no masks",
}

_DEFAULTS = Options(image="image", mask="segmentation_mask", splits=("train", "validation", "test"))


def check_name(name: str) -> None:
    """Raise a UserError if NAME of `tfds:NAME` is known to have no masks of classes."""
    if not name:
        raise UserError("dataset tfds: has no name, expected such as tfds:oxford_iiit_pet")
    if trap := _TRAPS.get(name.partition("/")[0]):
        raise UserError(f"dataset tfds:{name} cannot be used: {trap}")


def resolve(name: str, options: Options) -> Options:
    """Return options whose empty fields are the preset's, and check them.

    Raises:
      UserError: a field is of another kind, or two classes have one value.
    """
    preset = PRESETS.get(name.partition("/")[0], _DEFAULTS)
    given = {field: value for field, value in dataclasses.asdict(options).items() if value}
    if options.classes:  # the preset's void belongs to the preset's classes
        given["void"] = options.void
    options = dataclasses.replace(preset, **given)

    def require(holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise UserError(
                f"config field 'data.tfds.{field}' is {getattr(options, field)!r}, expected "
                f"{expected}"
            )

    form = "the name and value of each class, such as (('Background', 2), ('Pet', 1))"
    require(bool(options.classes), "classes", form)
    taken: dict[int, str] = {}
    for entry in options.classes:
        known = isinstance(entry, tuple | list) and len(entry) > 1 and isinstance(entry[0], str)
        require(known and all(type(value) is int for value in entry[1:]), "classes", form)
        for value in entry[1:]:
            require(value not in taken, "classes", f"{value} to be of one class")
            taken[value] = entry[0]
    names = [entry[0] for entry in options.classes]
    require(all(names) and len(set(names)) == len(names) < VOID, "classes", "different names")
    require(all(type(value) is int for value in options.void), "void", "integers")
    twice = [value for value in options.void if value in taken]
    require(not twice, "void", f"no value of a class, but {twice[:1]} is one")
    texts = all(isinstance(split, str) and split for split in options.splits)
    require(texts and len(options.splits) in (2, 3), "splits", "train, val and optionally test")
    return options


def open_stored(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Open a dataset that TFDS has prepared in a folder.

    Raises:
      UserError: TFDS does not know it, or it is not there as array_record.
    """
    try:
        stored = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # of the dataset's own code, or of the files that are there
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"dataset tfds:{name}: TFDS cannot open it: {message}") from error
    where = f"--data_dir={shlex.quote(str(data_dir))}"
    if not stored.info.splits:
        manual = "download its files by hand, then " if stored.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
        raise UserError(
            f"{stored.data_path} not found: {manual}prepare it once with tfds build {name} "
            f"--file_format=array_record {where}, for which TFDS needs TensorFlow"
        )
    found = stored.info.file_format
    if found is None or found.value != "array_record":
        raise UserError(
            f"{stored.data_path} is stored as {found.value if found else 'unknown'}, expected "
            f"array_record: prepare it again with tfds build {name} --file_format=array_record "
            f"--overwrite {where}"
        )
    return stored


class Tfds(builders.Builder):
    """TFDS builder of segjax's copy of a dataset that TFDS has prepared in `stored_in`."""

    name = "tfds"

    def __init__(
        self,
        dataset: str,
        options: Options,
        stored_in: Path,
        source: None,
        resolution: object,
        data_dir: Path | None,
    ):
        self.dataset, self.stored = dataset, open_stored(dataset, stored_in)
        self.options = options = resolve(dataset, options)
        for field in ("image", "mask"):
            self._check_feature(field, getattr(options, field))
        expressions = dict(zip(SPLITS, options.splits, strict=False))
        self.stored_splits = {split: self._split(text) for split, text in expressions.items()}
        self._refuse_leaks()
        self.splits = {split: part.num_examples for split, part in self.stored_splits.items()}
        self.class_names = tuple(entry[0] for entry in options.classes)
        base = dataset.partition("/")[0]
        same = base in PRESETS and options.classes == PRESETS[base].classes
        colors = PALETTES.get(base) if same else None
        self.palette = colors or builders.distinct_colors(len(self.class_names))
        info = self.stored.info
        self.channels = info.features[options.image].shape[-1]
        parts = sorted(info.splits.items())
        sizes = {name: [part.num_examples, part.num_bytes] for name, part in parts}
        described = [info.full_name, sizes, dataclasses.asdict(options)]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        super().__init__(digest[:16], data_dir)

    def _check_feature(self, field: str, name: str) -> None:
        features = self.stored.info.features
        found = {key: features[key] for key in features}
        images = [key for key, kind in found.items() if isinstance(kind, tfds.features.Image)]
        if name not in images:
            raise UserError(
                f"config field 'data.tfds.{field}' is {name!r}, but the images of tfds:"
                f"{self.dataset} are {', '.join(images) or 'none'}"
            )
        if found[name].np_dtype != np.uint8:
            raise UserError(
                f"config field 'data.tfds.{field}' is {name!r}, of {found[name].np_dtype} in tfds:"
                f"{self.dataset}, expected uint8"
            )
        channels = found[name].shape[-1]
        if channels not in ((1, 3) if field == "image" else (1,)):
            expected = "1 or 3" if field == "image" else "1, the value of a pixel"
            raise UserError(
                f"config field 'data.tfds.{field}' is {name!r}, of {channels} channels in tfds:"
                f"{self.dataset}, expected {expected}"
            )

    def _split(self, text: str) -> Any:
        try:
            return self.stored.info.splits[text]
        except (KeyError, ValueError, AssertionError) as error:
            raise UserError(
                f"config field 'data.tfds.splits' has {text!r}, but the splits of tfds:"
                f"{self.dataset} are {', '.join(self.stored.info.splits)}, or parts of them such "
                "as train[:80%]"
            ) from error

    def _refuse_leaks(self) -> None:
        """Raise a UserError if two splits share an example."""
        seen: list[tuple[str, str, int, int]] = []
        for split, part in self.stored_splits.items():
            for piece in part.file_instructions:
                end = piece.skip + piece.take if piece.take >= 0 else piece.examples_in_shard
                for other, file, first, last in seen:
                    overlap = file == piece.filename and max(first, piece.skip) < min(last, end)
                    if overlap and other != split:
                        raise UserError(
                            f"config field 'data.tfds.splits' is {self.options.splits}: {other} "
                            f"and {split} share examples"
                        )
                seen.append((split, piece.filename, piece.skip, end))

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Yield image, label and name of each example, the name being its place and its text.

        Raises:
          UserError: an example cannot be read, its mask has another size, or an undeclared value.
        """
        options = self.options
        expression = options.splits[SPLITS.index(split)]
        skip = tfds.decode.SkipDecoding()
        records: Any = self.stored.as_data_source(
            expression, decoders={options.image: skip, options.mask: skip}
        )
        features = self.stored.info.features
        texts = [key for key in features if isinstance(features[key], tfds.features.Text)]
        known = {value: k for k, entry in enumerate(options.classes) for value in entry[1:]}
        known |= dict.fromkeys(options.void, VOID)
        for place in range(len(records)):
            try:
                record = records[place]
            except Exception as error:  # of the readers of records and of protobufs
                where = f"tfds:{self.dataset} {expression}, example {place}"
                raise UserError(f"{where} cannot be read: {one_line(error)}") from error
            name = "_".join([f"{place:06d}", *(record[key].decode() for key in texts[:1])])
            where = f"tfds:{self.dataset} {expression}, example {place} ({name})"
            with _decoded(record[options.image], where) as picture:
                image = np.array(picture.convert("L" if self.channels == 1 else "RGB"))
            with _decoded(record[options.mask], where) as mask:
                values = np.array(mask).astype(np.int64)
            if values.shape != image.shape[:2]:
                sizes = ["x".join(map(str, x.shape)) for x in (image, values)]
                raise UserError(f"{where} is {sizes[0]}, its mask {sizes[1]} pixels")
            label = builders.map_labels(
                values, known, where, "expected a value of data.tfds.classes or data.tfds.void"
            )
            yield image.reshape(*image.shape[:2], self.channels), label, name


def _decoded(data: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # a damaged file makes Pillow raise almost any
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error
    return image
