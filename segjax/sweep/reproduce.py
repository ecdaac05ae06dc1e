"""`segjax reproduce`: the grid of a published table, done piece by piece, each within a budget.

A call goes on where former ones, killed or not, have left the folder:

  results.jsonl   the row of each run, added as it ends: what is in here is done
  timings.jsonl   what each start of a run took, by which the next call knows what fits
  failures.jsonl  what failed; twice, and it is left alone
  RUN/            the workdir of each run, as `segjax sweep` has it
  compiled/       JAX's compilation cache

The first three are enough to go on elsewhere: a run that is half-done then begins again.

Each run is a process of its own, as in a sweep. That costs the seconds of a start; but a crash, or
a device out of memory, ends one run and no more, and what compiles cannot be interrupted from
within, so that the budget can only be kept from without.
"""

import contextlib
import dataclasses
import fcntl
import math
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

import segjax
from segjax.data import datasets
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.runs import experiment, timing
from segjax.sweep import budget, display, grids, ledger, local, status

TABLES = {"camvid": "camvid_table"}  # and the config files that have their grids

REMAINS = 75  # the exit status where there is more to do (EX_TEMPFAIL)
ATTEMPTS = 2  # at a run that fails, one a call

# What is kept for the end of the command itself: seconds, and more where its start took long.
_CLOSING, _CLOSING_OF_START = 4.0, 0.5
_LOOK_EVERY = 0.2  # seconds
_RENEW_EVERY = 1.0  # seconds, the overview


def config_file(table: str) -> str:
    """The config file that has the grid of a table: of this folder, or of the repository.

    Raises:
      UserError: it is in neither, as segjax was installed without its experiments.
    """
    path = Path("experiments", f"{TABLES[table]}.py")
    for root in (Path(), Path(segjax.__file__).parents[1]):
        if (root / path).is_file():
            return str(root / path)
    raise UserError(f"{path} is not here, expected the repository's folder, or --config")


def order(
    grid: Sequence[grids.Point], digests: Sequence[str], operations: Sequence[int]
) -> list[tuple[int, grids.Point]]:
    """The runs with their tiers, so that what comes early tells most: one seed of every network
    before second ones, cheap ones first.

    It is the same on every machine, and so are parts that are dealt from it.

    Args:
      grid: the runs.
      digests: of their configs, which leave the seed out.
      operations: multiply-adds of each.
    """
    seen: Counter[str] = Counter()
    found = []
    for point, digest, amount in zip(grid, digests, operations, strict=True):
        found.append((seen[digest], amount, point.name, point))
        seen[digest] += 1
    return [(tier, point) for tier, _, _, point in sorted(found, key=lambda run: run[:3])]


def run(
    spec: str,
    grid: Sequence[grids.Point],
    folder: Path,
    *,
    seconds: float,
    began: float,
    part: tuple[int, int] = (1, 1),
    whole_only: bool = False,
    retry: bool = False,
    source: str | None = None,
    console: Console | None = None,
) -> int:
    """Does what fits of what is missing, and says what is left.

    Args:
      spec: the config file of the grid, as `FILE` or `FILE:ARG`.
      grid: its runs.
      folder: where everything is kept.
      seconds: the budget. Nothing runs any more when they are over.
      began: when they began, of `time.monotonic`.
      part: (k, n): every n-th of the runs, from the k-th on.
      whole_only: begin no run that will not end in time.
      retry: try again what has failed ATTEMPTS times.
      source: the published folder, to prepare the data set from where it is not yet.
      console: to write to.

    Returns:
      0: all is done; 1: but for what failed; REMAINS: there is more to do; 128 + a signal.

    Raises:
      UserError: the folder is in use, cannot be written, or holds a run of another config; the data
        set is not prepared and there is no source.
    """
    console = console or Console()
    with _locked(folder), local.stopping() as (running, received):
        book = ledger.Ledger(folder, retry=retry)
        mine = order(grid, [book.digest(point) for point in grid], _operations(grid, book))
        mine = mine[part[0] - 1 :: part[1]]
        for _, point in mine:
            experiment.refuse_other_config(point.config, folder / point.name)
            if book.collect(point):  # of a call that was killed before it could
                _tidy(folder / point.name)
        starting = time.monotonic() - began
        deadline = began + seconds - max(_CLOSING, _CLOSING_OF_START * starting)
        todo = [point for _, point in mine if not book.has(point)]
        with display.Display(todo, folder, 1, console) as screen:
            call = _Call(
                *(spec, folder, book, mine, seconds, deadline, whole_only),
                *(running, received, screen),
            )
            if call.jobs() and _prepare(grid[0], source, deadline):
                call.run()
            for line in call.closing():
                screen.line(line)
        if received:
            return 128 + received[0]
        return REMAINS if call.jobs() else int(bool(call.failed()))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this call: its files have one writer."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".reproduce.lock").open("w")
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {folder} is in use by another call") from None
        yield


