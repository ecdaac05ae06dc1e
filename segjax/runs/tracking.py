"""Log the metrics of a run to `metrics.jsonl` and, optionally, Weights & Biases."""

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
from segjax.system import waiting
from segjax.system.files import naming, write_whole

_log = logging.getLogger(__name__)

MAX_TAG_LENGTH = 64  # characters; W&B rejects a run with a longer tag
START_TIMEOUT = 30.0  # seconds to reach the W&B server before logging offline
FINISH_TIMEOUT = 300.0  # seconds to upload at the end; the rest is left to `wandb sync`


class MetricsLog:
    """Write `metrics.jsonl`: one JSON object per line, `{"step": 20, "train/loss": 0.71}`.

    NaN and infinities, which JSON lacks, are written as null. Each line is flushed, so a killed
    process loses at most the line it was writing. A step may have several rows.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        """Open the log of a run that resumes after `step` finished steps.

        Drop the rows of later steps and a truncated last line, which the run writes again; at step
        0 drop all rows. Rows of a step must be written before its checkpoint, so that none is lost
        or duplicated.
        """
        self._path = path = Path(path)
        lines = _whole_lines(path) if path.exists() and step > 0 else []
        kept = [line for line, row in _rows(path, lines) if row["step"] <= step]
        write_whole(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Append one row; integers stay integers, everything else becomes a float.

        Raises:
          OSError: for example a full disk; names the file.
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
    """Read the rows of a `metrics.jsonl`, also while its run is active; null becomes NaN.

    Raises:
      UserError: the file is missing, or a complete line is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the metrics.jsonl of a run")
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _rows(path, _whole_lines(path))
    ]


def _whole_lines(path: Path) -> list[str]:
    # Text after the last newline is incomplete: being written, or left by a killed process.
    return path.read_bytes().decode(errors="replace").split("\n")[:-1]


def _rows(path: Path, lines: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number}: damaged, expected a row of metrics with its step")
        rows.append((line, row))
    return rows


class WandbRun:
    """A run in Weights & Biases, created by `start_wandb`.

    W&B never stops a training: the first exception is logged as a one-line warning and turns this
    object off. Steps that the W&B run already has, because a resumed run repeats some, are kept.
    """

    def __init__(self, start: Callable[[], Any] | None) -> None:
        self._run: Any = None
        if start is not None:
            with waiting.reported("waiting for W&B to start the run"):
                self._run = self._guarded(start)

    def log_scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Log numbers under their names: `train/loss`, `val/mean_iou`, `val/iou/Road`."""
        self._send(step, lambda: {name: float(value) for name, value in values.items()})

    def log_masks(
        self,
        step: int,
        name: str,
        images: Iterable[np.ndarray],
        predictions: Iterable[np.ndarray],
        truths: Iterable[np.ndarray],
        class_names: Sequence[str],
    ) -> None:
        """Log images overlaid with two masks, `prediction` and `truth`.

        Args:
          step: training step.
          name: of the panel, such as `val/examples`; use the same name and images at every step.
          images: each uint8 (H, W, 3), RGB.
          predictions, truths: each integer (H, W), in [0, K) or VOID.
          class_names: K names.
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
        """End the W&B run; wait for uploads for at most FINISH_TIMEOUT seconds."""
        run, self._run = self._run, None
        if run is not None:
            with waiting.reported("waiting for W&B to upload the run"):
                self._guarded(lambda: run.finish(exit_code=exit_code))

    def _send(self, step: int, content: Callable[[], dict[str, Any]]) -> None:
        run = self._run
        if run is not None:
            # W&B rejects steps below its own, with a warning for each.
            self._guarded(lambda: run.log(content(), step=step) if step >= run.step else None)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._run = None
            _log.warning("W&B is switched off for this run: %s", _one_line(error))
            return None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def tags(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Return the W&B tags of a run: its model, its dataset, and each of its overrides.

    Args:
      config: {"a.b": value} of every field.
      overrides: {"a.b": value} of the fields that the run sets.
    """
    assignments = [f"{field}={value}" for field, value in overrides.items()]
    found = [config["model.name"], config["data.dataset"], *assignments]
    return [tag[:MAX_TAG_LENGTH] for tag in dict.fromkeys(found)]


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
    """Start or resume the W&B run of a workdir.

    Mode "disabled" returns an object that does nothing, without importing W&B. The id of the run is
    stored in `workdir/wandb_id.txt`, so that a resumed training continues the same W&B run, and its
    files are in `workdir/wandb`. In mode "offline" each start has its own folder there, all with
    the same id, for `wandb sync`; mode "online" does the same if the server cannot be reached.
    """

    def start() -> Any:
        try:
            return begin(mode)
        except Exception as error:
            if mode != "online":
                raise
            fault = _one_line(error)
        import wandb

        wandb.teardown()  # its service still holds the id of the run
        run = begin("offline")
        folder = Path(workdir) / "wandb"
        _log.warning("W&B cannot be reached; logging to %s for `wandb sync`: %s", folder, fault)
        return run

    def begin(mode: str) -> Any:
        import wandb

        id_file = Path(workdir) / "wandb_id.txt"
        if not id_file.exists():
            write_whole(id_file, uuid.uuid4().hex[:16] + "\n")
        return wandb.init(
            project=project,
            group=group or None,
            name=name,
            config=dict(config),
            tags=list(tags),
            dir=workdir,
            mode=cast(Any, mode),
            id=id_file.read_text().strip(),
            resume="allow",
            settings=wandb.Settings(
                # The terminal belongs to the progress bar, which W&B would wrap and record.
                console="off",
                init_timeout=START_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )

    return WandbRun(None if mode == "disabled" else start)
