"""Label maps for images of any size."""

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
    """The images named, those of a folder in the order of their names.

    Raises:
      UserError: a name is not there, or a folder has none.
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
    """Return the paths of the pictures of each image: the label map, the overlay and others.

    Raises:
      UserError: one would be written over an image, or over that of another.
    """
    taken = {path.resolve(): path for path in paths}
    targets = []
    for path in paths:
        own = tuple(folder / f"{path.stem}{ending}.png" for ending in endings)
        for target in own:
            other = taken.setdefault(target.resolve(), path)
            if other is not path or target.resolve() == path.resolve():
                raise UserError(f"{target}, made from {path}, would overwrite what is of {other}")
        targets.append(own)
    return targets


def read_image(path: Path, channels: int) -> np.ndarray:
    """An image as uint8 (H, W, C), RGB for 3 channels and grey for 1."""
    try:
        with Image.open(path) as image:
            # Cameras store how they were held instead of turning the pixels.
            upright = ImageOps.exif_transpose(image)
            if channels == 1:
                return np.array(upright.convert("L"))[..., None]
            return np.array(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def predict_files(
    experiment: Experiment,
    variables: dict[str, Any],
    paths: list[Path],
    output: Path,
    *,
    native: bool,
    crf: dense_crf.Parameters | None,
    samples: int | None,
    views: tta.Transforms | None,
    progress: Callable[[int], None],
) -> None:
    """Writes NAME.png, an indexed label map, and NAME_overlay.png for each image.

    With Monte Carlo samples (`inference.dropout`) also grey maps of the class that is the most
    likely by their mean: NAME_confidence.png, its mean probability from black for 0 to white for 1,
    and NAME_deviation.png, the standard deviation of its probability, to white for 1/2.

    A network knows the scale it was trained at: unless `native`, the image is resized to the
    training height, its aspect kept, and the logits (for a CRF, the probabilities, which it refines
    at the image's own size) are brought back.
    """
    predictors: dict[tuple[int, int] | None, Callable[..., Any]] = {}
    endings = ("", "_overlay", "_confidence", "_deviation") if samples else ("", "_overlay")
    targets = targets_of(paths, output, endings)
    output.mkdir(parents=True, exist_ok=True)
    for done, (path, target) in enumerate(zip(paths, targets, strict=True), start=1):
        image = read_image(path, len(experiment.info.mean))
        height, width = image.shape[:2]
        size = None
        if not native:
            trained_height = experiment.config.data.resolution[0]
            size = (trained_height, max(1, round(width * trained_height / height)))
        if size not in predictors:
            predictors[size] = _predictor(experiment, size, crf, samples, views)
        label, *maps = (x[0] for x in predictors[size](variables, image[None]))
        palette = experiment.info.palette
        pictures.save_label(target[0], label, palette)
        overlay = pictures.overlay(image, label, palette)
        pictures.save(target[1], Image.fromarray(overlay))
        for place, values, white in zip(target[2:], maps, (1.0, 0.5), strict=False):
            pictures.save(place, Image.fromarray(np.rint(values / white * 255).astype(np.uint8)))
        progress(done)


def _predictor(experiment, size, crf, samples, views):
    """f(variables, images) -> (labels, and where it samples the confidence and the deviation)."""
    output, refine = _inference(experiment, crf, views)
    if samples:
        return dropout.build_predictor(experiment, samples, size, refine)
    labels = outputs.build_predictor(experiment, size, output, refine)
    return lambda variables, images: (labels(variables, images),)


def _inference(experiment, crf, views=None):
    """The output, where it is not the network's own, and its refinement where there is a CRF."""
    if crf is None and views is None:
        return None, None
    output = outputs.probabilities(experiment)
    if views:
        output = tta.average(output, views)
    return output, functools.partial(dense_crf.refine, crf) if crf else None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Test images and the labels that several runs predict."""

    info: datasets.DatasetInfo
    examples: list[dict[str, Any]]  # image, label and id of each
    labels: list[tuple[str, np.ndarray]]  # title of each run, its labels uint8 (N, H, W)


def predict_test_images(
    workdirs: list[Path], count: int, data_dir: str | None, crf: dense_crf.Parameters | None = None
) -> Predictions:
    """Predict test images by several runs.

    Args:
      workdirs: of finished runs, on one data set and resolution.
      count: how many images, evenly over the test split.
      data_dir: where prepared sets lie, if elsewhere than in training.
      crf: of a dense CRF; what it makes of each run stands beside it.

    Raises:
      UserError: the runs are on different images.
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
            raise UserError(f"{workdir} is on {data}, but {workdirs[0]} on {first}")
        variables, _ = load_variables(run, workdir, None)
        images = np.stack([e["image"] for e in examples])
        for refined in (None, crf) if crf else (None,):
            by = f", crf {dense_crf.describe(refined)}" if refined else ""
            predictor = outputs.build_predictor(run, None, *_inference(run, refined))
            labels.append((description.name + by, predictor(variables, images)))
    return Predictions(info, examples, labels)


def comparison(
    workdirs: list[Path],
    output: Path,
    count: int,
    data_dir: str | None,
    crf: dense_crf.Parameters | None = None,
) -> None:
    """Draws test images, their truth, and what each run predicts, one row an image.

    Args:
      output: the picture's file.
      workdirs, count, data_dir, crf: as `predict_test_images` takes them.
    """
    pictures.save(output, draw(predict_test_images(workdirs, count, data_dir, crf)))


def draw(predictions: Predictions, errors: bool = False) -> Image.Image:
    """Image, truth and each run's labels in rows; with `errors` also where each run is wrong."""
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
    """Six test images of a prepared data set, each over its label, with the classes named."""
    info = datasets.info(name, data_dir=data_dir, resolution=resolution)
    source = datasets.open_split(name, "test", data_dir=data_dir, resolution=resolution)
    examples = [source[int(place)] for place in np.linspace(0, len(source) - 1, 6)]
    rows = []
    for three in (examples[:3], examples[3:]):
        rows.append([example["image"] for example in three])
        rows.append([pictures.colorize(example["label"], info.palette) for example in three])
    return pictures.grid(rows, class_names=info.class_names, palette=info.palette)