def _operations(grid, book):
    """Multiply-adds of each run; what cannot be counted, as it cannot be, comes first and fails."""
    found = []
    for point in grid:
        digest = book.digest(point)
        if digest not in book.operations:
            try:
                book.operations[digest] = work.of_training(point.config).operations
            except UserError:
                book.operations[digest] = 0
        found.append(book.operations[digest])
    book.keep_operations()
    return found


def _prepare(point, source, deadline):
    """Whether the data set is there in time; it is prepared where there is a source for it."""
    data = point.config.data
    try:
        datasets.info(
            data.dataset, data_dir=data.data_dir or None, resolution=tuple(data.resolution)
        )
        return True
    except UserError:
        if source is None:
            raise
    flags = ["--data-dir", data.data_dir] if data.data_dir else []
    command = ["data", data.dataset, "--source", source, *flags]
    process = subprocess.Popen([*local.python(), *command], stdin=subprocess.DEVNULL)
    try:
        if process.wait(max(deadline - time.monotonic(), 0)) != 0:
            raise UserError(f"data set {data.dataset} cannot be prepared, as is said above")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _tidy(workdir):
    """Deletes what a finished run will not go on from: it would fill the disk. `final` stays."""
    for kind in ("latest", "best"):
        shutil.rmtree(workdir / "checkpoints" / kind, ignore_errors=True)


