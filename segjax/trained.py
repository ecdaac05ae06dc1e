"""Train and use runs in Python, with bitwise the same results as the commands."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segjax import config as configs
from segjax import evaluate, results, train
from segjax.data import images
from segjax.errors import UserError
from segjax.inference import outputs, windows
from segjax.results.schema import Row
from segjax.runs import compilation_cache, hub
from segjax.runs.experiment import Description, load_variables, open_run
from segjax.training import parallel

PathLike = str | os.PathLike[str]


class TrainedRun:
    """The network of a run directory, loaded by `segjax.load`.

    Attributes:
      workdir: the run directory, or the folder in the hub's cache.
      config: the run's config, locked.
      classes: the names of the K classes, in the order of the labels.
      palette: their colors, K RGB triples.
    """

    def __init__(
        self, workdir: PathLike, checkpoint: str | None = None, data_dir: str | None = None
    ):
        self.workdir = hub.locate(workdir)
        self._checkpoint, self._data_dir = checkpoint, data_dir
        self._experiment, _ = open_run(self.workdir, data_dir)
        variables, _ = load_variables(self._experiment, self.workdir, checkpoint)
        self._variables = parallel.place(variables, self._experiment.devices[:1])
        self.config: ConfigDict = self._experiment.config
        self.classes: tuple[str, ...] = tuple(self._experiment.info.class_names)
        self.palette = self._experiment.info.palette
        self._compiled: dict[windows.Fit, windows.Strips] = {}

    @property
    def row(self) -> Row:
        """The row of `result.json`: config, scores and confusion matrix of the finished run.

        Raises:
          UserError: the run is not finished.
        """
        return results.read([self.workdir / "result.json"])[0]

    def predict(self, image: PathLike | np.ndarray, **fit: Any) -> np.ndarray:
        """Return the labels of an image as `segjax predict` writes them: uint8 (H, W).

        Args:
          image: path of an image, or uint8 (H, W, 3) RGB, or (H, W, 1) if the run is of gray
            images.
          **fit: how the image is shown to the network, by default at the height of training with
            its own aspect ratio. `native=True`: at its own size; `squash=True`: at the resolution
            of training; `window=(height, width)`, and `overlap`, by default 0.5: by windows over it
            (`segjax.inference.windows.sliding`).

        Raises:
          UserError: the image cannot be read, or has another shape or dtype, or the window is
            impossible.
        """
        strips = self._strips(**fit)
        values = strips(self._variables, self._pixels(image), 0)
        return np.concatenate([windows.classes(strip) for strip in values])

    def predict_proba(self, image: PathLike | np.ndarray, **fit: Any) -> np.ndarray:
        """Return the probability of each class at each pixel: float32 (H, W, K).

        They are the softmax of the logits at the size of the image, whose greatest is `predict`.
        """
        strips = windows.softmax(self._strips(**fit))
        return np.concatenate([*strips(self._variables, self._pixels(image), 0)])

    def evaluate(
        self,
        split: str = "test",
        *,
        window: tuple[int, int] | None = None,
        overlap: float | None = None,
        **options: Any,
    ) -> Row:
        """Return the row of the network on a split, without writing it.

        Args:
          split: train, val or test.
          window: height and width of windows over the images at their own sizes; None: none.
          overlap: least share of a side that neighboring windows have in common; None: 0.5.
          **options: native, calibration, limit, crf, samples and transforms of
            `segjax.evaluate.evaluate_workdirs`.
        """
        native = options.get("native", False)
        fit = windows.choose_fit(native=native, window=window, overlap=overlap)
        return evaluate.evaluate_workdirs(
            [self.workdir],
            split,
            kind=self._checkpoint,
            data_dir=self._data_dir,
            window=fit if isinstance(fit, windows.Windows) else None,
            **options,
        )[1]

    def _pixels(self, image: PathLike | np.ndarray) -> np.ndarray:
        channels = len(self._experiment.info.mean)
        if not isinstance(image, np.ndarray):
            path = Path(image).expanduser()
            pages, _ = images.list_pages(path)
            if len(pages) > 1:
                raise UserError(f"image {path} has {len(pages)} pages, expected one")
            return images.read_image(path, channels, pages[0])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
            raise UserError(
                f"image of shape {image.shape} and dtype {image.dtype}, "
                f"expected uint8 (H, W, {channels})"
            )
        return image

    def _strips(self, **options: Any) -> windows.Strips:
        """Return the function that gives the logits of an image, compiled once for each fit."""
        fit = windows.choose_fit(**options)
        if options.get("squash"):
            windows.require_squash(self._experiment)
        if fit not in self._compiled:
            logits = outputs.logits(self._experiment)
            self._compiled[fit] = windows.build_strips(self._experiment, logits, fit)
        return self._compiled[fit]


def fit(config: str | ConfigDict, workdir: PathLike, overrides: Mapping[str, Any]) -> TrainedRun:
    """Train and load a run; arguments and errors are those of `segjax.fit`."""
    folder = Path(workdir).expanduser()
    loaded = configs.load(config, overrides)
    if isinstance(config, ConfigDict):
        experiment, source = "config", str(folder / "config.json")
    else:
        experiment, source = configs.experiment_name(config), config
    command = ["segjax", "train", "--config", source, "--workdir", str(folder)]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    kept = configs.recorded(config, overrides, loaded)
    compilation_cache.enable()
    train.train(loaded, folder, Description(experiment, experiment, kept, shlex.join(command)))
    return TrainedRun(folder, data_dir=loaded.data.data_dir or None)
