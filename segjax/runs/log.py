"""Log one start of a training: metrics.jsonl, samples, trackers, and a progress bar."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from segjax import metrics
from segjax.results.schema import Row
from segjax.runs import processes, samples, tracking
from segjax.runs.experiment import Description, Experiment
from segjax.runs.metrics_log import MetricsLog
from segjax.system.progress import Bar


class TrainingLog:
    """Log of one start of a training; only process 0 writes and prints.

    A context manager: leaving it by an exception marks the run as failed in W&B.
    """

    def __init__(self, run: Experiment, workdir: Path, description: Description, step: int):
        """Open the logs of a run that has done `step` steps."""
        config, writes = run.config, processes.is_first()
        self._run, self._workdir, self._name = run, workdir, description.name
        self._metrics = MetricsLog(workdir / "metrics.jsonl", step) if writes else None
        self._trackers = tracking.Trackers()
        if writes:
            self._trackers = tracking.start(
                workdir, config, description.name, description.overrides, step
            )
        self._bar = Bar(description.name, config.steps, step, config.batch_size, not writes)
        self._step = step
        self._seen = time.monotonic(), step  # when a rate was logged last
        self._loss = math.nan  # of the last step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._trackers.finish(0 if kind is None else 1)
        if self._metrics:
            self._metrics.close()

    @contextlib.contextmanager
    def progress(self, parameters: int) -> Iterator[None]:
        """Print what is trained, and show a progress bar of the steps."""
        config, where = self._run.config, self._run.device_name
        if processes.count() > 1:
            where += f" of {processes.count()} processes"
        height, width = config.data.resolution
        with self._bar:
            self._bar.line(
                f"{self._name}: {config.model.name}, {parameters:,} parameters, "
                f"{config.data.dataset} {height}x{width}, {where}"
                + (f", resumed at step {self._step}" if self._step else "")
            )
            yield

    def steps(
        self, first: int, measured: Mapping[str, np.ndarray], rate: Callable[[int], Any]
    ) -> None:
        """Log training steps and move the bar.

        Args:
          first: steps done before them.
          measured: loss, gradient norm, ... of each step, each (steps,).
          rate: f(steps done) -> learning rate of the next step.
        """
        losses = measured["loss"]
        for k in range(len(losses)):
            step = first + k + 1
            if step % self._run.config.log_every == 0:
                values = {f"train/{name}": float(x[k]) for name, x in measured.items()}
                values["train/learning_rate"] = float(rate(step - 1))
                values["train/images_per_second"] = self._images_per_second(step)
                self._write(step, values)
        if len(losses):
            self._loss = float(losses[-1])
            self._bar.advance(first + len(losses), f"loss {self._loss:.3f}")

    def _images_per_second(self, step):
        """Return the rate since the last call, validation and saving included."""
        now = time.monotonic()
        (past, past_step), self._seen = self._seen, (now, step)
        return (step - past_step) * self._run.config.batch_size / max(now - past, 1e-9)

    def validation(self, step: int, scores: metrics.Scores, facts: Mapping[str, Any]) -> None:
        """Log the scores of the validation set; facts are those that a checkpoint keeps."""
        config = self._run.config
        values = {f"val/{name}": getattr(scores, name) for name in metrics.SCORES}
        for name, iou in zip(self._run.info.class_names, scores.per_class_iou, strict=True):
            values[f"val/iou/{name}"] = float(iou)
        self._write(step, {**values, "seconds": facts["seconds"]})
        self._bar.line(
            f"step {step}/{config.steps}  loss {self._loss:.3f}  "
            f"val G {scores.global_accuracy:.1%} C {scores.class_accuracy:.1%} "
            f"mIoU {scores.mean_iou:.1%}  "
            f"best {config.best_metric} {facts['best_value']:.1%} at step {facts['best_step']}"
        )

    def samples(
        self,
        step: int,
        examples: dict[str, np.ndarray],
        predict: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """Draw some validation images with their labels and predictions, f(images) -> labels."""
        if self._metrics:
            info = self._run.info
            drawn = samples.draw(self._workdir, step, info, examples, predict)
            self._trackers.each(lambda tracker: tracker.examples(step, drawn, info.class_names))

    def test(self, row: Row) -> None:
        """Show the result row, which is in result.json already, and keep the tested model."""
        step = self._run.config.steps
        prefix = "test" if row["split"] == "test" else f"test_on_{row['split']}"
        scores = {name: row[name] for name in (*metrics.SCORES, "boundary_f")}
        found = {f"{prefix}/{name}": value for name, value in scores.items() if value is not None}
        columns = {
            "class": row["class_names"],
            "IoU": row["per_class_iou"],
            "accuracy": row["per_class_accuracy"],
        }
        if "per_class_boundary_f" in row:
            columns["boundary F"] = row["per_class_boundary_f"]
        classes = list(zip(*columns.values(), strict=True))

        def show(tracker: tracking.Tracker) -> None:
            tracker.scalars(step, found)
            tracker.table(step, f"{prefix}/classes", list(columns), classes)
            tracker.keep_model(self._workdir)

        self._trackers.each(show)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.write(step, values)
        self._trackers.each(lambda tracker: tracker.scalars(step, values))
