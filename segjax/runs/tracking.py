"""The course of a run: `metrics.jsonl` on disk, and Weights & Biases where it is asked for."""

import json
import logging
import math
import numbers
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat, cast

import numpy as np

from segjax.data.datasets import VOID
from segjax.errors import UserError
from segjax.files import naming, write_whole

_log = logging.getLogger(__name__)

LONGEST_TAG = 64  # characters; W&B refuses a run that has a longer one
START_TIMEOUT = 30.0  # seconds that W&B may take to reach its server before it is left for later
FINISH_TIMEOUT = 300.0  # seconds that W&B may upload at the end; the rest stays for `wandb sync`


class MetricsLog:
    """The rows of `metrics.jsonl`: one JSON object a line, `{"step": 20, "train/loss": 0.71}`.

    JSON has no number for what is not finite: NaN and the infinities are written as null. A line is
    handed to the system at once, so a killed process loses at most the line it was writing. A step
    may have several rows.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        """Opens the log of a run that goes on after `step` finished steps (0: from the beginning).

        Rows of later steps, and a last line that was cut off, are dropped: the run makes them
        again. At 0 all rows are. So that none is lost or doubled, the rows of a step are to be
        written before the checkpoint of that step.
        """
        self._path = path = Path(path)
        lines = _whole_lines(path) if path.exists() and step > 0 else []
        kept = [line for line, row in _rows(path, lines) if row["step"] <= step]
        write_whole(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Adds one row; integers stay integers, everything else becomes a float.

        Raises:
          OSError: with the name of the file, such as of a full disk.
        """
        row: dict[str, int | float | None] = {"step": step}
        for name, value in values.items():
            if isinstance(value, numbers.Integral):
                row[name] = int(value)
            else:
                number = float(value)
                row[name] = number if math.isfinite(number) else None
        with naming(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads the rows of a `metrics.jsonl`, of a running run too; null is read as NaN.

    Raises:
      UserError: no such file, or a line that is no row; the last line may be cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the metrics.jsonl of a run")
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _rows(path, _whole_lines(path))
    ]


def _whole_lines(path: Path) -> list[str]:
    # What follows the last newline was being written when the process was killed.
    return path.read_bytes().decode(errors="replace").split("\n")[:-1]


def _rows(path: Path, lines: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number}: damaged, expected a row of metrics with its step")
        rows.append((line, row))
    return rows


class WandbRun:
    """A run in Weights & Biases, made by `start_wandb`.

    Nothing that W&B does stops the run it watches: the first exception becomes one line of warning
    and this object does nothing from then on. Steps that the W&B run has already, which happens
    where a resumed run repeats some, are left as they are.
    """

    def __init__(self, start: Callable[[], Any] | None) -> None:
        self._run: Any = None
        if start is not None:
            self._run = self._guarded(start)

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Logs numbers under their names: `train/loss`, `val/mean_iou`, `val/iou/Road`."""
        self._send(step, lambda: {name: float(value) for name, value in values.items()})

    def masks(
        self,
        step: int,
        name: str,
        images: Iterable[np.ndarray],
        predictions: Iterable[np.ndarray],
        truths: Iterable[np.ndarray],
        class_names: Sequence[str],
    ) -> None:
        """Logs images with two masks laid over them, `prediction` and `truth`.

        Args:
          step: the training step.
          name: of the panel, such as `val/examples`; keep it, and the images, over the steps.
          images: uint8 (H, W, 3) RGB each.
          predictions, truths: integers (H, W) each, in [0, K) or VOID.
          class_names: K.
        """
        labels = {**dict(enumerate(class_names)), VOID: "void"}

        def panel() -> dict[str, Any]:
            import wandb

            pictures = []
            for image, prediction, truth in zip(images, predictions, truths, strict=True):
                masks = {
                    kind: {"mask_data": np.asarray(mask, np.uint8), "class_labels": labels}
                    for kind, mask in (("prediction", prediction), ("truth", truth))
                }
                pictures.append(wandb.Image(np.asarray(image), masks=masks))
            return {name: pictures}

        self._send(step, panel)

    def finish(self, exit_code: int) -> None:
        """Ends the W&B run; waits for uploads, though not longer than FINISH_TIMEOUT."""
        run, self._run = self._run, None
        if run is not None:
            self._guarded(lambda: run.finish(exit_code=exit_code))

    def _send(self, step: int, content: Callable[[], dict[str, Any]]) -> None:
        run = self._run
        if run is not None:
            # W&B takes no step below its own, and would warn of each one.
            self._guarded(lambda: run.log(content(), step=step) if step >= run.step else None)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._run = None
            _log.warning("W&B is switched off for this run: %s", _said(error))
            return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def tags(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Return the W&B tags of a run: its model, its dataset, and each of its overrides.

    Args:
      config: {"a.b": value} of every field.
      overrides: those that tell the run from others.
    """
    said = [f"{field}={value}" for field, value in overrides.items()]
    found = [config["model.name"], config["data.dataset"], *said]
    return [tag[:LONGEST_TAG] for tag in dict.fromkeys(found)]


def start_wandb(
    workdir: str | os.PathLike[str],
    *,
    mode: str,
    project: str,
    group: str,
    name: str,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
) -> WandbRun:
    """Starts, or goes on with, the W&B run of a workdir.

    Mode "disabled" gives an object that does nothing, and W&B is not imported. The run's id is made
    once and kept in `workdir/wandb_id.txt`, so a resumed training goes on in the same W&B run; its
    files lie in `workdir/wandb`. In mode "offline" each start has a folder of its own there, all of
    one id, for `wandb sync`; so has one in mode "online" that does not reach its server.
    """

    def start() -> Any:
        try:
            return begin(mode)
        except Exception as error:
            if mode != "online":
                raise
            fault = _said(error)
        import wandb

        wandb.teardown()  # what it started holds the run's id
        run = begin("offline")
        kept = Path(workdir) / "wandb"
        _log.warning(
            "W&B is out of reach, its record stays in %s for `wandb sync`: %s", kept, fault
        )
        return run

    def begin(mode: str) -> Any:
        import wandb

        kept = Path(workdir) / "wandb_id.txt"
        if not kept.exists():
            write_whole(kept, uuid.uuid4().hex[:16] + "\n")
        return wandb.init(
            project=project,
            group=group or None,
            name=name,
            config=dict(config),
            tags=list(tags),
            dir=workdir,
            mode=cast(Any, mode),
            id=kept.read_text().strip(),
            resume="allow",
            settings=wandb.Settings(
                # The terminal belongs to the progress bar, which W&B would wrap and record.
                console="off",
                init_timeout=START_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )

    return WandbRun(None if mode == "disabled" else start)
