"""A sweep on Slurm: submitted as one job array, watched, cancelled, and what is missing submitted.

Below the workdir, `slurm/sweep.sh` is the script and `slurm/runs.txt` has a line for each run that
was ever submitted; its number is the run's in every array of this workdir. Slurm is asked for the
jobs of that script, so that those submitted by hand are known as well.
"""

import contextlib
import dataclasses
import datetime
import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from segjax import config as configs
from segjax import locks
from segjax.errors import UserError
from segjax.files import write_whole
from segjax.runs import experiment
from segjax.sweep import display, grids, slurm_script, status
from segjax.sweep.slurm_script import RUNS, SCRIPT, Options

_JOBS = Path("slurm", "jobs.jsonl")  # a line a submission: the job and its runs

# As long as a job is in another state, it may still have its run.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A task of an array, as long as Slurm remembers it."""

    id: str  # 12_3
    state: str  # in Slurm's words
    reason: str  # for waiting

    @property
    def lives(self) -> bool:
        """Return whether the job is waiting, running, or still ending."""
        return self.state not in _ENDED

    @property
    def rank(self) -> tuple[bool, int]:
        """More for one that lives, then for one that was submitted later."""
        return self.lives, int(self.id.partition("_")[0])

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.state == "PENDING" else ""
        return f"{self.id} {self.state}{reason}"


def script(
    spec: str,
    grid: Sequence[grids.Point],
    workdir: Path,
    options: Options,
    at_once: int | None = None,
) -> str:
    """Return the script that `submit` would submit now, as far as that is known without Slurm."""
    commands = _merged(read_runs(workdir), spec, grid, workdir)
    lines = [
        line
        for line, name in enumerate(commands, start=1)
        if name in {point.name for point in grid} and not _finished(workdir, name)
    ]
    if not lines:
        return "nothing to submit"
    title = configs.experiment_name(spec)
    return slurm_script.render(title, workdir, options, lines, at_once).rstrip()


def submit(
    spec: str,
    grid: Sequence[grids.Point],
    workdir: Path,
    options: Options,
    at_once: int | None = None,
) -> str:
    """Submits the runs that are neither finished nor under way, and says so.

    Args:
      at_once: so many at a time; None: as many as the cluster gives.

    Raises:
      UserError: a folder holds a run of another config, a run is in the queue with another
        command, or Slurm is not there or refuses.
    """
    for point in grid:
        experiment.refuse_other_config(point.config, workdir / point.name)
    with _locked(workdir):
        known, jobs = read_runs(workdir), queue(workdir)
        commands = _merged(known, spec, grid, workdir)
        for name, job in jobs.items():
            if job.lives and commands[name] != known[name]:
                raise UserError(f"run {name} is in the queue as {job} with another command")
        names, said = _missing([point.name for point in grid], workdir, jobs)
        if not names:
            return f"nothing to submit: {said}"
        text = "".join(f"{name}\t{command}\n" for name, command in commands.items())
        write_whole(workdir / RUNS, text)
        lines = [line for line, name in enumerate(commands, start=1) if name in names]
        title = configs.experiment_name(spec)
        write_whole(workdir / SCRIPT, slurm_script.render(title, workdir, options, lines, at_once))
        return f"{_sbatch(workdir, names)}{said and f'; {said}'}"


def resubmit(workdir: Path, names: Sequence[str]) -> str:
    """Submit the script again for the named runs that are neither finished nor queued.

    The script is that of the last submission, with what was edited in it since.

    Returns:
      What was submitted, in words.

    Raises:
      UserError: nothing was submitted from here, or Slurm is not there or refuses.
    """
    known = _submitted_runs(workdir, names)
    with _locked(workdir):
        missing, said = _missing(known, workdir, queue(workdir))
        if not missing:
            return f"nothing to submit: {said}"
        lines = [n for n, name in enumerate(read_runs(workdir), start=1) if name in missing]
        text = (workdir / SCRIPT).read_text()
        write_whole(workdir / SCRIPT, slurm_script.with_lines(text, lines))
        return f"{_sbatch(workdir, missing)}{said and f'; {said}'}"


def report(grid: Sequence[grids.Point], workdir: Path) -> str:
    """Tabulate the progress of each run and its place in the queue."""
    jobs = {name: str(job) for name, job in queue(workdir).items()}
    last = {name: f"{job} has left the queue" for name, job in _submitted(workdir).items()}
    shown = [jobs.get(point.name) or last.get(point.name, "") for point in grid]
    return display.report(grid, status.snapshot(grid, workdir), shown)


