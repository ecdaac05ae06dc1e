"""Progress bar of a long command, with rate and remaining time, and lines printed above it."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Terminal(Console):
    """A console whose broken pipe is Python's exception, not an exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Bar:
    """A progress bar, shown only on a terminal; lines are always printed."""

    def __init__(
        self, title: str, total: int, done: int = 0, unit_per_step: int = 0, quiet: bool = False
    ):
        """Create a bar at `done` of `total` steps.

        Args:
          title: shown before the bar.
          total: number of steps.
          done: steps done so far.
          unit_per_step: images in a step, to show images per second; 0: show no rate.
          quiet: print nothing.
        """
        self._console = Terminal(quiet=quiet)
        self._images = unit_per_step
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, done: int, note: str = "") -> None:
        """Move to `done` steps."""
        self._progress.update(self._task, completed=done, note=note)
        speed = self._progress.tasks[0].speed
        if speed and self._images:
            self._progress.update(self._task, rate=f"{speed * self._images:.1f} images/s")

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
