"""Train the runs of a sweep on this machine: a few at a time, each a process with its own share.

Finished runs are skipped and stopped runs resume, so a sweep may be killed and started again, and
several sweeps may share a workdir.
"""

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console

from segjax.errors import UserError
from segjax.runs import compilation_cache, experiment
from segjax.sweep import display, grids
from segjax.sweep.status import LOCKS, failure_cause, last_line
from segjax.system import locks, waiting
from segjax.system.files import write_whole
from segjax.system.progress import Terminal

# A killed sweep must not leave runs behind, which its next start would find in use. So on Linux a
# run asks for SIGKILL when its parent dies (PR_SET_PDEATHSIG is 1), and exits if that has happened.
_CHILD = """
import sys
sys.path[:] = {path}
import ctypes, os, signal
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != {parent}:
        sys.exit(1)
    if {cores}:
        os.sched_setaffinity(0, {cores})
from segjax.cli.main import main
sys.exit(main())
"""

UNFINISHED = os.EX_TEMPFAIL  # exit status if the time limit left unfinished runs

_SAVED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit statuses of a run that was stopped

_POLL_SECONDS = 0.2  # between looks at the runs
_REFRESH_SECONDS = 1.0  # between updates of the live table


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the machine that one run at a time gets."""

    cores: tuple[int, ...]  # CPU affinity; (): any core
    environment: dict[str, str]  # variables to set


@dataclasses.dataclass
class Child:
    """The process of a run, with the files that belong to it."""

    title: str  # position in the sweep, such as [3/12]
    point: grids.Point
    folder: Path
    share: Share
    lock: IO[str]  # held for as long as this process runs
    process: subprocess.Popen
    log: IO[bytes]  # log.txt, read from where this start began
    output: bytes = b""  # read so far, of this start
    shown: int = 0  # bytes of the output that were printed


def run(
    spec: str,
    grid: Sequence[grids.Point],
    workdir: Path,
    jobs: int | str | None = None,
    console: Console | None = None,
    time_limit: float | None = None,
) -> int:
    """Train the unfinished runs of a grid, as many at a time as `jobs` says (`resolve_jobs`).

    The output of a run is appended to `log.txt` in its run directory. A run that fails leaves its
    output in `error.txt` while the others continue; the next start retries it. A run that
    another process holds is skipped, and waited for at the end. On SIGTERM or SIGINT, and after
    `time_limit` seconds, the running ones save and no other run starts.

    Returns:
      The exit status: 0; 1 if a run failed; 143 or 130 after a signal; `UNFINISHED` if the time
      limit was reached before all runs were finished.

    Raises:
      UserError: a directory holds a run of another config, or there are fewer GPUs than jobs.
    """
    for point in grid:
        experiment.refuse_other_config(point.config, workdir / point.name)
    jobs = resolve_jobs(jobs, os.environ)
    free, cores = split_machine(jobs, os.environ), len(_cores())
    with (
        display.Display(grid, workdir, jobs, console or Terminal()) as screen,
        forward_signals() as (running, received),
    ):
        if jobs > cores:
            screen.print_line(f"{jobs} runs at a time share {cores} core{'s' * (cores != 1)}")
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        sweep = _Sweep(spec, workdir, screen, free, running, received, deadline)
        failed = sweep.run(grid)
    if received:
        screen.print_line("stopped; the same command resumes")
        return 128 + received[0]
    finished = len(grid) - len(failed) - sweep.remaining
    screen.print_line(f"{finished} of {len(grid)} runs are finished in {workdir}")
    for name, cause in failed.items():
        screen.print_line(f"failed: {name}{cause}")
    if sweep.remaining:
        screen.print_line(
            f"time limit reached, {sweep.remaining} unfinished; the same command resumes"
        )
        return UNFINISHED
    return 1 if failed else 0


@dataclasses.dataclass
class _Sweep:
    """The state of a sweep while it runs on this machine."""

    spec: str
    workdir: Path
    screen: display.Display
    free: list[Share]
    running: list[Child]
    received: list[int]  # numbers of the signals received
    deadline: float  # by `time.monotonic`
    stopping: bool = False  # since a signal or the deadline
    remaining: int = 0  # runs left unfinished at the deadline
    waiting: list[tuple[str, grids.Point]] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # name: what to say of it
    reported_busy: set[str] = dataclasses.field(default_factory=set)

    def run(self, grid: Sequence[grids.Point]) -> dict[str, str]:
        """Run until all are finished or stopped; return the failed ones and what to say of them."""
        self.waiting = [(f"[{n}/{len(grid)}]", point) for n, point in enumerate(grid, start=1)]
        renewed = -math.inf
        while self.running or (self.waiting and not self.stopping):
            self._check_deadline()
            for title, point in list(self.waiting):
                if self.free and not self.stopping:
                    self._start_if_free(title, point)
            for child in list(self.running):
                if child.process.poll() is None:
                    self._print_output(child)
                else:
                    self.running.remove(child)
                    self._finish(child)
            if time.monotonic() - renewed >= _REFRESH_SECONDS:
                self.screen.refresh()
                renewed = time.monotonic()
            time.sleep(_POLL_SECONDS)
        if not self.received:
            # Those behind a run that took the last place may be finished.
            self.remaining += sum(not self._is_finished(point) for _, point in self.waiting)
        return self.failed

    def _is_finished(self, point):
        return (self.workdir / point.name / "result.json").exists()

    def _check_deadline(self):
        if self.stopping:
            return
        if not self.received and time.monotonic() >= self.deadline:
            self.stopping = True
            for child in self.running:
                child.process.terminate()
        self.stopping = self.stopping or bool(self.received)
        if self.stopping and self.running:
            runs = f"{len(self.running)} run{'s' * (len(self.running) != 1)}"
            self.screen.print_line(f"stopping, waiting for {runs} to save")

    def _start_if_free(self, title, point):
        folder = self.workdir / point.name
        if self._is_finished(point):
            self.waiting.remove((title, point))
            try:  # another sweep of this workdir may have trained another config since the start
                experiment.refuse_other_config(point.config, folder)
            except UserError as error:
                self.failed[point.name] = f": {error}"
                self.screen.print_line(f"{title} {point.name}: failed: {error}")
            else:
                self.screen.print_log(f"{title} {point.name}: finished already")
            return
        held = claim_run(folder)
        if held is None:
            if title not in self.reported_busy:
                self.reported_busy.add(title)
                self.screen.print_line(
                    f"{title} {point.name}: in use by another process, waiting for it"
                )
            return
        self.waiting.remove((title, point))
        self.screen.print_log(f"{title} {point.name}")
        child = self._start(title, point, held)
        self.running.append(child)
        if self.received:  # too early for `forward_signals` to know this child
            child.process.send_signal(self.received[-1])

    def _start(self, title, point, lock):
        """Start a locked run, with its output appended to `log.txt` in its run directory."""
        share, folder = self.free.pop(0), self.workdir / point.name
        # Without -P a module of the user in the current folder could hide one of Python's.
        code = _CHILD.format(path=sys.path, parent=os.getpid(), cores=set(share.cores) or "()")
        command = grids.train_command(self.spec, point, self.workdir)[1:]
        (folder / "error.txt").unlink(missing_ok=True)
        with (folder / "log.txt").open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **compilation_cache.share(self.workdir), **share.environment},
                start_new_session=True,  # Ctrl-C arrives by `forward_signals` only
            )
        output = (folder / "log.txt").open("rb")
        output.seek(begin)
        return Child(title, point, folder, share, lock, process, output)

    def _print_output(self, child, ended=False):
        """Print the new lines in a run's log; an incomplete last line only once it has ended."""
        child.output += child.log.read()
        end = len(child.output) if ended else child.output.rfind(b"\n") + 1
        for line in child.output[child.shown : end].decode(errors="replace").splitlines():
            self.screen.print_log(f"{child.title} {line}")
        child.shown = max(end, child.shown)

    def _finish(self, child):
        self._print_output(child, ended=True)
        status, output = child.process.returncode, child.output.decode(errors="replace")
        where = f"{child.title} {child.point.name}"
        if refused_as_in_use(status, output):  # another process started it first
            self.waiting.append((child.title, child.point))
        elif status == 0:
            self.screen.print_outcome(f"{where}: {last_line(output)}")
        elif self.stopping and (status < 0 or status in _SAVED):
            self.remaining += not self.received
        else:
            if status < 0:
                output += f"ended by {signal.Signals(-status).name}\n"
            write_whole(child.folder / "error.txt", output)
            self.failed[child.point.name] = f", see {child.folder / 'error.txt'}"
            self.screen.print_line(f"{where}: failed: {failure_cause(output)}")
        self.free.append(child.share)
        child.log.close()
        child.lock.close()