@dataclasses.dataclass
class _Call:
    """What is kept from one run to the next."""

    spec: str
    folder: Path
    book: ledger.Ledger
    mine: list[tuple[int, grids.Point]]  # the runs of this part, with their tiers
    seconds: float  # the budget
    deadline: float  # of `time.monotonic`
    whole_only: bool
    running: list[local.Child]
    received: list[int]  # signals
    screen: display.Display
    skipped: set[str] = dataclasses.field(default_factory=set)  # in this call

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def failed(self) -> list[grids.Point]:
        """Those that are left alone."""
        return [
            point
            for _, point in self.mine
            if not self.book.has(point) and self.book.failures(point) >= ATTEMPTS
        ]

    def jobs(self) -> list[budget.Job]:
        """What is to be done, with all that is known of how long it takes."""
        paces, operations = self.book.paces(), self.book.operations
        others = [(pace, operations.get(digest, 0)) for digest, pace in paces.items()]
        found = []
        for tier, point in self.mine:
            failures = self.book.failures(point)
            if self.book.has(point) or failures >= ATTEMPTS:
                continue
            digest = self.book.digest(point)
            own, amount = paces.get(digest, budget.Pace()), operations[digest]
            step = status.saved_step(self.folder / point.name)
            completed = budget.completed(own, amount, others)
            found.append(
                budget.Job(point, tier, amount, step, failures, own, completed, self.seconds)
            )
        return found

    def run(self) -> None:
        """Run after run, until nothing more is worth it."""
        first = True
        while not self.received:
            jobs = [job for job in self.jobs() if job.point.name not in self.skipped]
            job = budget.choose(jobs, self.left(), first, self.whole_only)
            if job is None:
                return
            claim = local.claim(self.folder / job.point.name)
            if claim is None:
                self._collect_or_leave(job.point)
                continue
            first = False
            self._do(job, claim)

    def _collect_or_leave(self, point):
        if self.book.collect(point):  # a sweep in the same folder has just ended it
            return
        self.skipped.add(point.name)
        self.screen.line(f"{point.name}: in use by another process, left to it")

    def _do(self, job, claim):
        """Begins a run, or goes on with it, until it has ended or the time is over."""
        point, workdir = job.point, self.folder / job.point.name
        number = sum(self.book.has(each) for _, each in self.mine) + 1
        title = f"[{number}/{len(self.mine)}]"
        about = "" if job.whole is None else f", about {display.duration(job.whole)}"
        going_on = f", going on from step {job.step}" if job.step else ""
        self.screen.log(f"{title} {point.name}{about}{going_on}")
        since = time.time()
        child = local.start(self.spec, title, point, self.folder, local.Share((), {}), claim)
        self.running.append(child)
        asked = self._watch(child, job)
        ended = time.time()
        self.running.remove(child)
        local.follow(child, self.screen, over=True)
        end = self._settle(child, asked)
        found = budget.timing(timing.read(workdir, since), since, ended, end)
        self.book.add_timing(point, found)
        child.log.close()
        claim.close()

    def _watch(self, child, job):
        """Until the run has ended; whether it was asked to."""
        asked, renewed = False, -math.inf
        while child.process.poll() is None:
            local.follow(child, self.screen)
            left = self.left()
            if left <= 0:
                child.process.kill()
            elif not asked and left <= job.reserve and self._can_save(job.point):
                asked = True
                child.process.terminate()
            if time.monotonic() - renewed >= _RENEW_EVERY:
                self.screen.renew()
                renewed = time.monotonic()
            time.sleep(_LOOK_EVERY)
        return asked

    def _can_save(self, point):
        """Whether it is of use to stop a run: its test begins again in any case."""
        return status.saved_step(self.folder / point.name) < point.config.steps

    def _settle(self, child, asked):
        """Notes how a run has ended, and says it: finished, stopped or failed."""
        point, code = child.point, child.process.returncode
        said = child.said.decode(errors="replace")
        where = f"{child.title} {point.name}"
        if code == 0:
            self.book.collect(point)
            _tidy(child.folder)
            self.screen.end(f"{where}: {status.last_line(said)}")
            return "finished"
        if local.is_in_use(code, said):
            self.skipped.add(point.name)
            return "left to another process"
        by_signal = code in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM)
        late = code == -signal.SIGKILL and self.left() <= 0
        if late or (by_signal and (asked or self.received)):
            self.screen.end(f"{where}: stopped")
            return "stopped"
        if code < 0:
            said += f"ended by {signal.Signals(-code).name}\n"
        write_whole(child.folder / "error.txt", said)
        self.book.add_failure(point, status.cause(said))
        self.skipped.add(point.name)
        self.screen.line(f"{where}: failed: {status.cause(said)}")
        return "failed"

    def closing(self) -> list[str]:
        """What each network took, what failed, and in one line what is done and what is left."""
        runs = [point for _, point in self.mine]
        lines, jobs, failed = self.book.table(runs), self.jobs(), self.failed()
        lines += [
            f"failed: {point.name}, see {self.folder / point.name / 'error.txt'}"
            for point in runs
            if not self.book.has(point) and self.book.failures(point)
        ]
        lines += [
            f"did not get on within {job.pace.vain:.0f} s, wants a greater budget: {job.point.name}"
            for job in jobs
            if job.pace.vain >= self.seconds / 2
        ]
        begun = sum(job.step > 0 for job in jobs)
        parts = [f"{sum(map(self.book.has, runs))} of {len(runs)} runs done"]
        parts += [f"{len(failed)} failed"] * bool(failed)
        parts += [f"{len(jobs)} left ({begun} begun)"] * bool(jobs)
        whole = [job.whole for job in jobs if job.whole is not None]
        about = "; nothing is known yet of how long that takes"
        if len(whole) == len(jobs):
            about = f"; they take about {display.duration(sum(whole))} ({sum(whole):.0f} s)"
        return [
            *lines,
            f"{', '.join(parts)}{about * bool(jobs)}; rows in {self.folder / ledger.RESULTS}",
        ]
