"""Grids of the tiniest runs, for tests of sweeps."""

from pathlib import Path

from support import runs

TESTS = Path(__file__).parents[1]  # where such a file finds what it imports

FILE = """
from support.runs import OneLayer, small_config
from segjax import models

models.MODELS["one_layer"] = OneLayer

def get_config():
    return small_config("{data_dir}")

def sweep():
    for rate in {rates}:
        for seed in {seeds}:
            yield {{"optimizer.learning_rate": rate, "seed": seed}}
"""


def write(folder: Path, data_dir, rates, seeds=(0, 1)) -> str:
    """Write the config file of a grid of `OneLayer`; return its path."""
    file = folder / "grid.py"
    file.write_text(FILE.format(data_dir=data_dir, rates=list(rates), seeds=list(seeds)))
    return str(file)


def start(arguments, **environment):
    """Start `segjax` in a process of its own that finds the imports of such a file."""
    return runs.start(arguments, PYTHONPATH=str(TESTS), **environment)


def sweep(spec, workdir, *arguments, **environment):
    """Run `segjax sweep` on such a grid; return its exit status, output and errors."""
    command = ["sweep", "--config", spec, "--workdir", workdir, *arguments]
    process = start(command, **environment)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error
