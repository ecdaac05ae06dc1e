"""Read the progress of a sweep's runs from their run directories alone.

Nothing here needs the process that runs them, and nothing is written.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from segjax import locks
from segjax.errors import UserError
from segjax.runs import experiment
from segjax.sweep.grids import Point

STATES = ("finished", "running", "failed", "to go on", "new", "another config")

# Held by the sweep that runs a run, and by the run itself.
LOCKS = (".sweep.lock", ".lock")

# What Slurm's `srun` says of a process that was killed, and what follows a failure: the other
# processes of the run, and `srun` once it ends them.
_KILLED = re.compile(r"^srun: error: (.*: tasks? .*: (?!Exited with).*)$", re.MULTILINE)
_ECHO = re.compile(
    r"cannot go on, as it says$"
    r"|^srun: (.*: Exited with exit code|Job step aborted|Force Terminated|launch/slurm: )"
    r"|^slurmstepd.* CANCELLED AT "
)

_RATES = 20  # logged rates that are averaged
_TAIL = 2**16  # bytes of a log that are looked at


@dataclasses.dataclass(frozen=True)
class Status:
    """Progress of one run."""

    state: str  # of STATES
    step: int = 0  # that is done
    steps: int = 0  # of the whole run
    seconds_per_step: float | None = None  # lately
    cause: str = ""  # of a failure, or the difference to the config

    @property
    def left(self) -> float | None:
        """Seconds that the training of a running run still takes."""
        if self.state != "running" or self.seconds_per_step is None:
            return None
        return (self.steps - self.step) * self.seconds_per_step


def look(folder: Path, config: ConfigDict) -> Status:
    """The status of the run with this config in a folder, which need not be there."""
    steps = config.steps
    if (folder / "result.json").exists():
        return Status("finished", steps, steps)
    saved = saved_step(folder)
    if in_use(folder):
        step, seconds = _progress(folder, config.batch_size)
        return Status("running", max(step, saved), steps, seconds)
    error = folder / "error.txt"
    if error.exists():
        return Status("failed", saved, steps, cause=cause(error.read_text(errors="replace")))
    return Status("to go on" if saved else "new", saved, steps)


def snapshot(grid: Sequence[Point], workdir: Path) -> list[Status]:
    """The status of each run, and whether its folder holds another one than is asked for."""
    statuses = []
    for point in grid:
        try:
            experiment.refuse_other_config(point.config, workdir / point.name)
            statuses.append(look(workdir / point.name, point.config))
        except UserError as error:
            statuses.append(Status("another config", 0, point.config.steps, cause=str(error)))
    return statuses


def in_use(folder: Path) -> bool:
    """Return whether a sweep or a training holds this folder now."""
    return any(locks.is_held(folder / name) for name in LOCKS)


def cause(said: str) -> str:
    """The line of what a failed run said that tells why."""
    lines = [line for line in said.splitlines() if not _ECHO.search(line)]
    own = [line for line in lines if line.startswith("segjax: ")]
    if own:
        return own[-1].removeprefix("segjax: ")
    killed = _KILLED.search(said)
    return killed[1] if killed else last_line("\n".join(lines))


def last_line(said: str) -> str:
    """The last line that is not blank."""
    return ([line for line in said.splitlines() if line.strip()] or ["it said nothing"])[-1]


def saved_step(folder: Path) -> int:
    """The last step that a start of the run would go on from; 0: it would begin."""
    try:
        names = os.listdir(folder / "checkpoints" / "latest")
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def _progress(folder, batch_size):
    """The last step that is logged, and the seconds of one lately."""
    step, rates = 0, []
    for row in _last_rows(folder / "metrics.jsonl"):
        step = max(step, row.get("step", 0))
        if row.get("train/images_per_second"):
            rates.append(row["train/images_per_second"])
    # The first has the time of compiling in it.
    recent = rates[1:][-_RATES:]
    return step, sum(batch_size / rate for rate in recent) / len(recent) if recent else None


def _last_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            skipped = max(file.seek(0, os.SEEK_END) - _TAIL, 0)
            file.seek(skipped)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[bool(skipped) : -1]:  # the last is being written, or empty
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def time_left(statuses: Sequence[Status], amounts: Sequence[int], jobs: int) -> float | None:
    """Seconds until all runs are done, by the rate of those that run.

    Args:
      statuses: of the runs.
      amounts: of work in each, as `work.amounts` gives it.
      jobs: runs at a time.
    """
    rates, rest, open_runs = [], 0.0, 0
    for status, amount in zip(statuses, amounts, strict=True):
        if status.seconds_per_step:
            rates.append(amount / status.steps / status.seconds_per_step)
        if status.state in ("running", "to go on", "new"):
            rest += amount * (1 - status.step / status.steps)
            open_runs += 1
    if not rates or not open_runs:
        return None
    together = rest / (sum(rates) / len(rates) * min(jobs, open_runs))
    # However many there are, the longest is not done sooner.
    return max([together, *(status.left or 0.0 for status in statuses)])
