"""The runs of a sweep on this machine: some at a time, each a process with its share of it.

What is finished is skipped and what is half-done goes on, so a sweep may be killed and started
again, and several may work on one workdir.
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

from segjax import locks
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.runs import compilation_cache, experiment
from segjax.sweep import display, grids
from segjax.sweep.status import LOCKS, cause, last_line

# A killed sweep leaves no run behind, which its next start would find in use: on Linux the run asks
# for the SIGKILL that it may get at any instant (PR_SET_PDEATHSIG is 1), unless it is too late to.
_CHILD = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != {parent}:
        sys.exit(1)
    if {cores}:
        os.sched_setaffinity(0, {cores})
from segjax.cli.main import main
sys.exit(main())
"""

REMAINS = 75  # exit status where the time limit left runs to do (EX_TEMPFAIL)

_LOOK_EVERY = 0.2  # seconds
_RENEW_EVERY = 1.0  # seconds, the overview


@dataclasses.dataclass(frozen=True)
class Share:
    """Share of the machine for one of the runs at a time."""

    cores: tuple[int, ...]  # that it keeps to; (): any
    environment: dict[str, str]


@dataclasses.dataclass
class Child:
    """A run under way."""

    title: str  # its place in the sweep
    point: grids.Point
    folder: Path
    share: Share
    claim: IO[str]  # whose lock goes with this process
    process: subprocess.Popen
    log: IO[bytes]  # what it says, from the beginning of this start
    said: bytes = b""
    shown: int = 0  # bytes of it


def run(
    spec: str,
    grid: Sequence[grids.Point],
    workdir: Path,
    jobs: int = 1,
    console: Console | None = None,
    time_limit: float | None = None,
) -> int:
    """Train the unfinished runs of a grid, `jobs` at a time.

    The output of a run is appended to `log.txt` in its run directory. A run that fails leaves its
    output in `error.txt` and the others go on; the next start tries it again. A run that another
    process holds is left to it, and waited for in the end. On SIGTERM or SIGINT, and when
    `time_limit` seconds are over, the running ones save and nothing new starts.

    Returns:
      The exit status: 0, 1 where a run failed, 143 or 130 after a signal, or `REMAINS` where the
      time was over before all were finished.

    Raises:
      UserError: a folder holds a run of another config, or the GPUs do not suffice.
    """
    for point in grid:
        experiment.refuse_other_config(point.config, workdir / point.name)
    free, cores = shares(jobs, os.environ), len(_cores())
    with (
        display.Display(grid, workdir, jobs, console or Console()) as screen,
        stopping() as (running, received),
    ):
        if jobs > cores:
            screen.line(f"{jobs} runs at a time share {cores} core{'s' * (cores != 1)}")
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        sweep = _Sweep(spec, workdir, screen, free, running, received, deadline)
        failed = sweep.run(grid)
    if received:
        screen.line("stopped; the same command goes on")
        return 128 + received[0]
    finished = len(grid) - len(failed) - sweep.remaining
    screen.line(f"{finished} of {len(grid)} runs are finished in {workdir}")
    for name in failed:
        screen.line(f"failed: {name}, see {workdir / name / 'error.txt'}")
    if sweep.remaining:
        screen.line(f"time limit reached, {sweep.remaining} to do; the same command goes on")
        return REMAINS
    return 1 if failed else 0


