"""Packs the runs of a sweep onto this machine: one run a GPU, or one at a time without GPUs.

python launch/local.py --config experiments/quickstart.py --workdir runs/quickstart

It is `segjax sweep`, whose options it has, with as many --jobs as there are GPUs.
"""

import os
import sys

from segjax.cli import main as cli
from segjax.sweep import local


def main(given: list[str]) -> int:
    if not any(argument.partition("=")[0] == "--jobs" for argument in given):
        given = ["--jobs", str(max(len(local.visible_gpus(os.environ)), 1)), *given]
    return cli.main(["sweep", *given])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
