"""Compare two runs by a paired bootstrap over their test images."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax import metrics, results
from segjax.errors import UserError, listing
from segjax.metrics import boundary
from segjax.results.counts import Counts
from segjax.results.schema import Row
from segjax.results.summary import SCORES

SAMPLES = 10_000
MOST_SAMPLES = 1_000_000
_AT_ONCE = 1000  # samples, of which each has a count for each image
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """One score of two runs on the same images, as fractions."""

    score: str  # a key of SCORES
    first: float
    second: float
    low: float  # ends of the CONFIDENCE interval of second - first
    high: float
    better: float  # fraction of the samples in which the second is better; ties count half


def load(path: Path) -> tuple[Row, Counts]:
    """Load the row of a run and the counts of each image.

    Args:
      path: run directory, or `result.json`; the counts are in the `.npz` file of the same name.

    Raises:
      UserError: the row or the counts are missing, or the counts do not add up to the row.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{path} has no result: expected the directory or the result.json of a finished run"
        )
    found = results.read([file])
    if len(found) != 1:
        raise UserError(f"{path} has {len(found)} rows, expected the result.json of one run")
    (row,) = found
    beside = file.with_suffix(".npz")
    try:
        with np.load(io.BytesIO(beside.read_bytes())) as arrays:
            confusion, boundaries = arrays["confusion"], arrays.get("boundary")
            counts = Counts(confusion, boundaries, arrays.get("names"))
        total = counts.total
        if unknown := set(arrays.files) - {field.name for field in dataclasses.fields(Counts)}:
            raise ValueError(f"it has {listing(sorted(unknown))}")
    except FileNotFoundError:
        raise UserError(
            f"{beside} is missing: `segjax evaluate` writes the counts of each image"
        ) from None
    except Exception as error:  # of zip and zlib, of NumPy, or of arrays of another type
        raise UserError(f"{beside} is damaged: {error}") from error
    classes, images = len(row["class_names"]), row["num_images"]
    whole = confusion.shape == (images, classes, classes)
    whole = whole and (boundaries is None or boundaries.shape == (images, classes, 3))
    whole = whole and (counts.names is None or counts.names.shape == (images,))
    if not (whole and np.array_equal(total, row["confusion"])):
        raise UserError(f"{beside}: its counts do not add up to those of {file}")
    return row, counts


def compare(
    first: Path, second: Path, *, samples: int = SAMPLES, seed: int = 0
) -> list[Difference]:
    """Return both runs' scores, with bootstrap intervals of the differences.

    Each sample draws as many images as the split has, with replacement, and scores both runs on
    them: G, C and mIoU of the summed confusion matrices, BF as the mean over the images. The
    variation between training seeds is not included.

    Args:
      first: run directory, or `result.json`.
      second: run directory, or `result.json`.
      samples: number of bootstrap samples.
      seed: random seed of the samples.

    Raises:
      UserError: a run cannot be loaded, the runs differ in images, resolution or classes, or the
        samples are too many.
    """
    (row, counts), (other_row, other) = load(first), load(second)
    if samples > MOST_SAMPLES:
        raise UserError(f"{samples} bootstrap samples, expected at most {MOST_SAMPLES}")
    same = {"dataset", "split", "num_images", "resolution", "class_names", "data_digest"}
    if results.is_native(row) and results.is_native(other_row):
        same -= {"resolution"}  # that of training; the labels are of their own sizes
    for name in sorted(each for each in same if each in row and each in other_row):
        if row[name] != other_row[name]:
            raise UserError(
                f"{second} has {name} {other_row[name]}, but {first} has {row[name]}; "
                "expected runs scored on the same images"
            )
    if counts.names is not None and other.names is not None:
        places = np.flatnonzero(counts.names != other.names)
        if places.size:
            place = places[0]
            raise UserError(
                f"image {place} of {second} is {other.names[place]}, but of {first} "
                f"{counts.names[place]}; expected runs scored on the same images"
            )
    if not np.array_equal(counts.confusion.sum(2), other.confusion.sum(2)):
        raise UserError(f"{second} and {first} were scored on different labels")
    images = row["num_images"]
    plain = np.ones((1, images), np.int64)
    a, b = _scores(counts, plain), _scores(other, plain)
    names = [name for name in a if name in b]
    rng, found = np.random.default_rng(seed), []
    for first_of in range(0, samples, _AT_ONCE):
        number = min(_AT_ONCE, samples - first_of)
        chosen = rng.multinomial(images, np.full(images, 1 / images), number)
        many_a, many_b = _scores(counts, chosen), _scores(other, chosen)
        found.append([many_b[name] - many_a[name] for name in names])
    differences = map(np.concatenate, zip(*found, strict=True))
    return [
        _difference(name, a[name][0], b[name][0], each)
        for name, each in zip(names, differences, strict=True)
    ]


def _scores(counts, times):
    """Return {score: (S,)}; times (S, N) is how often each sample contains each image."""
    confusion = times @ counts.confusion.reshape(len(counts.confusion), -1).astype(np.int64)
    sets = [metrics.scores(each) for each in confusion.reshape(-1, *counts.confusion.shape[1:])]
    found = {name: np.array([getattr(each, name) for each in sets]) for name in metrics.SCORES}
    if counts.boundary is None:
        return found
    f = [boundary.mean(each[None]) for each in boundary.f_measure(counts.boundary)]
    measured = np.array([value is not None for value in f])
    if measured.any():
        known = times[:, measured]
        values = np.array([value for value in f if value is not None])
        found["boundary_f"] = known @ values / np.maximum(known.sum(1), 1)
    return found


def _difference(name, first, second, differences):
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    better = np.mean(differences > 0) + np.mean(differences == 0) / 2
    return Difference(name, float(first), float(second), float(low), float(high), float(better))


def render(differences: Sequence[Difference]) -> str:
    """Return the differences as a Markdown table, in percent."""
    lines = [
        f"| score | first | second | difference | {CONFIDENCE:.0%} interval | second better |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in differences:
        low, high = (f"{100 * end:+.1f}" for end in (each.low, each.high))
        lines.append(
            f"| {SCORES[each.score]} | {100 * each.first:.1f} | {100 * each.second:.1f} "
            f"| {100 * (each.second - each.first):+.1f} | {low} to {high} "
            f"| {each.better:.1%} |"
        )
    return "\n".join(lines)
