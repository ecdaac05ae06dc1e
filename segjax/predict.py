"""Predict label maps of images of any size, and draw predictions of several runs."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from segjax.data import datasets, images, pictures
from segjax.errors import UserError, listing, say, warn
from segjax.inference import crf as dense_crf
from segjax.inference import dropout, outputs, tta, windows
from segjax.runs.experiment import Experiment, load_variables, open_run
from segjax.training import parallel

_ASPECTS = 1.25  # largest ratio of the aspect ratios of an image and of training without a warning
_LONGEST_NAME = 255 - len(".tmp")  # bytes; of a file while it is written


class Page(NamedTuple):
    """A page of an image file, or the one image in it."""

    path: Path
    number: int  # in the file, from 0
    stem: str  # of the names of its results


def find_images(names: Iterable[str]) -> list[Path]:
    """Return the paths of image files, and of the images in folders, sorted by name.

    Warn of the other files and the folders in a folder. The images in a folder are those with a
    suffix of `images.suffixes`, except `._NAME`, in which macOS stores attributes of NAME.

    Raises:
      UserError: a path does not exist, or a folder contains no image.
    """
    paths: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            found, others = [], []
            for path in sorted(name.iterdir()):
                if _is_image(path):
                    found.append(path)
                else:
                    others.append(f"{path.name}/" if path.is_dir() else path.name)
            if not found:
                has = f", but {listing(others)}" if others else ""
                raise UserError(
                    f"folder {name} has no image{has}; expected {', '.join(images.FORMATS)}"
                )
            if others:
                warn(f"{name}: left out, not an image: {listing(others)}")
            paths += found
        elif name.is_file():
            paths.append(name)
        else:
            raise UserError(f"image {name} does not exist")
    return list(dict.fromkeys(paths))


def _is_image(path: Path) -> bool:
    is_suffix = path.suffix.lower() in images.suffixes()
    return is_suffix and not path.name.startswith("._") and path.is_file()


def list_pages(path: Path) -> list[Page]:
    """Return the pages of an image file; warn of previews, which are left out.

    Raises:
      ImageError: the file is not a readable image.
    """
    numbers, previews = images.list_pages(path)
    if previews:
        warn(f"{path}: left out, previews or masks: {previews}")
    if len(numbers) == 1:
        return [Page(path, numbers[0], path.stem)]
    digits = len(str(numbers[-1]))
    return [Page(path, number, f"{path.stem}_{number:0{digits}}") for number in numbers]


def targets_of(
    pages: list[Page],
    inputs: list[Path],
    folder: Path,
    endings: Sequence[str],
) -> list[tuple[Path, ...]]:
    """Return the output paths of each page, one for each ending.

    Args:
      pages: to predict.
      inputs: all image files, also those without a readable page.
      folder: of the outputs.
      endings: of the names of the outputs.

    Raises:
      UserError: an output would overwrite an input image, or an output of another page.
    """
    taken: dict[str, tuple[Path, Page | None]] = {
        os.path.realpath(path): (path, None) for path in inputs
    }
    targets = []
    for page in pages:
        own = tuple(folder / f"{page.stem}{ending}.png" for ending in endings)
        for target in own:
            path, other = taken.setdefault(os.path.realpath(target), (page.path, page))
            if other is not page:
                raise UserError(
                    f"{target}, made from {page.path}, would overwrite {path} or a file made from "
                    "it"
                )
        targets.append(own)
    return targets


def predict_files(
    experiment: Experiment,
    variables: dict[str, Any],
    paths: list[Path],
    output: Path,
    *,
    fit: windows.Fit,
    crf: dense_crf.Parameters | None,
    samples: int | None,
    transforms: tta.Transforms | None,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Predict images; write NAME.png, a label map, and NAME_overlay.png for each.

    A label map is an indexed PNG, as `pictures.save_label` writes it. Of a file with several pages
    or frames each is predicted, as NAME_0, NAME_1 and so on.

    With Monte Carlo dropout also write gray maps of the class with the highest mean probability:
    NAME_confidence.png, its mean probability, black 0 to white 1, and NAME_deviation.png, the
    standard deviation of its probability, black 0 to white 1/2.

    Warn of images that cannot be read, that do not fit into memory or whose names are too long, and
    predict the others. Warn of images whose aspect ratio differs from that of training, if they are
    shown with it although training may have squashed its own.

    Args:
      experiment: owner of the network.
      variables: of the network.
      paths: of the images.
      output: folder of the results, created if missing.
      fit: how an image is shown to the network; the logits (with a CRF, the probabilities) are
        resized back to its size.
      crf: parameters of the dense CRF, applied at the size of the image; None: no CRF.
      samples: number of Monte Carlo dropout samples to average; None: no dropout.
      transforms: test-time augmentation; None: no augmentation.
      progress: called with the number of files done.

    Returns:
      How many images were predicted, and how many failed.

    Raises:
      UserError: an output would overwrite a file of another image.
    """
    predictor = _predictor(experiment, fit, crf, samples, transforms)
    variables = parallel.place(variables, experiment.devices[:1])
    trained = experiment.config.data.resolution  # height, width
    squashes = fit == "aspect" and experiment.config.data.fit == "resize"
    other_aspects: list[Path] = []

    def predict(page: Page, target: tuple[Path, ...]) -> None:
        length = max(len(os.fsencode(place.name)) for place in target)
        if length > _LONGEST_NAME:
            raise images.ImageError(
                f"image {page.path}: the names of its results have up to {length} bytes, expected "
                f"at most {_LONGEST_NAME}; rename it"
            )
        image = images.read_image(page.path, len(experiment.info.mean), page.number)
        palette = experiment.info.palette
        with _naming_memory(page.path, image.shape):
            try:
                label, *maps = predictor(variables, image)
            except dropout.NoDropoutError:
                raise
            except UserError as error:  # of a size that the network refuses
                raise images.ImageError(f"image {page.path}: {error}") from error
            pictures.save_label(target[0], label, palette)
            pictures.save(target[1], Image.fromarray(pictures.overlay(image, label, palette)))
        for place, values, white in zip(target[2:], maps, (1.0, 0.5), strict=False):
            pictures.save(place, Image.fromarray(np.rint(values / white * 255).astype(np.uint8)))
        stretch = image.shape[1] * trained[0] / (image.shape[0] * trained[1])
        if squashes and max(stretch, 1 / stretch) > _ASPECTS:
            other_aspects.append(page.path)

    failed = 0
    pages: list[Page] = []
    for path in paths:
        try:
            pages += list_pages(path)
        except images.ImageError as error:
            say(str(error))
            failed += 1
    endings = ("", "_overlay", "_confidence", "_deviation") if samples else ("", "_overlay")
    targets = targets_of(pages, paths, output, endings)
    output.mkdir(parents=True, exist_ok=True)
    predicted, places = 0, {path: place for place, path in enumerate(paths, start=1)}
    for page, target in zip(pages, targets, strict=True):
        try:
            predict(page, target)
            predicted += 1
        except images.ImageError as error:
            say(str(error))
            failed += 1
        progress(places[page.path])
    if other_aspects:
        warn(
            f"{len(other_aspects)} images have an aspect ratio that differs by more than "
            f"{_ASPECTS} times from {trained[0]}x{trained[1]} in training; if that squashed its "
            f"images, use --squash: {listing(other_aspects)}"
        )
    return predicted, failed


