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

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segjax.cli.arguments import count, number
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

_TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}")
_FORMS = {
    "time": (_TIME, "minutes, HH:MM:SS or D-HH:MM:SS"),
    "gpus_per_node": (re.compile(r"([\w.-]+:)?[1-9]\d*"), "N or TYPE:N"),
    "memory": (re.compile(r"\d+[KMGT]?"), "a number with K, M, G or T"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What each run of a sweep asks Slurm for; None: what the cluster gives by itself."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None  # minutes, HH:MM:SS or D-HH:MM:SS
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
        if self.time and self.warning >= seconds(self.time):
            raise UserError(
                f"--warning is {self.warning} seconds, expected less than --time {self.time}"
            )


def seconds(time: str) -> int:
    """A time limit as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        parts = [int(days), *parts, 0, 0][:4]
    else:
        parts = [0, *([0, *parts, 0] if len(parts) < 3 else parts)][:4]
    return sum(n * unit for n, unit in zip(parts, (86400, 3600, 60, 1), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options, each None where it is not given."""
    add = parser.add_argument_group("with --launcher slurm").add_argument
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--qos", metavar="NAME")
    add("--time", help="the limit of one start of a run: minutes, HH:MM:SS or D-HH:MM:SS")
    add("--nodes", type=count, metavar="N", help="of each run (default: 1)")
    add(
        "--processes-per-node",
        type=count,
        metavar="N",
        help="(default: 1, with all its GPUs)",
    )
    add("--gpus-per-node", metavar="[TYPE:]N")
    add("--cpus-per-task", type=count, metavar="N", help="of each process")
    add("--memory", metavar="SIZE", help="of each node, such as 64G")
    add("--constraint", metavar="FEATURES", help="that the nodes have")
    add("--container-image", metavar="IMAGE", help="run in it (Pyxis and Enroot)")
    add(
        "--container-mounts",
        action="append",
        metavar="FROM:TO",
        help="beside the working directory and the workdir; may be given again",
    )
    add("--python", help="that has segjax (default: this one; in a container: python3)")
    add(
        "--setup",
        action="append",
        metavar="LINE",
        help="of shell, before the run: 'module load cuda'; may be given again",
    )
    add(
        "--sbatch",
        action="append",
        metavar="OPTION",
        help="any other: --sbatch=--exclude=node7; may be given again",
    )
    add(
        "--most-requeues",
        type=number,
        metavar="N",
        help=f"of a run that had to stop (default: {Options.most_requeues})",
    )
    add(
        "--warning",
        type=count,
        metavar="SECONDS",
        help=f"to save in, before the time limit (default: {Options.warning})",
    )


def given(namespace: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_arguments` that were given."""
    values = {field.name: getattr(namespace, field.name) for field in dataclasses.fields(Options)}
    return {name: value for name, value in values.items() if value is not None}


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
        "--time": options.time,
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


def _quoted(value):
    """A value as sbatch reads it in a #SBATCH line."""
    text = str(value)
    if re.fullmatch(r"[\w./:,%@=+&|*\[\]()-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
