"""Read the progress of the runs of a sweep from the files in their run directories.

The processes that train them are not asked, and nothing is written.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segjax.errors import UserError
from segjax.runs import experiment
from segjax.sweep.grids import Point
from segjax.system import locks, stored

STATES = ("finished", "running", "failed", "resumable", "new", "another config")

# Lock files in a run directory: held by the sweep that started the run, and by the run itself.
LOCKS = (".sweep.lock", ".lock")

# Message of Slurm's `srun` about a killed process.
_KILLED = re.compile(r"^srun: error: (.*: tasks? .*: (?!Exited with).*)$", re.MULTILINE)
# Messages that follow from a failure elsewhere: of the other processes, and of `srun` ending them.
_CONSEQUENCE = re.compile(
    r"cannot go on, as it says$"
    r"|^srun: (.*: Exited with exit code|Job step aborted|Force Terminated|launch/slurm: )"
    r"|^slurmstepd.* CANCELLED AT "
)

_RATES = 20  # number of logged rates in the average
_TAIL = 2**16  # bytes read from the end of a log


@dataclasses.dataclass(frozen=True)
class Status:
    """Progress of one run."""

    state: str  # one of STATES
    step: int = 0  # last finished step
    steps: int = 0  # of the whole run
    seconds_per_step: float | None = None  # recent average
    cause: str = ""  # of a failure, or the difference from the config

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds until training ends, or None unless it runs at a known rate."""
        if self.state != "running" or self.seconds_per_step is None:
            return None
        return (self.steps - self.step) * self.seconds_per_step


def read_status(folder: Path, config: ConfigDict) -> Status:
    """Return the status of the run with this config in a folder, which need not exist."""
    steps = config.steps
    if (folder / "result.json").exists():
        return Status("finished", steps, steps)
    saved = saved_step(folder)
    if is_in_use(folder):
        step, seconds = _read_progress(folder, config.batch_size)
        return Status("running", max(step, saved), steps, seconds)
    error = folder / "error.txt"
    if error.exists():
        return Status(
            "failed", saved, steps, cause=failure_cause(error.read_text(errors="replace"))
        )
    return Status("resumable" if saved else "new", saved, steps)


def read_statuses(grid: Sequence[Point], workdir: Path) -> list[Status]:
    """Return the status of each run, `another config` where its directory holds a different run."""
    statuses = []
    for point in grid:
        try:
            experiment.refuse_other_config(point.config, workdir / point.name)
            statuses.append(read_status(workdir / point.name, point.config))
        except UserError as error:
            statuses.append(Status("another config", 0, point.config.steps, cause=str(error)))
    return statuses


def is_in_use(folder: Path) -> bool:
    """Return whether a sweep or a training process holds a lock of this run directory."""
    return any(locks.is_held(folder / name) for name in LOCKS)


def failure_cause(output: str) -> str:
    """Return the line in the output of a failed run that tells why it failed."""
    lines = [line for line in output.splitlines() if not _CONSEQUENCE.search(line)]
    own = [line for line in lines if re.match("segjax: (?!warning: )", line)]
    if own:
        return own[-1].removeprefix("segjax: ")
    killed = _KILLED.search(output)
    return killed[1] if killed else last_line("\n".join(lines))


def last_line(output: str) -> str:
    """Return the last line that is not blank, or `no output`."""
    return ([line for line in output.splitlines() if line.strip()] or ["no output"])[-1]


def saved_step(folder: Path) -> int:
    """Return the step of the latest checkpoint, or 0 if there is none."""
    try:
        names = os.listdir(folder / "checkpoints" / "latest")
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def _read_progress(folder, batch_size):
    """Return the last logged step, and the recent seconds per step or None."""
    step = 0
    rates: list[float] = []
    for row in _read_last_rows(folder / "metrics.jsonl"):
        if isinstance(row, dict) and type(row.get("step")) is int:
            step, rate = max(step, row["step"]), row.get("train/images_per_second")
            if isinstance(rate, int | float) and rate > 0:
                rates.append(rate)
    # The first rate includes compilation.
    recent = rates[1:][-_RATES:]
    return step, sum(batch_size / rate for rate in recent) / len(recent) if recent else None


def _read_last_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            skipped = max(file.seek(0, os.SEEK_END) - _TAIL, 0)
            file.seek(skipped)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[bool(skipped) : -1]:  # the last line is empty or being written
        with contextlib.suppress(ValueError):
            rows.append(stored.parse(line))
    return rows


def time_left(statuses: Sequence[Status], costs: Sequence[int], jobs: int) -> float | None:
    """Return the seconds until all runs are finished, from the rates of those running, or None.

    Args:
      statuses: statuses of the runs.
      costs: MACs of each, from `costs.run_costs`.
      jobs: runs at a time.
    """
    rates, remaining, open_runs = [], 0.0, 0
    for status, cost in zip(statuses, costs, strict=True):
        if status.seconds_per_step:
            rates.append(cost / status.steps / status.seconds_per_step)
        if status.state in ("running", "resumable", "new"):
            remaining += cost * (1 - status.step / status.steps)
            open_runs += 1
    if not rates or not open_runs:
        return None
    shared = remaining / (sum(rates) / len(rates) * min(jobs, open_runs))
    # The longest running run is a lower bound, whatever the number of jobs.
    return max([shared, *(status.seconds_left or 0.0 for status in statuses)])
