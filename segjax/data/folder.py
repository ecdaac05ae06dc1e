"""A dataset of your own: the images and masks of a folder.

The folder has `classes.json` and the files, in one of three forms:

- `train/images`, `train/masks`, and `val` and `test` alike;
- `images`, `masks`, and the lists `train.txt`, `val.txt` and `test.txt`, one name a line;
- `images` and `masks`: a seeded share of them is `val` and another is `test`.

An image and its mask have the same name up to the suffix. `classes.json` maps each class's name, in
the order of the labels, to its value in the masks: an integer (a gray value or the index of a
palette) or an RGB triple.

    {"Background": 0, "Cell": 255}

or, with more fields, of which only "classes" is required:

    {"classes": {"Road": [128, 64, 128], "Car": [64, 0, 128]},
     "void": [[0, 0, 0]],                  values that are ignored
     "colors": {"Road": [90, 90, 90]},     of the classes in pictures; default: their RGB values
     "mask_suffix": "_L",                  a_L.png is the mask of a.png; default: ""
     "channels": 3,                        of the images: 3 (default) for RGB, 1 for gray, or N
     "share": {"val": 0.15, "test": 0.15, "seed": 0}}

Images of N channels are arrays, uint8 (H, W, N) in `.npy` files; a mask may be an array of integers
(H, W). The images are prepared once, upright and at their own size, and again whenever a file of
the folder changes.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data import builders, images
from segjax.data.statistics import VOID
from segjax.errors import UserError, counted, listing, one_line, warn
from segjax.system import stored

SPLITS = ("train", "val", "test")
SHARE = {"val": 0.15, "test": 0.15, "seed": 0}
_FIELDS = {
    "classes": dict,
    "void": list,
    "colors": dict,
    "mask_suffix": str,
    "channels": int,
    "share": dict,
}

Value = int | tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes and settings of a folder, from its `classes.json`."""

    values: dict[str, Value]  # name -> value in the masks, in the order of the labels
    void: tuple[Value, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB, for pictures
    mask_suffix: str
    channels: int  # of the images
    share: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def colored(self) -> bool:
        """Return whether the values are RGB triples."""
        return isinstance(next(iter(self.values.values())), tuple)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


def read_classes(folder: Path) -> Classes:
    """Read `classes.json` of a folder.

    Raises:
      UserError: it is missing, cannot be read, or says something impossible.
    """
    path = folder / "classes.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, expected one of images, masks and classes.json")
    try:
        content = stored.parse(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f'{path} does not exist; expected such as {{"Background": 0, "Cell": 255}}'
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; expected JSON such as "
            '{"Background": 0, "Cell": 255}'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object of names and values, found {content!r}")
    if not isinstance(content.get("classes"), dict):
        content = {"classes": content}
    unknown = [name for name in content if name not in _FIELDS]
    if unknown:
        raise UserError(f"{path} has no field {unknown[0]!r}; it has {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        if name in content and not isinstance(content[name], kind):
            raise UserError(f"{path}: {name} is {content[name]!r}, expected a {kind.__name__}")
    values = {name: _value(value, path, name) for name, value in content["classes"].items()}
    void = tuple(_value(value, path, "void") for value in content.get("void", []))
    if not 1 <= len(values) <= VOID - 1:
        raise UserError(f"{path} has {len(values)} classes, expected 1 to {VOID - 1}")
    if "" in values:
        raise UserError(f"{path} has a class without a name")
    taken: dict[Value, str] = {}
    for name, value in (*values.items(), *(("void", value) for value in void)):
        if isinstance(value, tuple) != isinstance(next(iter(values.values())), tuple):
            raise UserError(f"{path}: {name} is {value}; expected all integers or all RGB triples")
        if value in taken:
            raise UserError(f"{path}: {name} and {taken[value]} both have the value {value}")
        taken[value] = name
    channels = content.get("channels", 3)
    if not (type(channels) is int and channels >= 1):
        raise UserError(
            f"{path}: channels is {channels}, expected 3 for RGB, 1 for gray, or the channels of "
            ".npy files"
        )
    colors = content.get("colors", {})
    stray = [name for name in colors if name not in values]
    if stray:
        raise UserError(f"{path}: colors has {stray[0]!r}, which is no class")
    palette = []
    for place, (name, value) in enumerate(values.items()):
        default = value if isinstance(value, tuple) else builders.distinct_color(place)
        palette.append(_color(colors[name], path, name) if name in colors else default)
    return Classes(
        values=values,
        void=void,
        palette=tuple(palette),
        mask_suffix=content.get("mask_suffix", ""),
        channels=channels,
        share=_share(content.get("share", {}), path),
    )


def _value(value: Any, path: Path, name: str) -> Value:
    if type(value) is int and 0 <= value < 2**16:
        return value
    if isinstance(value, list):
        return _color(value, path, name)
    raise UserError(
        f"{path}: {name} is {value!r}, expected an integer from 0 to 65535 or an RGB triple"
    )


def _color(value: Any, path: Path, name: str) -> tuple[int, int, int]:
    if not (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        raise UserError(f"{path}: {name} is {value!r}, expected three integers from 0 to 255")
    return value[0], value[1], value[2]


def _share(given: Mapping[str, Any], path: Path) -> dict[str, float]:
    share = {**SHARE, **given}
    if set(share) != set(SHARE) or not all(type(x) in (int, float) for x in share.values()):
        raise UserError(f"{path}: share is {given!r}, expected val, test and seed")
    if not (share["val"] > 0 and share["test"] >= 0 and share["val"] + share["test"] < 1):
        raise UserError(f"{path}: share is {given!r}, expected parts of 1 that leave a rest")
    if not (share["seed"] >= 0 and share["seed"] == int(share["seed"])):
        raise UserError(f"{path}: the seed of share is {share['seed']}, expected an integer from 0")
    return share


def find_pairs(folder: Path, classes: Classes) -> dict[str, list[Pair]]:
    """Find the images and masks of each split, in the order of their names.

    Raises:
      UserError: a folder is missing or empty, a file has no partner or is there twice, a list names
        what is not there, or two splits share an image.
    """
    if (folder / "train").is_dir():
        splits = SPLITS if (folder / "test").is_dir() else SPLITS[:2]
        found = {split: _match(folder / split, classes) for split in splits}
    elif any(os.path.lexists(folder / f"{split}.txt") for split in SPLITS):
        splits = SPLITS if os.path.lexists(folder / "test.txt") else SPLITS[:2]
        pairs = {pair.name: pair for pair in _match(folder, classes)}
        found = {split: _listed(folder / f"{split}.txt", pairs) for split in splits}
    else:
        found = _shared_out(_match(folder, classes), classes.share, folder)
    seen: dict[str, str] = {}
    for split, pairs_of in found.items():
        for pair in pairs_of:
            other = seen.setdefault(os.path.realpath(pair.image), split)
            if other != split:
                raise UserError(
                    f"{pair.image} is in {other} and in {split}, expected in one of them"
                )
    return found


def find_unused(folder: Path, pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Return the names of the images that the lists of the splits leave out."""
    if (folder / "train").is_dir():
        return []
    used = {pair.image for split in pairs.values() for pair in split}
    return [path.name for path in _files(folder / "images", "").values() if path not in used]


def _match(folder: Path, classes: Classes) -> list[Pair]:
    """Pair the files of `images` and `masks` by their names up to the suffix."""
    shown = _files(folder / "images", "")
    masks = _files(folder / "masks", classes.mask_suffix)
    for these, others, kind, other_kind in (
        (shown, masks, "image", "mask"),
        (masks, shown, "mask", "image"),
    ):
        lone = [path for name, path in these.items() if name not in others]
        if lone:
            raise UserError(
                f"{len(lone)} of {counted(len(these), kind)} in {folder} without a {other_kind} of "
                f"the same name: {listing(lone)}; add or rename them, or take the {kind}s out"
            )
    return [Pair(name, shown[name], masks[name]) for name in sorted(shown)]


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return {name up to the suffix: path} of the pictures in a folder, hidden files left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, expected pictures in it")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in images.suffixes():
            continue
        if not path.is_file():
            raise UserError(f"{path} is no file that can be read, expected a picture; remove it")
        if not path.stem.endswith(suffix):
            raise UserError(f"{path} does not end with the mask_suffix {suffix!r} of classes.json")
        twin = found.setdefault(path.stem.removesuffix(suffix), path)
        if twin != path:
            raise UserError(f"{path} and {twin.name} have the same name, expected one of them")
    if not found:
        raise UserError(f"{folder} has no pictures, expected files such as a.png or a.jpg")
    return found


def _listed(path: Path, pairs: Mapping[str, Pair]) -> list[Pair]:
    """Return the pairs that a list names, by name with or without the suffix, in its order."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    by_file = {pair.image.name: name for name, pair in pairs.items()}
    names = [by_file.get(line, line) for line in lines if line]
    missing = [name for name in names if name not in pairs]
    if missing:
        raise UserError(
            f"{path} names {counted(len(missing), 'missing image')}: {listing(missing)}; expected "
            "names of files in images, with or without the suffix"
        )
    if not names:
        raise UserError(f"{path} is empty, expected a name a line")
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} names {twin} twice, expected each name once")
    return [pairs[name] for name in names]


def _shared_out(
    pairs: list[Pair], share: Mapping[str, float], folder: Path
) -> dict[str, list[Pair]]:
    """Share the pairs out at random; the same names and seed give the same splits."""
    order = np.random.default_rng(int(share["seed"])).permutation(len(pairs))
    sizes = {split: round(share[split] * len(pairs)) for split in ("val", "test")}
    sizes = {split: max(size, 1) if share[split] else 0 for split, size in sizes.items()}
    val, test = sizes["val"], sizes["val"] + sizes["test"]
    if test >= len(pairs):
        raise UserError(
            f"{folder} has {counted(len(pairs), 'image')}, too few to share out: expected at "
            "least 3"
        )
    places = {"train": order[test:], "val": order[:val], "test": order[val:test]}
    return {
        split: [pairs[place] for place in sorted(chosen)]
        for split, chosen in places.items()
        if len(chosen)
    }


def read_values(path: Path, classes: Classes) -> np.ndarray:
    """Read the values of a mask as stored: int64 (H, W), an RGB triple as r << 16 | g << 8 | b.

    Raises:
      UserError: the file is damaged, has several pages, or a mode that has no such values.
    """
    if path.suffix.lower() == images.ARRAY:
        array = images.read_array(path)
        if classes.colored or array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise UserError(
                f"mask {path} has shape {array.shape} and dtype {array.dtype}, expected integers "
                "(H, W), and integers in classes.json"
            )
        return array.astype(np.int64)
    try:
        with images.opened(path) as mask:
            pages = getattr(mask, "n_frames", 1)
            if pages > 1:
                raise UserError(f"{path} has {pages} pages, expected one; save each as a file")
            if classes.colored:
                if mask.mode not in ("P", "RGB", "RGBA"):
                    raise UserError(f"{path} is of mode {mask.mode}, expected RGB or a palette")
                pixels = np.asarray(mask.convert("RGBA")).astype(np.int64)
                if (pixels[..., 3] < 255).any():
                    raise UserError(f"{path} has transparent pixels, expected opaque colors")
                return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
            if mask.mode in ("1", "L", "P", "I", "I;16", "I;16B"):
                return np.asarray(mask).astype(np.int64)
            if mask.mode == "RGB":
                pixels = np.asarray(mask)
                if (pixels == pixels[..., :1]).all():  # gray, saved as RGB
                    return pixels[..., 0].astype(np.int64)
            raise UserError(
                f"{path} is of mode {mask.mode}, but classes.json has integers; expected gray "
                "values or the indices of a palette in the mask, or RGB triples in classes.json"
            )
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost any
        raise UserError(f"mask {path} cannot be read: {one_line(error)}; make it again") from error


def encode(value: Value) -> int:
    """Return a value as `read_values` has it."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def decode(code: int, classes: Classes) -> Value:
    """Return the value that `read_values` encodes."""
    return (code >> 16, code >> 8 & 255, code & 255) if classes.colored else code


def read_label(path: Path, classes: Classes) -> np.ndarray:
    """Read a mask as a label: uint8 (H, W) in [0, K), VOID where its value is declared void.

    Raises:
      UserError: as `read_values`, or a value is neither a class nor void: it names the value, the
        number of its pixels and the first of them.
    """
    known = {encode(value): label for label, value in enumerate(classes.values.values())}
    known |= dict.fromkeys(map(encode, classes.void), VOID)
    return builders.map_labels(
        read_values(path, classes),
        known,
        path,
        "which classes.json does not declare: add it to the classes or to void"
        + (", or save the mask as PNG, as JPEG changes values" if _is_jpeg(path) else ""),
        lambda code: decode(code, classes),
    )


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")


class Folder(builders.Builder):
    """TFDS builder of the folder `source`; a changed file is prepared anew."""

    name = "folder"
    takes_source = True

    def __init__(self, source: Path | None, resolution: object, data_dir: Path | None):
        if source is None:
            raise UserError(
                "dataset folder needs a folder: --config.data.folder=DIR, or segjax data folder "
                "--source DIR"
            )
        self.classes = read_classes(source)
        self.class_names, self.palette = self.classes.names, self.classes.palette
        self.channels = self.classes.channels
        self.pairs = find_pairs(source, self.classes)
        self.splits = {split: len(pairs) for split, pairs in self.pairs.items()}
        self._folder = source
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.classes)).encode())
        for split, pairs in self.pairs.items():
            for pair in pairs:
                stats = (pair.image.stat(), pair.mask.stat())
                seen = [[split, pair.name], *([stat.st_size, stat.st_mtime_ns] for stat in stats)]
                digest.update(json.dumps(seen).encode())
        super().__init__(digest.hexdigest()[:16], data_dir)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if unused := find_unused(self._folder, self.pairs):
            warn(f"{self._folder}: {counted(len(unused), 'image')} in no list: {listing(unused)}")
        return super()._split_generators(dl_manager)

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Read the images and masks of a split."""
        for pair in self.pairs[split]:
            pages, _ = images.list_pages(pair.image)
            if len(pages) > 1:
                raise UserError(
                    f"image {pair.image} has {len(pages)} pages, expected one; save each page as a "
                    "file of its own"
                )
            image = images.read_image(pair.image, self.classes.channels, pages[0])
            label = read_label(pair.mask, self.classes)
            if image.shape[:2] != label.shape:
                sizes = ["x".join(map(str, x.shape[:2])) for x in (image, label)]
                raise UserError(
                    f"{pair.image} is {sizes[0]}, its mask {sizes[1]} pixels; expected equal sizes "
                    "(height x width, the image upright by its EXIF orientation)"
                )
            yield image, label, pair.name
