"""Submit a sweep to Slurm as one job array; watch, cancel and resubmit its runs.

In the workdir, `slurm/sweep.sh` is the batch script, and `slurm/runs.txt` has a line for each run
that was ever submitted: its line number is the run's task number in every array of this workdir.
Jobs are found in the queue by their script, so jobs submitted by hand are found as well.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from segjax import config as configs
from segjax.errors import UserError
from segjax.runs import experiment
from segjax.sweep import display, grids, slurm_script, status
from segjax.sweep.slurm_script import RUNS, SCRIPT, Options
from segjax.system import locks, stored, waiting
from segjax.system.files import write_whole

_JOBS = Path("slurm", "jobs.jsonl")  # one line per submission: job and runs

# A job in any other state may still train its run.
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One task of a job array, as Slurm reports it."""

    id: str  # ARRAY_TASK, such as 12_3
    state: str  # Slurm's name, such as PENDING
    reason: str  # why the job waits

    @property
    def is_active(self) -> bool:
        """Return whether the job waits, runs, or has not ended yet."""
        return self.state not in _ENDED

    @property
    def sort_key(self) -> tuple[bool, int]:
        """Return a key by which active jobs are greatest, then those submitted later."""
        return self.is_active, int(self.id.partition("_")[0])

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.state == "PENDING" else ""
        return f"{self.id} {self.state}{reason}"