@contextlib.contextmanager
def _naming_memory(path: Path, shape: tuple[int, ...]) -> Iterator[None]:
    """Raise an ImageError that names the image if memory is exhausted inside."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise images.ImageError(
            f"image {path} of {shape[0]}x{shape[1]} pixels does not fit into memory; scale it "
            "down or cut it, or use --window"
        ) from error


def _predictor(experiment, fit, crf, samples, transforms):
    """Return f(variables, image) -> [label], with samples [label, confidence, deviation]."""
    output, refine = _inference(experiment, crf, transforms)
    output = dropout.moments(experiment, samples) if samples else output
    strips = windows.build_strips(experiment, output or outputs.logits(experiment), fit)

    def predict(variables, image):
        found = []
        for strip in strips(variables, image, 0):
            maps = []
            if samples:
                moments = dropout.Moments(*np.split(strip, 2, -1))
                maps = [dropout.confidence(moments), dropout.deviation(moments)]
                strip = np.asarray(moments.mean)
            found.append([strip if refine else windows.classes(strip), *maps])
        values, *maps = map(np.concatenate, zip(*found, strict=True))
        return [windows.classes(refine(image, values)) if refine else values, *maps]

    return predict


def _inference(experiment, crf, transforms=None):
    """Return the output (None: the logits of the network) and the CRF refinement (None: no CRF)."""
    if crf is None and transforms is None:
        return None, None
    output = outputs.probabilities(experiment)
    if transforms:
        output = tta.average(output, transforms)
    return output, functools.partial(dense_crf.refine, crf) if crf else None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Test images and the labels that several runs predict for them."""

    info: datasets.DatasetInfo
    examples: list[dict[str, Any]]  # image, label and id of each test image
    labels: list[tuple[str, np.ndarray]]  # title of each run, labels uint8 (N, H, W)


