"""Show a sweep to a person: its plan, its progress, and a live view while it runs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segjax.errors import UserError
from segjax.sweep import work
from segjax.sweep.grids import Point
from segjax.sweep.status import STATES, Status, look, time_left


def summary(statuses: Sequence[Status], left: float | None = None) -> str:
    """`12 runs: 3 finished, 2 running, 7 new; about 2 h 05 min left`."""
    counts = Counter(status.state for status in statuses)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    about = "" if left is None else f"; about {duration(left)} left"
    return f"{len(statuses)} run{'s' * (len(statuses) != 1)}: {parts}{about}"


def plan(grid: Sequence[Point], statuses: Sequence[Status]) -> str:
    """The table of a dry run: what each run is, costs, and how far it is.

    Raises:
      UserError: a run has a model that does not take its images.
    """
    rows, all_of_it, to_do = [], 0, 0.0
    for point, status in zip(grid, statuses, strict=True):
        try:
            found = work.of_training(point.config)
        except UserError as error:
            raise UserError(f"run {point.name}: {error}") from error
        all_of_it += found.macs
        to_do += found.macs * (1 - status.step / status.steps)
        state = status.state
        if status.state == "to go on":
            state += f" from step {status.step}"
        rows.append([point.name, f"{found.parameters:,}", quantity(found.macs), state])
    return "\n".join(
        [
            *aligned(["run", "parameters", "MACs", "status"], rows, right=(1, 2)),
            f"{summary(statuses)}; {quantity(all_of_it)} MACs of training, {quantity(to_do)} to do",
        ]
    )


def report(grid: Sequence[Point], statuses: Sequence[Status], jobs: Sequence[str] = ()) -> str:
    """The table of `--status`: how far each run is, and when it will be done.

    Args:
      grid, statuses: the runs.
      jobs: of a cluster, a word on that of each run; (): there is no cluster.
    """
    rows = [_progress_row(point, status) for point, status in zip(grid, statuses, strict=True)]
    head = ["run", "status", "step", "images/s", "left"]
    if jobs:
        head, rows = [*head, "job"], [[*row, job] for row, job in zip(rows, jobs, strict=True)]
    running = sum(status.state == "running" for status in statuses)
    left = time_left(statuses, work.amounts(grid), running) if running else None
    return "\n".join(
        [
            *aligned(head, rows, right=(2, 3, 4)),
            *(
                f"{status.state}: {point.name}: {status.cause}"
                for point, status in zip(grid, statuses, strict=True)
                if status.cause
            ),
            summary(statuses, left),
        ]
    )


def _progress_row(point, status):
    seconds, left = status.seconds_per_step, status.left
    return [
        point.name,
        status.state,
        f"{status.step}/{status.steps}",
        f"{point.config.batch_size / seconds:.1f}" if seconds else "",
        "" if left is None else duration(left),
    ]


class Display:
    """On a terminal the runs that are under way, renewed as they go; elsewhere lines alone."""

    def __init__(self, grid: Sequence[Point], workdir: Path, jobs: int, console: Console):
        self._grid, self._workdir, self._jobs = grid, workdir, jobs
        self._console = console
        self._live = None
        if console.is_terminal:
            self._amounts = work.amounts(grid)
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self, text: str) -> None:
        """Prints a line on a terminal alone: elsewhere the run's own last line is there."""
        if self._live:
            self.line(text)

    def log(self, text: str) -> None:
        """Prints a line of a run's log, which a terminal has in the overview instead."""
        if not self._live:
            self.line(text)

    def renew(self) -> None:
        """Looks at the workdirs again."""
        if self._live:
            statuses = [look(self._workdir / point.name, point.config) for point in self._grid]
            left = time_left(statuses, self._amounts, self._jobs)
            self._live.update(_under_way(self._grid, statuses, left), refresh=True)


def _under_way(grid, statuses, left):
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
    return Group(table, Text(summary(statuses, left), style="bold"))


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Lines of a table, its columns two blanks apart, those in `right` set to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def quantity(number: float) -> str:
    """`1.53 P`, with the prefixes of the SI."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.4g} E"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24:02} h"
