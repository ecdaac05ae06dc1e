"""Check a folder of images and masks before training on it."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from segjax import metrics
from segjax.data import folder as folders
from segjax.data import images
from segjax.data.builders import progress
from segjax.data.folder import Classes, Pair
from segjax.data.statistics import VOID
from segjax.errors import UserError, counted, listing, one_line
from segjax.inference.baselines import count_guesses, oracles

_ALIKE = 2  # bits of 64 in which the hashes of near-duplicates differ at most
_NAMED = 5  # pairs of images that a line names
_GHOSTS = 4  # undeclared values in a mask, at least, that look like those of a lossy format
_SHOWN = 10  # lines of a list; of undeclared values the most frequent ones
_CEILING_IMAGES = 50  # labels that the ceilings are computed from


@dataclasses.dataclass
class _Seen:
    """Counts and faults of the files of a folder."""

    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)  # height, width
    modes: Counter[str] = dataclasses.field(default_factory=Counter)  # of images
    mask_modes: Counter[str] = dataclasses.field(default_factory=Counter)
    values: Counter[int] = dataclasses.field(default_factory=Counter)  # code -> pixels
    masks: Counter[int] = dataclasses.field(default_factory=Counter)  # code -> masks that have it
    holders: dict[int, list[Path]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    pixels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # split -> (K,)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # that have the class
    hashes: dict[str, list[tuple[int, Path]]] = dataclasses.field(default_factory=dict)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)  # for the ceilings
    unreadable: list[str] = dataclasses.field(default_factory=list)
    uneven: list[str] = dataclasses.field(default_factory=list)  # image and mask of other sizes
    lossy: list[Path] = dataclasses.field(default_factory=list)  # masks as JPEG
    ghosts: list[Path] = dataclasses.field(default_factory=list)  # other masks of `_GHOSTS` values


def check(path: Path) -> tuple[list[str], list[str]]:
    """Describe a folder of images and masks, and list what a person should look at.

    Args:
      path: a folder as `segjax.data.folder` reads it.

    Returns:
      Lines that describe it, and lines that each name a problem.

    Raises:
      UserError: classes.json, the pairs or the splits cannot be made out.
    """
    classes = folders.read_classes(path)
    pairs = folders.find_pairs(path, classes)
    seen = _look(pairs, classes)
    problems = list(_problems(seen, classes))
    if unused := folders.find_unused(path, pairs):
        problems.append(f"{counted(len(unused), 'image')} in no list: {listing(unused)}")
    return list(_description(seen, pairs, classes)), problems


def _look(pairs: Mapping[str, Sequence[Pair]], classes: Classes) -> _Seen:
    """Read every image and mask once."""
    seen = _Seen()
    known = {folders.encode(value): k for k, value in enumerate(classes.values.values())}
    void = {folders.encode(value) for value in classes.void}
    masks = [pair.mask for members in pairs.values() for pair in members]
    places = np.linspace(0, len(masks) - 1, min(len(masks), _CEILING_IMAGES)).astype(int)
    kept = {masks[place] for place in places}
    for split, members in pairs.items():
        seen.pixels[split] = np.zeros(len(classes.names), np.int64)
        seen.images[split] = np.zeros(len(classes.names), np.int64)
        seen.hashes[split] = []
        for pair in progress(members, f"checking {split}"):
            size = _look_at_image(pair.image, classes.channels, split, seen)
            try:
                mode, kind = _mode(pair.mask)
                seen.mask_modes[mode] += 1
                if kind == "JPEG":
                    seen.lossy.append(pair.mask)
                values = folders.read_values(pair.mask, classes)
            except Exception as error:  # a damaged file makes Pillow raise almost any
                seen.unreadable.append(_unreadable(pair.mask, error))
                continue
            if size and values.shape != size:
                seen.uneven.append(
                    f"{pair.image} is {size[0]}x{size[1]}, its mask "
                    f"{values.shape[0]}x{values.shape[1]}"
                )
            label = np.full(values.shape, VOID, np.uint8)
            strays = 0
            for code, count in zip(*np.unique(values, return_counts=True), strict=True):
                code, count = int(code), int(count)
                seen.values[code] += count
                seen.masks[code] += 1
                if code in known:
                    seen.pixels[split][known[code]] += count
                    seen.images[split][known[code]] += 1
                    label[values == code] = known[code]
                elif code not in void:
                    seen.holders[code].append(pair.mask)
                    strays += 1
            if strays >= _GHOSTS and kind != "JPEG":
                seen.ghosts.append(pair.mask)
            if pair.mask in kept:
                seen.labels.append(label)
    return seen


def _look_at_image(path: Path, channels: int, split: str, seen: _Seen) -> tuple[int, int] | None:
    """Note size, mode and hash of an image; return its upright size, None if it is unreadable."""
    try:
        seen.modes[_mode(path)[0]] += 1
        pages, _ = images.list_pages(path)
        if len(pages) > 1:
            raise UserError(f"image {path} has {len(pages)} pages, expected one")
        pixels = images.read_image(path, channels, pages[0])
    except Exception as error:  # a damaged file makes Pillow raise almost any
        seen.unreadable.append(_unreadable(path, error))
        return None
    gray = Image.fromarray(pixels if channels == 3 else pixels.mean(-1).astype(np.uint8))
    seen.hashes[split].append((difference_hash(gray), path))
    height, width = pixels.shape[:2]
    seen.sizes[height, width] += 1
    return height, width


def _unreadable(path: Path, error: Exception) -> str:
    said = one_line(error)
    return said if str(path) in said else f"{path} cannot be read: {said}"


def _mode(path: Path) -> tuple[str, str | None]:
    """Return the mode and the format of a file, such as RGB and PNG."""
    if path.suffix.lower() == images.ARRAY:
        return "array", None
    with images.opened(path) as image:
        return image.mode, image.format


def difference_hash(image: Image.Image) -> int:
    """Return a perceptual hash of 64 bits: is each of 9x8 gray pixels below its right neighbor?"""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)).astype(int)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int(bits @ (1 << np.arange(64, dtype=object)))


def near_duplicates(hashes: Mapping[str, Sequence[tuple[int, Path]]]) -> list[tuple[Path, Path]]:
    """Return pairs of images of different splits whose hashes differ in at most two bits."""
    splits = list(hashes)
    found = []
    for place, first in enumerate(splits):
        for second in splits[place + 1 :]:
            theirs = np.array([code for code, _ in hashes[second]], np.uint64)
            for code, path in hashes[first]:
                apart = np.bitwise_count(theirs ^ np.uint64(code))
                near = np.nonzero(apart <= _ALIKE)[0].tolist()
                found += [(path, hashes[second][k][1]) for k in near]
    return found


def ceilings(labels: Iterable[np.ndarray], num_classes: int) -> dict[int, np.ndarray]:
    """Return {stride: IoU of each class} of labels with the majority of each block: (K,) float64.

    That is about the most that a network reaches which predicts one class for each block of its
    output stride. A class that is nowhere has NaN.
    """
    totals = count_guesses(labels, oracles(num_classes), num_classes)
    found = {}
    for stride, total in totals.items():
        scores = metrics.scores(total)
        found[stride] = np.where(scores.present, scores.per_class_iou, np.nan)
    return found


def widths(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """Return the typical width of each class in pixels, (K,); NaN for a class that is nowhere.

    It is four times the mean distance of its pixels to other classes: a strip's own width.
    """
    distances, counts = np.zeros(num_classes), np.zeros(num_classes)
    for label in labels:
        for k in np.unique(label[label != VOID]):
            inside = np.pad(label == k, 1)
            distance = ndimage.distance_transform_edt(inside) - 0.5  # to the edge of the pixel
            distances[k] += distance[inside].sum()
            counts[k] += inside.sum()
    return np.where(counts > 0, 4 * distances / np.maximum(counts, 1), np.nan)


def _description(
    seen: _Seen, pairs: Mapping[str, Sequence[Pair]], classes: Classes
) -> Iterator[str]:
    yield "images: " + ", ".join(f"{split} {len(members)}" for split, members in pairs.items())
    sizes = seen.sizes.most_common(3)
    more = f", {len(seen.sizes) - 3} more" if len(seen.sizes) > 3 else ""
    yield "sizes: " + ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes) + more
    for kind, modes in (("image modes", seen.modes), ("mask modes", seen.mask_modes)):
        yield f"{kind}: " + ", ".join(f"{mode} ({n})" for mode, n in modes.most_common())

    total = max(sum(seen.values.values()), 1)
    strays = _strays(seen)[:_SHOWN]
    names = {folders.encode(value): name for name, value in classes.values.items()}
    names |= {folders.encode(value): "void" for value in classes.void}
    shown = [code for code, _ in seen.values.most_common() if code in names or code in strays]
    for code in shown:
        value, count, masks = folders.decode(code, classes), seen.values[code], seen.masks[code]
        yield (
            f"value {value}: {names.get(code, 'NOT DECLARED')}, {counted(count, 'pixel')} "
            f"({100 * count / total:.3g}%) in {counted(masks, 'mask')}"
        )
    if len(shown) < len(seen.values):
        yield f"and {counted(len(seen.values) - len(shown), 'more value')}: NOT DECLARED"

    pixels = np.sum([*seen.pixels.values()], 0)
    images = np.sum([*seen.images.values()], 0)
    if pixels.any():
        yield (
            f"rarest: {_rarest(classes, pixels)} in pixels, {_rarest(classes, images)} in images"
        )
    if pixels.any() and seen.holders:
        yield "baseline and ceilings: unknown until every value is declared"
    elif pixels.any():
        common = int(np.argmax(pixels))
        share = 100 * pixels[common] / pixels.sum()
        yield f"baseline: {classes.names[common]} everywhere has {share:.1f}% of the pixels right"
        yield from _limits(seen, classes)


def _strays(seen: _Seen) -> list[int]:
    """Return the undeclared values, the most frequent one first."""
    return sorted(seen.holders, key=lambda code: -seen.values[code])


def _rarest(classes: Classes, counts: Any) -> str:
    present = np.where(counts > 0, counts, np.iinfo(np.int64).max)
    return f"{classes.names[int(np.argmin(present))]} ({int(present.min())})"


def _limits(seen: _Seen, classes: Classes) -> Iterator[str]:
    number = len(classes.names)
    if all((label == VOID).all() for label in seen.labels):
        yield f"ceilings: unknown, the {len(seen.labels)} masks sampled for them are all void"
        return
    wide = widths(seen.labels, number)
    for stride, iou in ceilings(seen.labels, number).items():
        worst = int(np.nanargmin(iou))
        yield (
            f"output stride {stride}: a perfect network has about {100 * np.nanmean(iou):.0f} mIoU "
            f"here, {classes.names[worst]} (about {counted(round(wide[worst]), 'pixel')} wide) "
            f"{100 * iou[worst]:.0f}"
        )


def _problems(seen: _Seen, classes: Classes) -> Iterator[str]:
    undeclared = [
        f"value {folders.decode(code, classes)} is not declared: "
        f"{counted(seen.values[code], 'pixel')} in {counted(len(seen.holders[code]), 'mask')}: "
        f"{listing(seen.holders[code])}"
        for code in _strays(seen)
    ]
    for lines in (seen.unreadable, seen.uneven, undeclared):
        yield from lines[:_SHOWN]
        if len(lines) > _SHOWN:
            yield f"and {len(lines) - _SHOWN} more"
    if seen.lossy:
        masks = counted(len(seen.lossy), "mask")
        yield f"{masks} saved as JPEG, which changes values: {listing(seen.lossy)}"
    if seen.ghosts:
        yield (
            f"{counted(len(seen.ghosts), 'mask')} with {_GHOSTS} or more undeclared values, as "
            "JPEG or a smooth resize leaves them (ghosts); make them again from their source, as "
            f"PNG by nearest neighbor: {listing(seen.ghosts)}"
        )
    for split, pixels in seen.pixels.items():
        absent = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
        if absent:
            yield f"classes without a pixel in {split}: {listing(absent, _SHOWN)}"
    alike = near_duplicates(seen.hashes)
    if alike:
        named = "; ".join(f"{a} and {b}" for a, b in alike[:_NAMED])
        more = f"; and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        pairs = counted(len(alike), "pair")
        yield f"{pairs} of images that look alike in different splits: {named}{more}"
