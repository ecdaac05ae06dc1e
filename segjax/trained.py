"""A trained run in Python: predict images and evaluate splits, with the bits of the commands."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from segjax import evaluate, predict, results
from segjax.data import images
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.results.schema import Row
from segjax.runs import hub
from segjax.runs.experiment import load_variables, open_run

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
        self._variables, _ = load_variables(self._experiment, self.workdir, checkpoint)
        self.config: ConfigDict = self._experiment.config
        self.classes: tuple[str, ...] = tuple(self._experiment.info.class_names)
        self.palette = self._experiment.info.palette
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @property
    def row(self) -> Row:
        """The row of `result.json`: config, scores and confusion matrix of the finished run.

        Raises:
          UserError: the run is not finished.
        """
        return results.read([self.workdir / "result.json"])[0]

    def predict(self, image: PathLike | np.ndarray, *, native: bool = False) -> np.ndarray:
        """Return the labels of an image as `segjax predict` writes them: uint8 (H, W).

        Args:
          image: path of an image, or uint8 (H, W, 3) RGB, or (H, W, 1) if the run is of gray
            images.
          native: run the network at the size of the image instead of the height of training.

        Raises:
          UserError: the image cannot be read, or has another shape or dtype.
        """
        return self._run(outputs.build_predictor, image, native)

    def predict_proba(self, image: PathLike | np.ndarray, *, native: bool = False) -> np.ndarray:
        """Return the probability of each class at each pixel: float32 (H, W, K).

        They are the softmax of the logits at the size of the image, whose greatest is `predict`.
        """
        return self._run(outputs.build_probabilities, image, native)

    def evaluate(self, split: str = "test", **options: Any) -> Row:
        """Return the row of the network on a split, without writing it.

        Args:
          split: train, val or test.
          **options: limit, crf, samples and transforms of `segjax.evaluate.evaluate_workdirs`.
        """
        return evaluate.evaluate_workdirs(
            [self.workdir], split, kind=self._checkpoint, data_dir=self._data_dir, **options
        )[1]

    def _pixels(self, image: PathLike | np.ndarray) -> np.ndarray:
        channels = len(self._experiment.info.mean)
        if not isinstance(image, np.ndarray):
            return images.read_image(Path(image).expanduser(), channels)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
            raise UserError(
                f"image of shape {image.shape} and dtype {image.dtype}, "
                f"expected uint8 (H, W, {channels})"
            )
        return image

    def _run(self, build: Callable[..., Any], image: PathLike | np.ndarray, native: bool) -> Any:
        """Call what `build` compiles for an image of this size, once for each size."""
        pixels = self._pixels(image)
        size = predict.network_size(self._experiment, pixels.shape[:2], native)
        if (build, size) not in self._compiled:
            self._compiled[build, size] = build(self._experiment, size)
        return self._compiled[build, size](self._variables, pixels[None])[0]
