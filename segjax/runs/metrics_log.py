"""Write and read `metrics.jsonl`, the losses and scores of a run, one line per logged step."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from segjax.errors import UserError
from segjax.system.files import naming, write_whole


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
        """Append one row; the values become floats.

        Raises:
          OSError: for example a full disk; names the file.
        """
        row: dict[str, float | None] = {"step": step}
        for name, value in values.items():
            row[name] = float(value) if math.isfinite(value) else None
        with naming(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


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
