"""Predict label maps of images of any size, and draw predictions of several runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from segjax.data import datasets, pictures
from segjax.errors import UserError
from segjax.inference import crf as dense_crf
from segjax.inference import dropout, outputs, tta
from segjax.runs.experiment import Experiment, load_variables, open_run

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def find_images(names: Iterable[str]) -> list[Path]:
    """Return the paths of image files, and of the images in folders, sorted by name.

    Raises:
      UserError: a path does not exist, or a folder contains no image.
    """
    paths: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            found = sorted(p for p in name.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(f"folder {name} has no image ({', '.join(SUFFIXES)})")
            paths += found
        elif name.is_file():
            paths.append(name)
        else:
            raise UserError(f"image {name} does not exist")
    return list(dict.fromkeys(paths))


def targets_of(
    paths: list[Path], folder: Path, endings: Sequence[str] = ("", "_overlay")
) -> list[tuple[Path, ...]]:
    """Return the output paths of each image, one for each ending.

    Raises:
      UserError: an output would overwrite an input image, or an output of another image.
    """
    taken = {path.resolve(): path for path in paths}
    targets = []
    for path in paths:
        own = tuple(folder / f"{path.stem}{ending}.png" for ending in endings)
        for target in own:
            other = taken.setdefault(target.resolve(), path)
            if other is not path or target.resolve() == path.resolve():
                raise UserError(
                    f"{target}, made from {path}, would overwrite {other} or a file made from it"
                )
        targets.append(own)
    return targets


def read_image(path: Path, channels: int) -> np.ndarray:
    """Read an image as uint8 (H, W, C): RGB for 3 channels, gray for 1.

    Raises:
      UserError: the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            # Cameras store their orientation in EXIF instead of rotating the pixels.
            upright = ImageOps.exif_transpose(image)
            if channels == 1:
                return np.array(upright.convert("L"))[..., None]
            return np.array(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def network_size(
    experiment: Experiment, shape: tuple[int, ...], native: bool
) -> tuple[int, int] | None:
    """Return the size to resize an image of (height, width) to for the network; None: its own.

    It is the height of training with the aspect of the image, unless `native`.
    """
    if native:
        return None
    (height, width), trained_height = shape, experiment.config.data.resolution[0]
    return trained_height, max(1, round(width * trained_height / height))


def predict_files(
    experiment: Experiment,
    variables: dict[str, Any],
    paths: list[Path],
    output: Path,
    *,
    native: bool,
    crf: dense_crf.Parameters | None,
    samples: int | None,
    transforms: tta.Transforms | None,
    progress: Callable[[int], None],
) -> None:
    """Predict images; write NAME.png, an indexed label map, and NAME_overlay.png for each.

    With Monte Carlo dropout also write gray maps of the class with the highest mean probability:
    NAME_confidence.png, its mean probability, black 0 to white 1, and NAME_deviation.png, the
    standard deviation of its probability, black 0 to white 1/2.

    Args:
      experiment: owner of the network.
      variables: of the network.
      paths: of the images.
      output: folder of the results, created if missing.
      native: predict at the size of the image; otherwise resize it to the training height, keeping
        its aspect ratio, and resize the logits (with a CRF, the probabilities) back.
      crf: parameters of the dense CRF, applied at the size of the image; None: no CRF.
      samples: number of Monte Carlo dropout samples to average; None: no dropout.
      transforms: test-time augmentation; None: no augmentation.
      progress: called with the number of images done.

    Raises:
      UserError: an image cannot be read, or an output would overwrite a file of another image.
    """
    predictors: dict[tuple[int, int] | None, Callable[..., Any]] = {}
    endings = ("", "_overlay", "_confidence", "_deviation") if samples else ("", "_overlay")
    targets = targets_of(paths, output, endings)
    output.mkdir(parents=True, exist_ok=True)
    for done, (path, target) in enumerate(zip(paths, targets, strict=True), start=1):
        image = read_image(path, len(experiment.info.mean))
        size = network_size(experiment, image.shape[:2], native)
        if size not in predictors:
            predictors[size] = _predictor(experiment, size, crf, samples, transforms)
        label, *maps = (x[0] for x in predictors[size](variables, image[None]))
        palette = experiment.info.palette
        pictures.save_label(target[0], label, palette)
        overlay = pictures.overlay(image, label, palette)
        pictures.save(target[1], Image.fromarray(overlay))
        for place, values, white in zip(target[2:], maps, (1.0, 0.5), strict=False):
            pictures.save(place, Image.fromarray(np.rint(values / white * 255).astype(np.uint8)))
        progress(done)


def _predictor(experiment, size, crf, samples, transforms):
    """Return f(variables, images) -> (labels,), with samples (labels, confidence, deviation)."""
    output, refine = _inference(experiment, crf, transforms)
    if samples:
        return dropout.build_predictor(experiment, samples, size, refine)
    labels = outputs.build_predictor(experiment, size, output, refine)
    return lambda variables, images: (labels(variables, images),)


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
    """Predict test images with several runs.

    Args:
      workdirs: of finished runs with the same dataset and resolution.
      count: number of images, evenly spaced in the test split.
      data_dir: folder of prepared datasets, if it differs from training.
      crf: parameters of a dense CRF, whose labels are added after those of each run; None: no CRF.

    Raises:
      UserError: the runs differ in dataset or resolution.
    """
    first: Any = None
    labels: list[tuple[str, np.ndarray]] = []
    for workdir in workdirs:
        run, description = open_run(workdir, data_dir)
        data = (run.config.data.dataset, tuple(run.config.data.resolution))
        if first is None:
            first = data
            source = run.open_split("test")
            places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
            examples = [source[int(place)] for place in places]
            info = run.info
        if data != first:
            raise UserError(f"{workdir} is on {data}, but {workdirs[0]} is on {first}")
        variables, _ = load_variables(run, workdir, None)
        images = np.stack([e["image"] for e in examples])
        for refined in (None, crf) if crf else (None,):
            by = f", crf {dense_crf.describe(refined)}" if refined else ""
            predictor = outputs.build_predictor(run, None, *_inference(run, refined))
            labels.append((description.name + by, predictor(variables, images)))
    return Predictions(info, examples, labels)


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
    name: str, resolution: tuple[int, int] | None, data_dir: str | None
) -> Image.Image:
    """Draw six test images of a prepared dataset, each above its label, with a class legend."""
    info = datasets.info(name, data_dir=data_dir, resolution=resolution)
    source = datasets.open_split(name, "test", data_dir=data_dir, resolution=resolution)
    examples = [source[int(place)] for place in np.linspace(0, len(source) - 1, 6)]
    rows = []
    for three in (examples[:3], examples[3:]):
        rows.append([example["image"] for example in three])
        rows.append([pictures.colorize(example["label"], info.palette) for example in three])
    return pictures.grid(rows, class_names=info.class_names, palette=info.palette)
