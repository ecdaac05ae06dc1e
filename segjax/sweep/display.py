"""Render the plan and progress of a sweep, and show a live view while it runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segjax.errors import UserError
from segjax.sweep import costs
from segjax.sweep.grids import Point
from segjax.sweep.status import STATES, Status, read_status, time_left


def render_summary(statuses: Sequence[Status], left: float | None = None) -> str:
    """Return `12 runs: 3 finished, 2 running, 7 new; about 2 h 05 min left`."""
    counts = Counter(status.state for status in statuses)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    about = "" if left is None else f"; about {format_duration(left)} left"
    return f"{len(statuses)} run{'s' * (len(statuses) != 1)}: {parts}{about}"


def render_plan(grid: Sequence[Point], statuses: Sequence[Status]) -> str:
    """Return the table of `--dry-run`: parameters, training MACs and status of each run.

    Raises:
      UserError: the model of a run does not take its images.
    """
    rows, total, to_do = [], 0, 0.0
    for point, status in zip(grid, statuses, strict=True):
        try:
            found = costs.training_cost(point.config)
        except UserError as error:
            raise UserError(f"run {point.name}: {error}") from error
        total += found.macs
        to_do += found.macs * (1 - status.step / status.steps)
        state = status.state
        if status.state == "resumable":
            state += f" from step {status.step}"
        rows.append([point.name, f"{found.parameters:,}", format_quantity(found.macs), state])
    return "\n".join(
        [
            *render_table(["run", "parameters", "MACs", "status"], rows, right=(1, 2)),
            f"{render_summary(statuses)}; {format_quantity(total)} MACs of training, "
            f"{format_quantity(to_do)} to do",
        ]
    )


def render_progress(
    grid: Sequence[Point], statuses: Sequence[Status], jobs: Sequence[str] = ()
) -> str:
    """Return the table of `--status`: progress, speed and time left of each run.

    Args:
      grid, statuses: the runs.
      jobs: a description of the cluster job of each run; (): no cluster.
    """
    rows = [_progress_row(point, status) for point, status in zip(grid, statuses, strict=True)]
    head = ["run", "status", "step", "images/s", "left"]
    if jobs:
        head, rows = [*head, "job"], [[*row, job] for row, job in zip(rows, jobs, strict=True)]
    running = sum(status.state == "running" for status in statuses)
    left = time_left(statuses, costs.run_costs(grid), running) if running else None
    return "\n".join(
        [
            *render_table(head, rows, right=(2, 3, 4)),
            *(
                f"{status.state}: {point.name}: {status.cause}"
                for point, status in zip(grid, statuses, strict=True)
                if status.cause
            ),
            render_summary(statuses, left),
        ]
    )


def _progress_row(point, status):
    seconds, left = status.seconds_per_step, status.seconds_left
    return [
        point.name,
        status.state,
        f"{status.step}/{status.steps}",
        f"{point.config.batch_size / seconds:.1f}" if seconds else "",
        "" if left is None else format_duration(left),
    ]


class Display:
    """A live table of the running runs on a terminal; plain lines elsewhere."""

    def __init__(self, grid: Sequence[Point], workdir: Path, jobs: int, console: Console):
        self._grid, self._workdir, self._jobs = grid, workdir, jobs
        self._console = console
        self._live = None
        if console.is_terminal:
            self._costs = costs.run_costs(grid)
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def print_line(self, text: str) -> None:
        """Print a line, on a terminal above the live table."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def print_outcome(self, text: str) -> None:
        """Print how a run ended, on a terminal only: elsewhere its log has been printed."""
        if self._live:
            self.print_line(text)

    def print_log(self, text: str) -> None:
        """Print a line of a run's log, except on a terminal, which has the live table instead."""
        if not self._live:
            self.print_line(text)

    def refresh(self) -> None:
        """Read the run directories again and redraw the live table."""
        if self._live:
            statuses = [
                read_status(self._workdir / point.name, point.config) for point in self._grid
            ]
            left = time_left(statuses, self._costs, self._jobs)
            self._live.update(_live_table(self._grid, statuses, left), refresh=True)


def _live_table(grid, statuses, left):
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=justify == "right")
    for point, status in zip(grid, statuses, strict=True):
        if status.state == "running":
            row = _progress_row(point, status)
            rate = f"{row[3]} images/s" if row[3] else "starting"
            table.add_row(*map(Text, (*row[:3], rate, row[4] and f"{row[4]} left")))
        elif status.state == "failed":
            table.add_row(Text(point.name), Text("failed", style="red"), *map(Text, ("", "", "")))
    return Group(table, Text(render_summary(statuses, left), style="bold"))


def render_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]
) -> list[str]:
    """Return the lines of a text table; the columns whose numbers are in `right` align right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def format_quantity(number: float) -> str:
    """Return a number with an SI prefix and three digits: `1.53 P`."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.4g} E"


def format_duration(seconds: float) -> str:
    """Return `40 s`, `12 min`, `3 h 05 min` or `2 d 04 h`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24:02} h"