def split_machine(jobs: int, environment: Mapping[str, str]) -> list[Share]:
    """Return the shares of this machine for `jobs` runs at a time.

    GPUs, cores and the CPU devices of JAX_NUM_CPU_DEVICES are divided among them; runs share cores
    only if there are more runs than cores. A single run gets the whole machine.

    Raises:
      UserError: there are GPUs, but fewer than `jobs`.
    """
    if jobs == 1:
        return [Share((), {})]
    cores, gpus = _cores(), visible_gpus(environment)
    if gpus and jobs > len(gpus):
        raise UserError(
            f"--jobs {jobs}, but there {'is 1 GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'}"
            f"; set JAX_PLATFORMS=cpu to use none"
        )
    found = []
    for job in range(jobs):
        own = {}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[job::jobs])
        devices = environment.get("JAX_NUM_CPU_DEVICES", "")
        if devices.isdigit():
            own["JAX_NUM_CPU_DEVICES"] = str(max(int(devices) // jobs, 1))
        found.append(Share(cores[job::jobs] or (cores[job % len(cores)],), own))
    return found


def _cores():
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def resolve_jobs(jobs: int | str | None, environment: Mapping[str, str]) -> int:
    """Return the number of runs at a time that --jobs asks for: N, `gpus` for one a GPU, or 1."""
    if jobs == "gpus":
        return max(len(visible_gpus(environment)), 1)
    return int(jobs or 1)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the ids of the NVIDIA GPUs that runs would see, without opening one."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return sorted((number for number in found if number.isdigit()), key=int)


def claim_run(folder: Path) -> IO[str] | None:
    """Lock a run for this sweep; return the locked file, or None if it is in use or finished."""
    folder.mkdir(parents=True, exist_ok=True)
    sweeping, training = (folder / name for name in LOCKS)
    held = locks.acquire(sweeping)
    # With the sweep lock held no sweep can start the run, so testing its training lock is safe. And
    # another sweep may have finished it in the meantime.
    if held and (locks.is_held(training) or (folder / "result.json").exists()):
        held.close()
        return None
    return held


def refused_as_in_use(status: int, output: str) -> bool:
    """Return whether a run ended because another process holds its run directory."""
    return status == 2 and "is in use by another process" in failure_cause(output)


@contextlib.contextmanager
def forward_signals() -> Iterator[tuple[list[Child], list[int]]]:
    """Forward SIGTERM and SIGINT to running children.

    On exit the children save and end, also if the sweep itself failed, such as on a full disk.

    Yields:
      A list to which the caller adds running children, and a list of the signals received.
    """
    running: list[Child] = []
    received: list[int] = []

    def forward(number, _):
        received.append(number)
        for child in running:
            if child.process.poll() is None:
                child.process.send_signal(number)

    former = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield running, received
    finally:
        for child in running:
            child.process.terminate()
        with waiting.reported("waiting for the running runs to save"):
            for child in running:
                child.process.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
