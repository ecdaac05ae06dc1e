"""A sweep on Slurm: one job array, one run of the grid a task; see launch/README.md.

python launch/slurm.py submit --config experiments/quickstart.py --workdir runs/quickstart \
    --partition gpu --gpus-per-node 4 --time 12:00:00
python launch/slurm.py status --workdir runs/quickstart
python launch/slurm.py cancel --workdir runs/quickstart --only '*,seed=0'
python launch/slurm.py resubmit --workdir runs/quickstart

`submit` is `segjax sweep --launcher slurm` and has its options.
"""

import sys
from pathlib import Path

from segjax.cli import arguments
from segjax.cli import main as cli
from segjax.errors import UserError
from segjax.sweep import slurm


def status(workdir: Path, patterns: list[str]) -> str:
    return slurm.report(slurm.points(workdir, patterns), workdir)


ACTS = {
    "status": ("say how far the runs are, and where in the queue", status),
    "cancel": ("cancel the jobs of runs; those that run save", slurm.cancel),
    "resubmit": ("submit what is neither finished nor under way", slurm.resubmit),
}


def main(given: list[str]) -> int:
    if given[:1] == ["submit"]:
        return cli.main(["sweep", "--launcher", "slurm", *given[1:]])
    parser = arguments.Parser(description="A sweep on Slurm.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("submit", help="segjax sweep --launcher slurm, whose options it has")
    for name, (summary, act) in ACTS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        sub.set_defaults(act=act)
        sub.add_argument("--workdir", required=True, type=Path, help="of the sweep")
        sub.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="PATTERN",
            help="runs whose name fits, such as '*,seed=0'; may be given again",
        )
    try:
        options = parser.parse_args(given)
        sys.stdout.write(options.act(options.workdir, options.only) + "\n")
    except (UserError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
