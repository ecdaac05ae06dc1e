"""Label maps for images of any size."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from segjax import datasets, loader, pictures
from segjax.errors import UserError
from segjax.experiment import Experiment, load_variables, open_run

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

Predictor = Callable[[dict[str, Any], np.ndarray], np.ndarray]


def build_predictor(experiment: Experiment, size: tuple[int, int] | None = None) -> Predictor:
    """f(variables, images uint8 (B, H, W, 3)) -> labels uint8 (B, H, W), the most likely class.

    With a size (h, w) the logits are made at that size, of the resized image, and brought back to
    the image's own bilinearly before the decision.
    """
    config, info = experiment.config, experiment.info

    @jax.jit
    def predict(variables, raw):
        image = raw.astype(jnp.float32) / 255
        batch, height, width, _ = image.shape
        if size is not None:
            image = jax.image.resize(image, (batch, *size, 3), "linear")
        image = loader.normalize(image, config.data.normalization, info)
        logits = experiment.model.apply(variables, image, train=False)
        if size is not None:
            shape = (batch, height, width, logits.shape[-1])
            logits = jax.image.resize(logits, shape, "linear", antialias=False)
        return jnp.argmax(logits, -1).astype(jnp.uint8)

    return lambda variables, images: np.asarray(predict(variables, images))


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


def outputs(paths: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Where the label map and the overlay of each image are written.

    Raises:
      UserError: one would be written over an image, or over that of another.
    """
    taken = {path.resolve(): path for path in paths}
    pairs = []
    for path in paths:
        pair = (folder / f"{path.stem}.png", folder / f"{path.stem}_overlay.png")
        for target in pair:
            other = taken.setdefault(target.resolve(), path)
            if other is not path or target.resolve() == path.resolve():
                raise UserError(f"{target}, made from {path}, would overwrite what is of {other}")
        pairs.append(pair)
    return pairs


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 RGB (H, W, 3)."""
    try:
        with Image.open(path) as image:
            # Cameras store how they were held instead of turning the pixels.
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read: {error}") from error


def predict_files(
    experiment: Experiment,
    variables: dict[str, Any],
    paths: list[Path],
    output: Path,
    *,
    native: bool,
    progress: Callable[[int], None],
) -> None:
    """Writes NAME.png, an indexed label map, and NAME_overlay.png for each image.

    A network knows the scale it was trained at: unless `native`, the image is resized to the
    training height, its aspect kept, and the logits are brought back.
    """
    predictors: dict[tuple[int, int] | None, Predictor] = {}
    targets = outputs(paths, output)
    output.mkdir(parents=True, exist_ok=True)
    for done, (path, (label_path, overlay_path)) in enumerate(
        zip(paths, targets, strict=True), start=1
    ):
        image = read_image(path)
        height, width = image.shape[:2]
        size = None
        if not native:
            trained_height = experiment.config.data.resolution[0]
            size = (trained_height, max(1, round(width * trained_height / height)))
        if size not in predictors:
            predictors[size] = build_predictor(experiment, size)
        label = predictors[size](variables, image[None])[0]
        palette = experiment.info.palette
        pictures.save_label(label_path, label, palette)
        overlay = pictures.overlay(image, label, palette)
        pictures.save(overlay_path, Image.fromarray(overlay))
        progress(done)


def comparison(workdirs: list[Path], output: Path, count: int, data_dir: str | None) -> None:
    """Draws test images, their truth, and what each run predicts, one row an image.

    Args:
      workdirs: of finished runs, on one data set and resolution.
      output: the picture's file.
      count: how many images, evenly over the test split.
      data_dir: where prepared sets lie, if elsewhere than in training.

    Raises:
      UserError: the runs are on different images.
    """
    rows: list[list[np.ndarray]] = []
    titles = ["image", "truth"]
    first: Any = None
    for workdir in workdirs:
        run, description = open_run(workdir, data_dir)
        data = (run.config.data.dataset, tuple(run.config.data.resolution))
        if first is None:
            first = data
            source = run.open_split("test")
            places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
            examples = [source[int(place)] for place in places]
            palette, names = run.info.palette, run.info.class_names
            rows = [[e["image"], pictures.colourise(e["label"], palette)] for e in examples]
        if data != first:
            raise UserError(f"{workdir} is on {data}, but {workdirs[0]} on {first}")
        variables, _ = load_variables(run, workdir, None)
        labels = build_predictor(run)(variables, np.stack([e["image"] for e in examples]))
        for row, label in zip(rows, labels, strict=True):
            row.append(pictures.colourise(label, palette))
        titles.append(description.name)
    pictures.save(output, pictures.grid(rows, titles, class_names=names, palette=palette))


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
        rows.append([pictures.colourise(example["label"], info.palette) for example in three])
    return pictures.grid(rows, class_names=info.class_names, palette=info.palette)
