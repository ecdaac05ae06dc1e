"""Write figures of results, and predictions of their runs, to files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from segjax import predict
from segjax.data import pictures
from segjax.errors import UserError
from segjax.predict import Predictions
from segjax.report import figures
from segjax.report.groups import Setting
from segjax.system.files import write_whole
from segjax.system.progress import Bar


def predict_methods(
    setting: Setting, count: int, data_dir: str | None, progress: Callable[[int], None]
) -> tuple[Predictions | None, list[str]]:
    """Return the predictions of the first run of each method, and what is missing and why.

    Args:
      setting: methods to predict with.
      count: number of images, evenly spaced over the split of the final evaluation.
      data_dir: folder of prepared datasets, if not that of the training.
      progress: called with the number of methods done.
    """
    found: Predictions | None = None
    missing = []
    for done, method in enumerate(setting.methods, start=1):
        workdir = next((run.workdir for run in method.runs if run.workdir), None)
        if workdir is None:
            missing.append(f"{method.label}: a result row without run directory")
        else:
            try:
                own = predict.predict_test_images([workdir], count, data_dir)
                if found:
                    _require_same_examples(own.examples, found)
                labels = [*(found.labels if found else ()), (method.label, own.labels[0][1])]
                found = dataclasses.replace(found or own, labels=labels)
            except UserError as error:  # missing or other data, missing checkpoint
                missing.append(f"{method.label}: {error}")
        progress(done)
    return found, missing


def _require_same_examples(examples, found):
    """Raise if a method was predicted on other images, labels or sizes than those before it."""
    name, labels = found.labels[0]
    height, width = labels.shape[1:]
    if examples[0]["label"].shape != (height, width):
        raise UserError(f"another resolution than that of {name}, {height}x{width}")
    if len(examples) != len(found.examples) or not all(
        np.array_equal(a[field], b[field])
        for a, b in zip(examples, found.examples, strict=True)
        for field in ("image", "label")
    ):
        raise UserError(f"other images or labels than those of {name}")


def draw(settings: Sequence[Setting], output: Path, formats: Sequence[str]) -> list[Path]:
    """Write all figures of all settings to a folder; return the files."""
    files = []
    for setting in settings:
        for name, _, figure in figures.figures(setting):
            for format in formats:
                files.append(output / f"{_prefix(setting, settings)}{name}.{format}")
                write_whole(files[-1], figures.render(figure, format))
    return files


def draw_predictions(
    settings: Sequence[Setting], output: Path, count: int, data_dir: str | None
) -> tuple[list[Path], list[str]]:
    """Write `predictions.png` for each setting with runs: image, truth, predictions and errors.

    Returns:
      The files, and what could not be drawn and why.
    """
    files, missing = [], []
    for setting in settings:
        with Bar("predictions", len(setting.methods)) as bar:
            found, without = predict_methods(setting, count, data_dir, bar.advance)
        missing += without
        if found:
            files.append(output / f"{_prefix(setting, settings)}predictions.png")
            pictures.save(files[-1], predict.draw(found, errors=True))
    return files, missing


def _prefix(setting: Setting, settings: Sequence[Setting]) -> str:
    """Return the prefix of a setting's file names; none for a single setting."""
    return f"{setting.slug}_" if len(settings) > 1 else ""
