"""The batch script of a sweep on Slurm: a job array, one run of the grid a task.

Written to be read, changed and submitted by hand. What it takes care of:

- A run gets SIGTERM some time before its time limit (and, where the cluster is set so, when it is
  preempted), saves, and exits with 143. Slurm counts a job that ends as done, even while it is
  preempted, so the script requeues itself.
- It does so by the id of its task: the id of the job can be that of the whole array.
- A job that was cancelled, or requeued by somebody else, is left alone.
- When a node of several is lost, the run fails before Slurm knows why: it is requeued as well.
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
RUNS = Path("slurm", "runs.txt")  # beside it: a line a run, its name, a tab, and its command

_CACHE = compilation_cache.VARIABLE

_BODY = r"""
me=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
IFS=$'\t' read -r name command < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$sweep/slurm/runs.txt")
[[ $name ]] || { echo "there is no line $SLURM_ARRAY_TASK_ID in $sweep/slurm/runs.txt"; exit 2; }
run=$sweep/$name
mkdir -p "$run" && rm -f "$run/error.txt" && exec >> "$run/log.txt" 2>&1 || exit
before=$(wc -c < "$run/log.txt")
echo "job $me on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times"

# The controller of a busy cluster may not answer at once.
ask() {
  local pause
  for pause in 2 10 30; do scontrol "$@" && return; sleep $pause; done
  scontrol "$@"
}

said() { tail -c +$((before + 1)) "$run/log.txt"; }

# With one of several nodes its processes are gone and the others fail; Slurm learns of it later.
lost_a_node() {
  local nodes=$SLURM_JOB_NUM_NODES
  ((nodes > 1)) && ! timeout -k 5 60 srun --overlap --nodes="$nodes" --ntasks="$nodes" true
}

settle() {
  local status=$?
  trap - EXIT
  set +e
  ((status == 0)) && exit 0
  # Cancelled, or requeued by somebody else: nothing is ours to do.
  [[ $(ask show job "$me") =~ JobState=(RUNNING|TIMEOUT) ]] || exit $status
  # Saved on a signal; or what Slurm takes for dead is still at it; or a node is dead.
  if ((status == 143)) || said | grep -q "is in use by another process" || lost_a_node; then
    if ((${SLURM_RESTART_COUNT:-0} < most_requeues)); then
      trap - TERM
      ask requeue "$me" && sleep 120  # until Slurm ends this start
    else
      echo "segjax: stopped, and requeued $most_requeues times already; submit it again to go on"
    fi
  fi
  said > "$run/error.txt"
  exit $status
}
trap settle EXIT
trap 'signalled=1' TERM  # comes to this shell too, which waits for the run to save
"""

_TRAIN = r"""
eval "words=($command)"
"${srun[@]}" "$python" -m "${words[@]}" &
# A signal ends `wait`, not the run.
while signalled=; wait $!; status=$?; [[ $signalled ]]; do :; done
exit $status
"""

_FORMS = {
    "gpus_per_node": (re.compile(r"([\w.-]+:)?[1-9]\d*"), "N or TYPE:N"),
    "memory": (re.compile(r"\d+[KMGT]?"), "a number with K, M, G or T"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Resources that each run of a sweep requests from Slurm; None: the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int | None = None  # seconds, the limit of one start of a run
    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: str | None = None  # N or TYPE:N
    cpus_per_task: int | None = None  # of each process
    memory: str | None = None  # of each node, such as 64G
    constraint: str | None = None
    container_image: str | None = None  # of Pyxis, for srun
    container_mounts: Sequence[str] = ()  # FROM:TO, beside the working directory and the workdir
    python: str | None = None  # None: this one; python3 of a container
    setup: Sequence[str] = ()  # lines of shell
    sbatch: Sequence[str] = ()  # more options of sbatch
    most_requeues: int = 20
    warning: int = 120  # seconds from the signal to the time limit

    def __post_init__(self) -> None:
        """Refuses what Slurm would not take, or take for something else.

        Raises:
          UserError: it names the option.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            flag = "--" + field.name.replace("_", "-")
            for text in value if isinstance(value, tuple | list) else [value]:
                if isinstance(text, str) and (not text.strip() or not text.isprintable()):
                    raise UserError(f"{flag} is {text!r}, expected one line of text")
            if value is not None and field.name in _FORMS:
                form, expected = _FORMS[field.name]
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
    """The script.

    Args:
      title: the sweep's name.
      workdir: where its runs live.
      options: what each run asks for.
      lines: those of runs.txt that are to run, from 1.
      at_once: so many at a time; None: as many as the cluster gives.
    """
    here, sweep = Path.cwd(), workdir.absolute()
    limit = f"%{at_once}" if at_once else ""
    directives = {
        "--job-name": title,
        "--array": array(lines) + limit,
        "--partition": options.partition,
        "--account": options.account,
        "--qos": options.qos,
        "--time": options.time and _clock(options.time),
        "--nodes": options.nodes,
        "--ntasks-per-node": options.processes_per_node,
        "--cpus-per-task": options.cpus_per_task,
        "--gres": options.gpus_per_node and f"gpu:{options.gpus_per_node}",
        "--mem": options.memory,
        "--constraint": options.constraint,
        "--chdir": here,
        # What a run says is in log.txt of its folder; here is what comes before, and Slurm's word.
        "--output": f"{str(sweep).replace('%', '%%')}/slurm/%A_%a.log",
        "--open-mode": "append",
        "--signal": f"TERM@{options.warning}",
    }
    # `srun` ends the whole step with its first process that fails: none of them can go on alone.
    srun = ["srun", "--kill-on-bad-exit=1"]
    if options.cpus_per_task:
        srun.append(f"--cpus-per-task={options.cpus_per_task}")  # not handed on by itself
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
        "# Submit all of it by `sbatch sweep.sh`, some of it by `sbatch --array=2,5-7 sweep.sh`.",
        *(f"#SBATCH {name}={_quoted(v)}" for name, v in directives.items() if v is not None),
        "#SBATCH --requeue",
        *(f"#SBATCH {option}" for option in options.sbatch),
        "",
        f"sweep={shlex.quote(str(sweep))}",
        f"python={shlex.quote(python)}",
        f"srun=({shlex.join(srun)})",
        f"most_requeues={options.most_requeues}",
        # One for all runs of the sweep, unless it is set where this is submitted.
        f"export {_CACHE}=${{{_CACHE}-$sweep/{compilation_cache.FOLDER}}}",
    ]
    setup = "\n".join(["", "set -e", *options.setup, "set +e", ""]) if options.setup else ""
    return "\n".join(head) + "\n" + _BODY + setup + _TRAIN


def with_lines(script: str, lines: Sequence[int]) -> str:
    """A script, changed by hand or not, for other lines of runs.txt."""
    return re.sub(
        r"^(#SBATCH --array=)[^%\s]*", rf"\g<1>{array(lines)}", script, count=1, flags=re.MULTILINE
    )


def array(lines: Sequence[int]) -> str:
    """1, 2, 3, 5 as Slurm writes it: 1-3,5."""
    parts: list[list[int]] = []
    for line in sorted(lines):
        if parts and line == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], line]
        else:
            parts.append([line])
    return ",".join("-".join(map(str, part)) for part in parts)


def _clock(seconds):
    """Return D-HH:MM:SS, as Slurm writes a duration."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"


def _quoted(value):
    """A value as sbatch reads it in a #SBATCH line."""
    text = str(value)
    if re.fullmatch(r"[\w./:,%@=+&|*\[\]()-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