def cancel(workdir: Path, names: Sequence[str]) -> str:
    """Cancel the jobs of the named runs; running ones save first.

    Returns:
      What was cancelled, in words.

    Raises:
      UserError: nothing was submitted from here, or Slurm is not there or refuses.
    """
    chosen = set(_submitted_runs(workdir, names))
    found = {name: job for name, job in queue(workdir).items() if job.lives and name in chosen}
    if not found:
        return "nothing to cancel: none of the runs is in the queue"
    _call("scancel", *(job.id for job in found.values()))
    return "\n".join(f"cancelled {job.id}: {name}" for name, job in found.items())


def _submitted_runs(workdir, names):
    known = read_runs(workdir)
    if not known:
        raise UserError(f"{workdir} is not the workdir of a sweep on Slurm: it has no {RUNS}")
    return [name for name in names if name in known]


def read_runs(workdir: Path) -> dict[str, str]:
    """The names of the runs that were submitted from a workdir, and their commands, in order."""
    try:
        lines = (workdir / RUNS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split("\t", 1) for line in lines)


def queue(workdir: Path) -> dict[str, Job]:
    """The jobs that Slurm knows of, by run: of each the one that lives, or the last one.

    Raises:
      UserError: Slurm is not there, or does not answer.
    """
    names, own = list(read_runs(workdir)), (workdir / SCRIPT).resolve()
    found: dict[str, Job] = {}
    said = _call("squeue", "--me", "--array", "--states=all", "--noheader", "-o", "%F|%K|%T|%r|%o")
    for line in said.splitlines():
        job, task, state, reason, command = line.split("|", 4)
        # A task that is not one of this sweep's lines was asked for by hand, and ends by itself.
        if Path(command).resolve() != own or not (task.isdigit() and 0 < int(task) <= len(names)):
            continue
        name, new = names[int(task) - 1], Job(f"{job}_{task}", state, reason)
        if name not in found or new.rank > found[name].rank:
            found[name] = new
    return found


def _merged(known, spec, grid, workdir):
    """The commands by name: those that are there keep their place, new ones come after."""
    commands = dict(known)
    for point in grid:
        command = shlex.join(grids.command(spec, point, workdir))
        if not command.isprintable():
            raise UserError(f"run {point.name} has an override of more than one line: {command!r}")
        commands[point.name] = command
    return commands


def _missing(names, workdir, jobs):
    """Those that are neither finished nor under way, and in words what the others are."""
    missing, others = [], {"finished": 0, "in the queue": 0, "in use by another process": 0}
    for name in names:
        if _finished(workdir, name):
            others["finished"] += 1
        elif name in jobs and jobs[name].lives:
            others["in the queue"] += 1
        elif status.in_use(workdir / name):
            others["in use by another process"] += 1
        else:
            missing.append(name)
    return missing, ", ".join(f"{count} {state}" for state, count in others.items() if count)


def _finished(workdir, name):
    return (workdir / name / "result.json").exists()


def _submitted(workdir: Path) -> dict[str, str]:
    """The last job of each run."""
    try:
        lines = (workdir / _JOBS).read_text().splitlines()
    except FileNotFoundError:
        return {}
    numbers = {name: line for line, name in enumerate(read_runs(workdir), start=1)}
    entries: list[Mapping] = [json.loads(line) for line in lines]
    return {name: f"{entry['job']}_{numbers[name]}" for entry in entries for name in entry["runs"]}


def _sbatch(workdir, names):
    job = _call("sbatch", "--parsable", str((workdir / SCRIPT).absolute())).split(";")[0].strip()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with (workdir / _JOBS).open("a") as file:
        file.write(json.dumps({"job": job, "submitted": now, "runs": names}) + "\n")
    count = f"{len(names)} run{'s' * (len(names) != 1)}"
    return f"submitted {count} as job {job}, by {workdir / SCRIPT}"


def _call(program, *arguments):
    """The output of one of Slurm's commands."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"there is no {program} here: Slurm's commands are expected") from None
    if done.returncode:
        lines = [line.removeprefix(f"{program}: ") for line in done.stderr.splitlines()]
        why = "; ".join(line.removeprefix("error: ") for line in lines if line.strip())
        raise UserError(f"{program} refuses: {why or f'exit status {done.returncode}'}")
    return done.stdout


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """One submission at a time, so that no run gets two jobs."""
    (workdir / SCRIPT).parent.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire((workdir / SCRIPT).with_name(".lock"), wait=None)
    assert lock  # it has waited
    with lock:
        yield
