"""Write the batch script of a sweep on Slurm: a job array in which each task trains one run.

The script is meant to be read, edited and submitted by hand. It handles these cases:

- A run gets SIGTERM shortly before its time limit (and, where the cluster is configured so, when it
  is preempted), saves, and exits with 143. Slurm takes a job that exits as done, even during a
  preemption, so the script requeues itself.
- It requeues by the id of its task, because the id of the job can be that of the whole array.
- A job that was canceled, or requeued by somebody else, stays as it is.
- When one of several nodes is lost, the run fails before Slurm knows why; it is requeued as well.
- A failed run leaves `error.txt`, as on one machine.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from segjax.errors import UserError
from segjax.runs import compilation_cache

SCRIPT = Path("slurm", "sweep.sh")  # in the workdir
RUNS = Path("slurm", "runs.txt")  # in the workdir; a line per run: name, tab, command

_CACHE = compilation_cache.VARIABLE

_BODY = r"""
me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
IFS=$'\t' read -r name command < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$sweep/slurm/runs.txt")
[[ $name ]] || { echo "$sweep/slurm/runs.txt has no line $SLURM_ARRAY_TASK_ID"; exit 2; }
run=$sweep/$name
mkdir -p "$run" && rm -f "$run/error.txt" && exec >> "$run/log.txt" 2>&1 || exit
before=$(wc -c < "$run/log.txt")
echo "job $me on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times"

# Retry: the controller of a busy cluster may not answer at once.
ask() {
  local pause
  for pause in 2 10 30; do scontrol "$@" && return; sleep $pause; done
  scontrol "$@"
}

output() { tail -c +$((before + 1)) "$run/log.txt"; }

# When one of several nodes is lost, the processes on the others fail before Slurm notices.
lost_a_node() {
  local nodes=$SLURM_JOB_NUM_NODES
  ((nodes > 1)) && ! timeout -k 5 60 srun --overlap --nodes="$nodes" --ntasks="$nodes" true
}

on_exit() {
  local status=$?
  trap - EXIT
  set +e
  ((status == 0)) && exit 0
  # Canceled, or requeued by somebody else: nothing to do.
  [[ $(ask show job "$me") =~ JobState=(RUNNING|TIMEOUT) ]] || exit $status
  # Requeue if the run saved on a signal, its other processes did not start, a process that Slurm
  # takes for dead still holds the run directory, or a node was lost.
  if ((status == 143 || status == 75)) ||
    output | grep -q "is in use by another process" || lost_a_node; then
    if ((${SLURM_RESTART_COUNT:-0} < most_requeues)); then
      trap - TERM
      echo "requeuing $me and waiting for Slurm to end this job ..."
      ask requeue "$me" && sleep 120
    else
      echo "segjax: stopped, and requeued $most_requeues times already; submit it again to resume"
    fi
  fi
  output > "$run/error.txt"
  exit $status
}
trap on_exit EXIT
trap 'signaled=1' TERM  # this shell gets it too, and waits for the run to save
"""

_TRAIN = r"""
eval "words=($command)"
"${srun[@]}" "$python" -m "${words[@]}" &
# A signal ends `wait`, but not the run.
while signaled=; wait $!; status=$?; [[ $signaled ]]; do :; done
exit $status
"""

_PATTERNS = {
    "gpus_per_node": (re.compile(r"([\w.-]+:)?[1-9]\d*"), "N or TYPE:N"),
    "memory": (re.compile(r"\d+[KMGT]?"), "a number with K, M, G or T"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The resources that each run requests from Slurm; None means the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int | None = None  # seconds, limit of one job
    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: str | None = None  # N or TYPE:N
    cpus_per_task: int | None = None  # CPU cores of each process
    memory: str | None = None  # per node, such as 64G
    constraint: str | None = None
    container_image: str | None = None  # for srun with the Pyxis plugin
    container_mounts: Sequence[str] = ()  # FROM:TO, besides the current directory and the workdir
    python: str | None = None  # None: this interpreter, or python3 in a container
    setup: Sequence[str] = ()  # shell lines before the run
    sbatch: Sequence[str] = ()  # further options of sbatch
    most_requeues: int = 20
    warning: int = 120  # seconds from the signal to the time limit

    def __post_init__(self) -> None:
        """Raise if Slurm would reject or misread an option.

        Raises:
          UserError: an option is invalid.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            flag = "--" + field.name.replace("_", "-")
            for text in value if isinstance(value, tuple | list) else [value]:
                if isinstance(text, str) and (not text.strip() or not text.isprintable()):
                    raise UserError(f"{flag} is {text!r}, expected one line of text")
            if value is not None and field.name in _PATTERNS:
                form, expected = _PATTERNS[field.name]
                if not form.fullmatch(value):
                    raise UserError(f"{flag} is {value!r}, expected {expected}")
        for option in self.sbatch:
            if not option.startswith("-"):
                raise UserError(f"--sbatch is {option!r}, expected --sbatch=--NAME=VALUE")
        if self.time and self.warning >= self.time:
            raise UserError(
                f"--warning is {self.warning} seconds, expected less than --time-limit, {self.time}"
            )