def render_script(
    spec: str,
    grid: Sequence[grids.Point],
    workdir: Path,
    options: Options,
    at_once: int | None = None,
) -> str:
    """Return the script that `submit` would submit, without asking Slurm what is queued."""
    commands = _merge_commands(read_runs(workdir), spec, grid, workdir)
    lines = [
        line
        for line, name in enumerate(commands, start=1)
        if name in {point.name for point in grid} and not _is_finished(workdir, name)
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
    """Submit the runs that are neither finished, queued nor in use.

    Args:
      spec, grid, workdir: config file, runs, and directory of the sweep.
      options: resources of each run.
      at_once: runs at a time; None: as many as the cluster gives.

    Returns:
      A message that tells what was submitted.

    Raises:
      UserError: a directory holds a run of another config, a run is queued with another command,
        or Slurm is missing or refuses.
    """
    for point in grid:
        experiment.refuse_other_config(point.config, workdir / point.name)
    with _submission_lock(workdir):
        known, jobs = read_runs(workdir), read_queue(workdir)
        commands = _merge_commands(known, spec, grid, workdir)
        for name, job in jobs.items():
            if job.is_active and commands[name] != known[name]:
                raise UserError(f"run {name} is in the queue as {job} with another command")
        names, others = _find_missing([point.name for point in grid], workdir, jobs)
        if not names:
            return f"nothing to submit: {others}"
        text = "".join(f"{name}\t{command}\n" for name, command in commands.items())
        write_whole(workdir / RUNS, text)
        lines = [line for line, name in enumerate(commands, start=1) if name in names]
        title = configs.experiment_name(spec)
        write_whole(workdir / SCRIPT, slurm_script.render(title, workdir, options, lines, at_once))
        return f"{_submit_array(workdir, names)}{others and f'; {others}'}"


def refuse_other_commands(spec: str, grid: Sequence[grids.Point], workdir: Path) -> None:
    """Raise a UserError if a run was submitted with another command than that of the grid."""
    known = read_runs(workdir)
    for name, command in _merge_commands({}, spec, grid, workdir).items():
        if known.get(name, command) != command:
            raise UserError(
                f"--resubmit repeats the command of run {name}, {known[name]!r}; leave out the "
                "overrides, which differ"
            )


def resubmit(workdir: Path, names: Sequence[str]) -> str:
    """Submit the script again for the named runs that are neither finished, queued nor in use.

    The script is the one of the last submission, including edits by hand.

    Returns:
      A message that tells what was submitted.

    Raises:
      UserError: nothing was submitted from this workdir, or Slurm is missing or refuses.
    """
    known = _submitted_runs(workdir, names)
    with _submission_lock(workdir):
        missing, others = _find_missing(known, workdir, read_queue(workdir))
        if not missing:
            return f"nothing to submit: {others}"
        lines = [n for n, name in enumerate(read_runs(workdir), start=1) if name in missing]
        text = _read(workdir / SCRIPT)
        write_whole(workdir / SCRIPT, slurm_script.replace_array(text, lines))
        return f"{_submit_array(workdir, missing)}{others and f'; {others}'}"


def render_progress(grid: Sequence[grids.Point], workdir: Path) -> str:
    """Return the table of `--status`, with the Slurm job of each run."""
    jobs = {name: str(job) for name, job in read_queue(workdir).items()}
    last = {name: f"{job} has left the queue" for name, job in _last_jobs(workdir).items()}
    shown = [jobs.get(point.name) or last.get(point.name, "") for point in grid]
    return display.render_progress(grid, status.read_statuses(grid, workdir), shown)


def cancel(workdir: Path, names: Sequence[str]) -> str:
    """Cancel the jobs of the named runs; running ones save first.

    Returns:
      A message that tells what was canceled.

    Raises:
      UserError: nothing was submitted from this workdir, or Slurm is missing or refuses.
    """
    chosen = set(_submitted_runs(workdir, names))
    found = {
        name: job for name, job in read_queue(workdir).items() if job.is_active and name in chosen
    }
    if not found:
        return "nothing to cancel: none of the runs is in the queue"
    _run_program("scancel", *(job.id for job in found.values()))
    return "\n".join(f"canceled {job.id}: {name}" for name, job in found.items())


def _submitted_runs(workdir, names):
    known = read_runs(workdir)
    if not known:
        raise UserError(f"{workdir} is not the workdir of a sweep on Slurm: {RUNS} is missing")
    return [name for name in names if name in known]


def read_runs(workdir: Path) -> dict[str, str]:
    """Return the names and commands of the runs submitted from a workdir, in order.

    Raises:
      UserError: the file that lists them is damaged.
    """
    found = {}
    for number, line in enumerate(_read(workdir / RUNS).splitlines(), start=1):
        name, tab, command = line.partition("\t")
        if not tab or name in found:
            raise _damaged(workdir / RUNS, number)
        found[name] = command
    return found


def _read(path):
    """Return the text of a file, "" if it does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _damaged(path, number):
    return UserError(f"{path}:{number}: damaged, expected a line as a submission wrote it")


def read_queue(workdir: Path) -> dict[str, Job]:
    """Return the job of each run that Slurm knows: the active one, or else the last one.

    Raises:
      UserError: Slurm is missing or refuses.
    """
    names, own = list(read_runs(workdir)), os.path.realpath(workdir / SCRIPT)
    found: dict[str, Job] = {}
    columns = "%F|%K|%T|%r|%o"
    output = _run_program("squeue", "--me", "--array", "--states=all", "--noheader", "-o", columns)
    for line in output.splitlines():
        job, task, state, reason, command = line.split("|", 4)
        # A task beyond the lines of runs.txt was submitted by hand; its script exits with an error.
        if os.path.realpath(command) != own or not (task.isdigit() and 0 < int(task) <= len(names)):
            continue
        name, new = names[int(task) - 1], Job(f"{job}_{task}", state, reason)
        if name not in found or new.sort_key > found[name].sort_key:
            found[name] = new
    return found


def _merge_commands(known, spec, grid, workdir):
    """Return commands by run name: the known ones in their order, then the new ones."""
    commands = dict(known)
    for point in grid:
        command = shlex.join(grids.train_command(spec, point, workdir))
        if not command.isprintable():
            raise UserError(f"run {point.name} has an override of more than one line: {command!r}")
        commands[point.name] = command
    return commands


def _find_missing(names, workdir, jobs):
    """Return the runs neither finished, queued nor in use, and a text that counts the others."""
    missing, counts = [], {"finished": 0, "in the queue": 0, "in use by another process": 0}
    for name in names:
        if _is_finished(workdir, name):
            counts["finished"] += 1
        elif name in jobs and jobs[name].is_active:
            counts["in the queue"] += 1
        elif status.is_in_use(workdir / name):
            counts["in use by another process"] += 1
        else:
            missing.append(name)
    return missing, ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _is_finished(workdir, name):
    return (workdir / name / "result.json").exists()


def _last_jobs(workdir: Path) -> dict[str, str]:
    """Return the id of the last job submitted for each run."""
    numbers = {name: line for line, name in enumerate(read_runs(workdir), start=1)}
    found: dict[str, str] = {}
    for number, line in enumerate(_read(workdir / _JOBS).splitlines(), start=1):
        try:
            entry = stored.parse(line)
            found |= {name: f"{entry['job']}_{numbers[name]}" for name in entry["runs"]}
        except (ValueError, LookupError, TypeError) as error:
            raise _damaged(workdir / _JOBS, number) from error
    return found


def _submit_array(workdir, names):
    output = _run_program("sbatch", "--parsable", str((workdir / SCRIPT).absolute()))
    job = output.split(";")[0].strip()  # JOB or JOB;CLUSTER
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with (workdir / _JOBS).open("a") as file:
        file.write(json.dumps({"job": job, "submitted": now, "runs": names}) + "\n")
    count = f"{len(names)} run{'s' * (len(names) != 1)}"
    return f"submitted {count} as job {job}, from {workdir / SCRIPT}"


def _run_program(program, *arguments):
    """Run one of Slurm's programs and return its output."""
    try:
        with waiting.reported(f"waiting for Slurm's {program}"):
            done = subprocess.run([program, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{program} not found, expected Slurm's programs on the PATH") from None
    if done.returncode:
        lines = [line.removeprefix(f"{program}: ") for line in done.stderr.splitlines()]
        why = "; ".join(line.removeprefix("error: ") for line in lines if line.strip())
        raise UserError(f"{program} refuses: {why or f'exit status {done.returncode}'}")
    return done.stdout


@contextlib.contextmanager
def _submission_lock(workdir: Path) -> Iterator[None]:
    """Allow one submission at a time, so that no run gets two jobs."""
    (workdir / SCRIPT).parent.mkdir(parents=True, exist_ok=True)
    with waiting.reported(f"waiting for another submission from {workdir}"):
        lock = locks.acquire((workdir / SCRIPT).with_name(".lock"), wait=None)
    assert lock  # with wait=None it is acquired in the end
    with lock:
        yield