@dataclasses.dataclass
class _Sweep:
    """State of a sweep on this machine while it goes on."""

    spec: str
    workdir: Path
    screen: display.Display
    free: list[Share]
    running: list[Child]
    received: list[int]  # signals
    deadline: float  # of `time.monotonic`
    stopping: bool = False  # by a signal or the deadline
    remaining: int = 0  # runs that the deadline left unfinished
    waiting: list[tuple[str, grids.Point]] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    left_alone: set[str] = dataclasses.field(default_factory=set)

    def run(self, grid: Sequence[grids.Point]) -> list[str]:
        """The names of those that failed, when all are done or a signal has stopped them."""
        self.waiting = [(f"[{n}/{len(grid)}]", point) for n, point in enumerate(grid, start=1)]
        renewed = -math.inf
        while self.running or (self.waiting and not self.stopping):
            self._look_at_the_clock()
            for title, point in list(self.waiting):
                if self.free and not self.stopping:
                    self._start_or_leave(title, point)
            for child in list(self.running):
                if child.process.poll() is None:
                    follow(child, self.screen)
                else:
                    self.running.remove(child)
                    self._settle(child)
            if time.monotonic() - renewed >= _RENEW_EVERY:
                self.screen.renew()
                renewed = time.monotonic()
            time.sleep(_LOOK_EVERY)
        if not self.received:
            self.remaining += len(self.waiting)
        return self.failed

    def _look_at_the_clock(self):
        self.stopping = self.stopping or bool(self.received)
        if not self.stopping and time.monotonic() >= self.deadline:
            self.stopping = True
            for child in self.running:
                child.process.terminate()

    def _start_or_leave(self, title, point):
        folder = self.workdir / point.name
        if (folder / "result.json").exists():
            self.waiting.remove((title, point))
            self.screen.log(f"{title} {point.name}: finished already")
            return
        held = claim(folder)
        if held is None:
            if title not in self.left_alone:
                self.left_alone.add(title)
                self.screen.line(f"{title} {point.name}: in use by another process, left to it")
            return
        self.waiting.remove((title, point))
        self.screen.log(f"{title} {point.name}")
        child = start(self.spec, title, point, self.workdir, self.free.pop(0), held)
        self.running.append(child)
        if self.received:  # before it was among those that are told
            child.process.send_signal(self.received[-1])

    def _settle(self, child):
        follow(child, self.screen, over=True)
        status, said = child.process.returncode, child.said.decode(errors="replace")
        where = f"{child.title} {child.point.name}"
        if is_in_use(status, said):  # by a training that was quicker
            self.waiting.append((child.title, child.point))
        elif status == 0:
            self.screen.end(f"{where}: {last_line(said)}")
        elif self.stopping:
            self.remaining += not self.received
        else:
            if status < 0:
                said += f"ended by {signal.Signals(-status).name}\n"
            write_whole(child.folder / "error.txt", said)
            self.failed.append(child.point.name)
            self.screen.line(f"{where}: failed: {cause(said)}")
        self.free.append(child.share)
        child.log.close()
        child.claim.close()


def shares(jobs: int, environment: Mapping[str, str]) -> list[Share]:
    """Parts of this machine for `jobs` runs at a time.

    Each has cores of its own, as long as there are any, and GPUs; of the CPU devices that
    JAX_NUM_CPU_DEVICES asks for it has its part. One run alone has all.

    Raises:
      UserError: there are GPUs, but fewer than runs.
    """
    if jobs == 1:
        return [Share((), {})]
    cores, gpus = _cores(), visible_gpus(environment)
    if gpus and jobs > len(gpus):
        raise UserError(
            f"--jobs {jobs}, but there {'is 1 GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'}"
            f" for them; JAX_PLATFORMS=cpu does without"
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


def default_jobs(jobs: int | str | None, environment: Mapping[str, str]) -> int:
    """Return the number of runs at a time that --jobs asks for: N, `gpus` for one a GPU, or 1."""
    if jobs == "gpus":
        return max(len(visible_gpus(environment)), 1)
    return int(jobs or 1)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that runs would see, without taking hold of one."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return sorted((number for number in found if number.isdigit()), key=int)


def claim(folder: Path) -> IO[str] | None:
    """Claim a run for this sweep: return a locked file, or None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    sweeping, training = (folder / name for name in LOCKS)
    held = locks.acquire(sweeping)
    # No sweep starts it now, so that looking at its lock is in nobody's way; one may have ended it.
    if held and (locks.is_held(training) or (folder / "result.json").exists()):
        held.close()
        return None
    return held


def python(cores: Sequence[int] = ()) -> list[str]:
    """Return the command that starts `segjax` on these cores (or any), to end with this process."""
    return [sys.executable, "-c", _CHILD.format(parent=os.getpid(), cores=set(cores) or "()")]


def start(
    spec: str, title: str, point: grids.Point, workdir: Path, share: Share, claim: IO[str]
) -> Child:
    """Starts a run that was claimed; what it says goes to `log.txt` of its folder."""
    folder = workdir / point.name
    (folder / "error.txt").unlink(missing_ok=True)
    with (folder / "log.txt").open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [*python(share.cores), *grids.command(spec, point, workdir)[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **compilation_cache.share(workdir), **share.environment},
            start_new_session=True,  # what the terminal sends comes through `stopping` alone
        )
    said = (folder / "log.txt").open("rb")
    said.seek(begin)
    return Child(title, point, folder, share, claim, process, said)


def follow(child: Child, screen: display.Display, over: bool = False) -> None:
    """Shows the lines that a run has added to its log, and of one that is over all of them."""
    child.said += child.log.read()
    end = len(child.said) if over else child.said.rfind(b"\n") + 1
    for line in child.said[child.shown : end].decode(errors="replace").splitlines():
        screen.log(f"{child.title} {line}")
    child.shown = max(end, child.shown)


def is_in_use(status: int, said: str) -> bool:
    """Return whether a run ended because another process holds its run directory."""
    return status == 2 and "is in use by another process" in cause(said)


@contextlib.contextmanager
def stopping() -> Iterator[tuple[list[Child], list[int]]]:
    """Gives a list for the runs, which are handed SIGTERM and SIGINT, and one of those that came.

    Where the sweep itself fails, such as on a full disk, the runs save and end.
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
        for child in running:
            child.process.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