def predict_test_images(
    workdirs: list[Path], count: int, data_dir: str | None, crf: dense_crf.Parameters | None = None
) -> Predictions:
    """Predict images of the split of the final evaluation (`test_split`) with several runs.

    Args:
      workdirs: of finished runs with the same dataset and resolution.
      count: number of images, evenly spaced in the split.
      data_dir: folder of prepared datasets, if it differs from training.
      crf: parameters of a dense CRF, whose labels are added after those of each run; None: no CRF.

    Raises:
      UserError: the runs differ in dataset, split or resolution, in the images or their labels.
    """
    first: Any = None
    labels: list[tuple[str, np.ndarray]] = []
    opened = [open_run(workdir, data_dir) for workdir in workdirs]
    named = [(run.config.model.name, description.name) for run, description in opened]
    for workdir, (run, _), title in zip(workdirs, opened, _titles(named, workdirs), strict=True):
        fields, split = run.config.data, run.config.test_split
        data = (fields.dataset, split, tuple(fields.resolution), fields.fit)
        if first is None:
            first, info = data, run.info
            source = run.open_split(split)
            places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
            examples = [source[int(place)] for place in places]
        if data != first:
            raise UserError(f"{workdir} is on {data}, but {workdirs[0]} is on {first}")
        if not run.info.may_have(split, source.digest):
            raise UserError(f"{workdir} has other images or labels than {workdirs[0]}")
        variables, _ = load_variables(run, workdir, None)
        stacked = np.stack([e["image"] for e in examples])
        for refined in (None, crf) if crf else (None,):
            by = f", crf {dense_crf.describe(refined)}" if refined else ""
            predictor = outputs.build_predictor(run, *_inference(run, refined))
            labels.append((title + by, predictor(variables, stacked)))
    return Predictions(info, examples, labels)


def _titles(named: list[tuple[str, str]], workdirs: Sequence[Path]) -> list[str]:
    """Return short titles of runs (model, name): of one model their names, otherwise the models.

    Where these are equal, the workdirs tell them apart.
    """
    models = [model for model, _ in named]
    if len(set(models)) == 1:
        titles = [name for _, name in named]
    else:
        several = {model for model in models if models.count(model) > 1}
        titles = [f"{model}, {name}" if model in several else model for model, name in named]
    return [
        title if titles.count(title) == 1 else f"{title}, {workdir}"
        for title, workdir in zip(titles, workdirs, strict=True)
    ]


def save_comparison(
    workdirs: list[Path],
    output: Path,
    count: int,
    data_dir: str | None,
    crf: dense_crf.Parameters | None = None,
) -> None:
    """Save a picture of test images, their truth and the predictions of runs, one row per image.

    Args:
      output: path of the picture.
      workdirs, count, data_dir, crf: as for `predict_test_images`.
    """
    pictures.save(output, draw(predict_test_images(workdirs, count, data_dir, crf)))


def draw(predictions: Predictions, errors: bool = False) -> Image.Image:
    """Draw image, truth and the labels of each run, one row per image; optionally their errors."""
    palette = predictions.info.palette
    titles = ["image", "truth"]
    rows = [[e["image"], pictures.colorize(e["label"], palette)] for e in predictions.examples]
    for title, labels in predictions.labels:
        titles += [title, "errors"] if errors else [title]
        for row, example, label in zip(rows, predictions.examples, labels, strict=True):
            row.append(pictures.colorize(label, palette))
            if errors:
                row.append(pictures.errors(example["label"], label))
    return pictures.grid(rows, titles, class_names=predictions.info.class_names, palette=palette)


def contact_sheet(
    name: str,
    resolution: tuple[int, int] | None,
    data_dir: str | None,
    folder: Path | None = None,
) -> Image.Image:
    """Draw six test images of a prepared dataset, each above its label, with a class legend."""
    place: dict[str, Any] = {"data_dir": data_dir, "folder": folder, "resolution": resolution}
    info = datasets.info(name, **place)
    source = datasets.open_split(name, "test", **place)
    examples = [source[int(number)] for number in np.linspace(0, len(source) - 1, 6)]
    rows = []
    for three in (examples[:3], examples[3:]):
        rows.append([example["image"] for example in three])
        rows.append([pictures.colorize(example["label"], info.palette) for example in three])
    return pictures.grid(rows, class_names=info.class_names, palette=info.palette)