def render(
    title: str, workdir: Path, options: Options, lines: Sequence[int], at_once: int | None = None
) -> str:
    """Return the batch script.

    Args:
      title: name of the sweep and its jobs.
      workdir: directory of the sweep.
      options: resources of each run.
      lines: line numbers in runs.txt of the runs to train, from 1.
      at_once: runs at a time; None: as many as the cluster gives.
    """
    here, sweep = Path.cwd(), workdir.absolute()
    limit = f"%{at_once}" if at_once else ""
    directives = {
        "--job-name": title,
        "--array": format_array(lines) + limit,
        "--partition": options.partition,
        "--account": options.account,
        "--qos": options.qos,
        "--time": options.time and _format_duration(options.time),
        "--nodes": options.nodes,
        "--ntasks-per-node": options.processes_per_node,
        "--cpus-per-task": options.cpus_per_task,
        "--gres": options.gpus_per_node and f"gpu:{options.gpus_per_node}",
        "--mem": options.memory,
        "--constraint": options.constraint,
        "--chdir": here,
        # A run writes to its log.txt; this file gets earlier output and Slurm's messages.
        "--output": f"{str(sweep).replace('%', '%%')}/slurm/%A_%a.log",
        "--open-mode": "append",
        "--signal": f"TERM@{options.warning}",
    }
    # End all processes of a run when one fails: none of them can continue alone.
    srun = ["srun", "--kill-on-bad-exit=1"]
    if options.cpus_per_task:
        srun.append(f"--cpus-per-task={options.cpus_per_task}")  # srun does not inherit it
    python = options.python or sys.executable
    if options.container_image:
        python = options.python or "python3"
        mounts = [f"{here}:{here}", f"{sweep}:{sweep}", *options.container_mounts]
        srun += [
            f"--container-image={options.container_image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={here}",
        ]
    head = [
        "#!/bin/bash",
        f"# The sweep {title}: task N of this array trains the run in line N of {RUNS.name}.",
        "# Submit all tasks by `sbatch sweep.sh`, some of them by `sbatch --array=2,5-7 sweep.sh`.",
        *(f"#SBATCH {name}={_quote(v)}" for name, v in directives.items() if v is not None),
        "#SBATCH --requeue",
        *(f"#SBATCH {option}" for option in options.sbatch),
        "",
        f"sweep={shlex.quote(str(sweep))}",
        f"python={shlex.quote(python)}",
        f"srun=({shlex.join(srun)})",
        f"most_requeues={options.most_requeues}",
        # Shared by all runs of the sweep, unless the variable is set at submission.
        f"export {_CACHE}=${{{_CACHE}-$sweep/{compilation_cache.FOLDER}}}",
    ]
    setup = "\n".join(["", "set -e", *options.setup, "set +e", ""]) if options.setup else ""
    return "\n".join(head) + "\n" + _BODY + setup + _TRAIN


def replace_array(script: str, lines: Sequence[int]) -> str:
    """Return a script, edited by hand or not, with its array set to these lines of runs.txt.

    Raises:
      UserError: it has no array.
    """
    array, found = r"^(#SBATCH --array=)[^%\s]*", rf"\g<1>{format_array(lines)}"
    edited, count = re.subn(array, found, script, count=1, flags=re.MULTILINE)
    if not count:
        raise UserError(f"{SCRIPT} has no line that starts with #SBATCH --array=, expected one")
    return edited


def format_array(lines: Sequence[int]) -> str:
    """Return line numbers as Slurm writes an array: 1, 2, 3, 5 is 1-3,5."""
    parts: list[list[int]] = []
    for line in sorted(lines):
        if parts and line == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], line]
        else:
            parts.append([line])
    return ",".join("-".join(map(str, part)) for part in parts)


def _format_duration(seconds):
    """Return D-HH:MM:SS, as Slurm writes a duration."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"


def _quote(value):
    """Return a value quoted for a #SBATCH line."""
    text = str(value)
    if re.fullmatch(r"[\w./:,%@=+&|*\[\]()-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
